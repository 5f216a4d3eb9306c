"""Sample a checkpoint, with and without a patch, onto one labelled sheet."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.diffusion import PictureTable, SampleKnobs, before_and_after, sample_table
from surgery.patch import applied, load_patch
from surgery.report import SheetRow, contact_sheet, png
from surgery.study.loading import pipeline_on
from surgery.study.wordless import warn_of_prompts

# sides of a drawn picture in pixels: small ones are enlarged, those of 512 and more reduced
_SMALLEST, _LARGEST = 128, 256


def sample_sheet(
    checkpoint: Path,
    prompts: Sequence[str],
    *,
    patch: Path | None = None,
    strength: float = 1.0,
    allow_other_base: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    offloaded: bool = False,
    **knobs: Unpack[SampleKnobs],
) -> Image.Image:
    """A sheet with one row for each prompt and one column for each seed; with a patch, before and after it.

    Args:
        checkpoint: A diffusers folder.
        prompts: One for each row.
        patch: A patch file that fits the checkpoint; none shows the checkpoint alone.
        strength: 1 applies the patch as computed.
        allow_other_base: Whether the checkpoint may be a fine-tune of the patch's base.
        seeds: One for each column, the same before and after.
        device: Where the models run.
        dtype: In which type they run.
        offloaded: Whether each model comes to the device only when it is used.
        knobs: ``steps``, ``guidance``, ``negative``, ``batch`` … as ``surgery.diffusion.sample`` takes them.

    Raises:
        SurgeryError: when the checkpoint or the patch cannot be used, or they do not fit each other.
    """
    pipeline = pipeline_on(checkpoint, device, dtype, offloaded=offloaded)
    if patch is None:
        return sheet_of({"": sample_table(pipeline, prompts, seeds, **knobs)}, prompts, seeds)
    loaded = load_patch(patch)
    warn_of_prompts(loaded, patch)
    edited: AbstractContextManager[Any] = applied(
        pipeline, loaded, strength=strength, allow_other_base=allow_other_base
    )
    before, after = before_and_after(pipeline, edited, prompts, seeds, **knobs)
    heading = "after" if strength == 1 else f"after, strength {strength:g}"
    return sheet_of({"before": before, heading: after}, prompts, seeds)


def sheet_of(tables: Mapping[str, PictureTable], labels: Sequence[str], seeds: Sequence[int]) -> Image.Image:
    """The same prompts (rows, with a label each) and seeds (columns) as every table of pictures shows them.

    Args:
        tables: Under their headings, from left to right.
        labels: One for each row.
        seeds: One for each column.
    """
    rows = [
        SheetRow(label=label, groups=tuple(table[row] for table in tables.values()))
        for row, label in enumerate(labels)
    ]
    columns = [f"seed {seed}" for seed in seeds]
    cell = max(cell_side(table) for table in tables.values())
    return contact_sheet(rows, groups=list(tables), columns=columns, cell=cell)


def cell_side(pictures: np.ndarray[Any, Any]) -> int:
    """Side at which pictures [..., rows, columns, 3] are shown: small ones larger, large ones smaller."""
    sides: tuple[int, ...] = pictures.shape[-3:-1]
    return min(max(_SMALLEST, *sides), _LARGEST)


def write_sheet(sheet: Image.Image, path: Path, *, overwrite: bool = False) -> None:
    """Write a sheet as a PNG file, whole or not at all.

    Raises:
        SurgeryError: when ``path`` exists and ``overwrite`` is not set, or the disk refuses.
    """
    with atomic_file(path, overwrite=overwrite) as temporary:
        write_bytes(temporary, [png(sheet)])
