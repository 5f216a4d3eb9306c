"""Pictures in batches, as a model of transformers takes them."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from torch import Tensor

from surgery.errors import JudgeError

_BATCH: Final = 32  # pictures of 224×224 values in single precision, in three channels: 19 MB

Prepare = Callable[[np.ndarray[Any, Any]], Tensor]
"""Bytes of pictures (n, rows, columns, 3) to what a model takes, on the CPU."""


def prepared(pictures: np.ndarray[Any, Any], prepare: Prepare, judge: str, device: Any) -> Iterator[Tensor]:
    """Batches of pictures of any size on the model's device.

    Raises:
        JudgeError: when the pictures are no bytes in three colours.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise JudgeError(
            f"pictures of shape {pictures.shape[1:]} and type {pictures.dtype}; judge {judge!r} expects "
            "rows, columns and 3 colours of uint8. Convert the pictures to RGB."
        )
    for start in range(0, len(pictures), _BATCH):
        yield prepare(pictures[start : start + _BATCH]).to(device)
