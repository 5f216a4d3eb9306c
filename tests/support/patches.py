"""Random edits of the folders in `tests.support.folders` and of the tiny pipeline."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, Dense, Form, LowRank
from surgery.patch import Patch, Term, make_patch
from tests.support.folders import CONV_NAME, FC2_NAME, TO_K_NAME

NAMES = (FC2_NAME, TO_K_NAME, CONV_NAME)


def random_form(shape: Sequence[int], seed: int, *, dense: bool = False, size: float = 0.1) -> Form:
    """A change of about ``size`` per element: of rank 2, or dense with a third of the elements at zero."""
    generator = torch.Generator().manual_seed(seed)
    if dense or len(shape) < 2:
        values = size * torch.randn(*shape, generator=generator)
        return Dense(values * (torch.rand(*shape, generator=generator) > 1 / 3))
    left = size * torch.randn(shape[0], 2, generator=generator)
    return LowRank(left, torch.randn(2, prod(shape[1:]), generator=generator))


def random_patch(
    base: Path,
    names: Sequence[str] = NAMES,
    *,
    seed: int = 0,
    dense: bool = False,
    size: float = 0.1,
    strength: float = 1.0,
) -> Patch:
    """A patch with one term for each of ``names``; one of a strength other than 1 is no LoRA."""
    checkpoint = open_checkpoint(base)
    terms = [
        Term(
            delta=Delta(
                {name: random_form(checkpoint.entry(name).shape, seed + place, dense=dense, size=size)}
            ),
            source=f"edit {place}",
            strength=strength,
        )
        for place, name in enumerate(names)
    ]
    return make_patch(terms, checkpoint, {"recipe": "edits: []\n", "seed": seed})
