"""A checkpoint's pipeline, where its models are to run."""

import logging
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint.components import load_pipeline, load_text_encoder, load_tokenizer
from surgery.diffusion import offload

_log = logging.getLogger(__name__)


def pipeline_on(path: Path, device: str, dtype: torch.dtype, *, offloaded: bool = False) -> Any:
    """The whole pipeline on a device, or in main memory from where its models take turns there.

    Args:
        path: A diffusers folder or a single file.
        device: Where the models run.
        dtype: Of their weights.
        offloaded: Whether each model comes to the device only when it is used.

    Raises:
        CheckpointError: when a part is missing or damaged, or the checkpoint is another kind of pipeline.
    """
    if offloaded and torch.device(device).type == "cpu":
        _log.info("nothing to offload: the models run in main memory")
        offloaded = False
    pipeline = load_pipeline(path, device="cpu" if offloaded else device, dtype=dtype)
    if offloaded:
        offload(pipeline, device)
    return pipeline


def text_tower_on(path: Path, component: str, device: str) -> tuple[Any, Any]:
    """A text encoder of a checkpoint in float32 on a device, and its tokenizer; nothing else is loaded.

    Raises:
        CheckpointError: when either is missing or damaged.
    """
    encoder = load_text_encoder(path, device=device, component=component)
    return encoder, load_tokenizer(path, component.replace("text_encoder", "tokenizer"))
