"""Fixtures that several rooms use."""

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

# the same examples everywhere, and no clock: shared machines stall
hypothesis.settings.register_profile(
    "surgery", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("surgery")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The README's commands take longest, and one process does all of them: it begins with them."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


BuildTiny = Callable[[torch.dtype], Path]


@pytest.fixture(scope="session")
def tiny_in(tmp_path_factory: pytest.TempPathFactory) -> BuildTiny:
    """The tiny random pipeline as a folder in the asked dtype, made once; never write into it."""
    folders: dict[torch.dtype, Path] = {}

    def in_dtype(dtype: torch.dtype) -> Path:
        from tests.support.tiny import build_tiny

        if dtype not in folders:
            name = str(dtype).removeprefix("torch.")
            folders[dtype] = build_tiny(tmp_path_factory.mktemp("tiny") / name, dtype=dtype)
        return folders[dtype]

    return in_dtype


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_in: BuildTiny) -> Path:
    """The tiny random pipeline as a folder of half-precision files; never write into it."""
    return tiny_in(torch.float16)


@pytest.fixture(scope="session")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SDXL as a folder of half-precision files; never write into it."""
    from tests.support.families import build_xl

    return build_xl(tmp_path_factory.mktemp("tiny") / "xl")


@pytest.fixture(scope="session")
def tiny_v2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Stable Diffusion 2.x as a folder of half-precision files; never write into it."""
    from tests.support.families import build_v2

    return build_v2(tmp_path_factory.mktemp("tiny") / "v2")
