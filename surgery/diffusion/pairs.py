"""The same prompts and seeds with two sets of weights."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Unpack

import numpy as np
from jaxtyping import UInt8

from surgery.diffusion.models import Models
from surgery.diffusion.sampling import SampleKnobs, sample

PictureTable = UInt8[np.ndarray[Any, Any], "prompts seeds rows columns 3"]


def sample_table(
    models: Models, prompts: Sequence[str], seeds: Sequence[int], **knobs: Unpack[SampleKnobs]
) -> PictureTable:
    """A picture of every prompt with every seed; ``knobs`` are those of ``sample``."""
    each = [prompt for prompt in prompts for _ in seeds]
    pictures = sample(models, each, list(seeds) * len(prompts), **knobs)
    return pictures.reshape(len(prompts), len(seeds), *pictures.shape[1:])


def before_and_after(
    models: Models,
    edited: AbstractContextManager[Models],
    prompts: Sequence[str],
    seeds: Sequence[int],
    **knobs: Unpack[SampleKnobs],
) -> tuple[PictureTable, PictureTable]:
    """Pictures of every prompt with every seed, by the models as they are and while ``edited`` is entered.

    Args:
        models: The unedited pipeline, or any object with its five parts.
        edited: Gives the edited one while it is entered; it may change ``models`` in place.
        prompts: Prompts, one for each row.
        seeds: Seeds, one for each column.
        knobs: Those of ``sample``.
    """
    before = sample_table(models, prompts, seeds, **knobs)
    with edited as patched:
        return before, sample_table(patched, prompts, seeds, **knobs)
