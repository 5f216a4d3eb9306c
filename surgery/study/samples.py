"""Sample a checkpoint, with and without a patch, onto one labelled sheet."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import SampleKnobs, before_and_after, sample_table
from surgery.patch import applied, load_patch
from surgery.report import SheetRow, contact_sheet, png

# sides of a drawn picture in pixels: small ones are enlarged, those of 512 and more reduced
_SMALLEST, _LARGEST = 128, 256


def sample_sheet(
    checkpoint: Path,
    prompts: Sequence[str],
    *,
    patch: Path | None = None,
    strength: float = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **knobs: Unpack[SampleKnobs],
) -> Image.Image:
    """A sheet with one row for each prompt and one column for each seed; with a patch, before and after it.

    Args:
        checkpoint: A diffusers folder.
        prompts: One for each row.
        patch: A patch file that fits the checkpoint; none shows the checkpoint alone.
        strength: 1 applies the patch as computed.
        seeds: One for each column, the same before and after.
        device: Where the models run.
        dtype: In which type they run.
        knobs: ``steps``, ``guidance``, ``negative``, ``batch`` … as ``surgery.diffusion.sample`` takes them.

    Raises:
        SurgeryError: when the checkpoint or the patch cannot be used, or they do not fit each other.
    """
    pipeline = load_pipeline(checkpoint, device=device, dtype=dtype)
    columns = [f"seed {seed}" for seed in seeds]
    if patch is None:
        tables = [sample_table(pipeline, prompts, seeds, **knobs)]
        headings = [""]
    else:
        edited: AbstractContextManager[Any] = applied(pipeline, load_patch(patch), strength=strength)
        tables = list(before_and_after(pipeline, edited, prompts, seeds, **knobs))
        headings = ["before", "after" if strength == 1 else f"after, strength {strength:g}"]
    rows = [
        SheetRow(label=prompt, groups=tuple(table[row] for table in tables))
        for row, prompt in enumerate(prompts)
    ]
    cell = min(max(_SMALLEST, *tables[0].shape[2:4]), _LARGEST)
    return contact_sheet(rows, groups=headings, columns=columns, cell=cell)


def write_sheet(sheet: Image.Image, path: Path, *, overwrite: bool = False) -> None:
    """Write a sheet as a PNG file, whole or not at all.

    Raises:
        SurgeryError: when ``path`` exists and ``overwrite`` is not set, or the disk refuses.
    """
    with atomic_file(path, overwrite=overwrite) as temporary:
        write_bytes(temporary, [png(sheet)])
