"""Where a pipeline's models lie and run."""

import logging
from pathlib import Path

import pytest
import torch

from surgery.diffusion import is_offloaded
from surgery.study.loading import pipeline_on

PARTS = ("text_encoder", "unet", "vae")


def test_in_main_memory_there_is_nothing_to_offload(
    tiny_pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="surgery"):
        pipeline = pipeline_on(tiny_pipeline, "cpu", torch.float32, offloaded=True)
    assert "nothing to offload" in caplog.text
    assert not any(is_offloaded(getattr(pipeline, part)) for part in PARTS)


def test_offloaded_models_wait_in_main_memory(tiny_pipeline: Path) -> None:
    pipeline = pipeline_on(tiny_pipeline, "cuda:0", torch.float16, offloaded=True)
    for part in PARTS:
        model = getattr(pipeline, part)
        assert is_offloaded(model)
        assert next(model.parameters()).device == torch.device("cpu")
        assert next(model.parameters()).dtype == torch.float16
