"""A checkpoint's pipeline, where its models are to run."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint import Checkpoint
from surgery.checkpoint.components import load_pipeline, load_text_encoder, load_tokenizer
from surgery.diffusion import offload
from surgery.errors import MethodError

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


def refuse_lossy(dtype: torch.dtype, names: Iterable[str], base: Checkpoint) -> None:
    """Refuse a type in which the weights to edit lose digits: no patch could be put into them.

    Raises:
        MethodError: naming the types that the base has them in.
    """
    stored = {str(base.entry(name).dtype).removeprefix("torch.") for name in names} - {"bfloat16"}
    if dtype == torch.bfloat16 and stored:
        raise MethodError(
            f"dtype is bfloat16, and the base has the weights to edit in {', '.join(sorted(stored))}, which "
            "has more digits; expected a type that keeps them. Use float32 or float16."
        )


def text_tower_on(path: Path, component: str, device: str) -> tuple[Any, Any]:
    """A text encoder of a checkpoint in float32 on a device, and its tokenizer; nothing else is loaded.

    Raises:
        CheckpointError: when either is missing or damaged.
    """
    encoder = load_text_encoder(path, device=device, component=component)
    return encoder, load_tokenizer(path, component.replace("text_encoder", "tokenizer"))
