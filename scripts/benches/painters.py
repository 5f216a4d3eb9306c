"""Models that draw in another type than edits are made in."""

from __future__ import annotations

import copy
from typing import Any

import torch


def painters_of(models: Any, dtype: torch.dtype) -> Any:
    """The same models, the U-Net in another type."""
    if dtype == torch.float32:
        return models
    painters = copy.copy(models)
    painters.unet = copy.deepcopy(models.unet).to(dtype)
    return painters
