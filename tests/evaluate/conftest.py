"""The small pipeline, loaded once, and an edit of it that is taken back."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small import small_pipeline


@pytest.fixture(scope="session")
def pipeline(tiny_pipeline: Path) -> Any:
    return small_pipeline(tiny_pipeline)


@pytest.fixture
def edited(pipeline: Any) -> Callable[[], AbstractContextManager[Any]]:
    """Stands in for a patch: the text encoder's last norm is tripled while the context lasts."""

    @contextmanager
    def edit() -> Iterator[Any]:
        norm = getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder).final_layer_norm
        kept = norm.weight.clone()
        with torch.no_grad():
            norm.weight.mul_(3)
            try:
                yield pipeline
            finally:
                norm.weight.copy_(kept)

    return edit
