"""The small pipeline, loaded once; tests may swap its scheduler."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.small import small_pipeline


@pytest.fixture(scope="session")
def loaded(tiny_pipeline: Path) -> Any:
    return small_pipeline(tiny_pipeline)


@pytest.fixture
def pipeline(loaded: Any) -> Iterator[Any]:
    scheduler = loaded.scheduler
    yield loaded
    loaded.scheduler = scheduler
