"""A checkpoint from one layout into the other: diffusers folder to single file and back, tensor by tensor.

A single file holds weights alone. So that a folder survives the way there and back, the small files of the
pipeline (configurations, scheduler, tokenizer) travel in the metadata of the files written here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surgery.checkpoint.header import TensorEntry
from surgery.checkpoint.layout import Checkpoint, Layout, open_checkpoint
from surgery.checkpoint.leftovers import AVERAGED
from surgery.checkpoint.pipeline_files import pipeline_files
from surgery.checkpoint.to_folder import files_of, single_to_folder
from surgery.checkpoint.to_single import folder_into_single, folder_to_single, without_averaged
from surgery.checkpoint.weights import second_copies
from surgery.checkpoint.writer import refuse_foreign, refuse_overlap, write_checkpoint
from surgery.errors import CheckpointError, raise_all

Averaged = Literal["drop", "take"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written: where, in which layout, how many weights, and what was left out, in words."""

    out: Path
    layout: Layout
    tensors: int
    left_out: tuple[str, ...] = ()


def convert_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    *,
    to: Layout | None = None,
    like: Path | None = None,
    tokenizer: Path | None = None,
    averaged: Averaged | None = None,
    partial: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Write ``checkpoint`` in the other layout to ``out``; values, shapes and types stay as they are.

    Args:
        checkpoint: A folder becomes a single file, a single file becomes a folder.
        out: The new file or folder.
        to: The layout of ``out``; the other one when left out. A single file stays one only where it loses
            its averaged copy; a folder stays one only where it loses weights that it holds a second time.
        like: For a new folder, a folder of the same model, whose configurations and tokenizer it gets; not
            needed for the published families, nor for single files that were written here. For a new single
            file, one whose key order, metadata and surplus tensors it gets.
        tokenizer: A folder with CLIP's vocabulary, for a published family; looked for when left out.
        averaged: What becomes of the averaged copy of the U-Net that some single files carry: left out, or
            put in the place of the U-Net. A folder never has it; it is left out unless taken.
        partial: Allow tensors to be left out that are no part of a Stable Diffusion.
        overwrite: Allow an older checkpoint at ``out`` to be replaced.

    Raises:
        CheckpointError: when a tensor has no place in the other layout, or nothing says how the folder's
            models are built.
    """
    to = to or ("single" if checkpoint.layout == "folder" else "folder")
    refuse_overlap(checkpoint.path, out)
    refuse_foreign(out, to)
    tensors = _with_averaged(checkpoint, averaged)
    left_out: tuple[str, ...] = ()
    if checkpoint.layout == to == "folder":
        _refuse_idle(like=like, tokenizer=tokenizer, partial=partial)
        left_out = _without_copies(checkpoint, out, overwrite)
    elif checkpoint.layout == to:
        _refuse_same(checkpoint, averaged)
        without_averaged(checkpoint, out, take=averaged == "take", overwrite=overwrite)
        left_out = tuple(str(leftover) for leftover in checkpoint.leftovers if leftover.what == AVERAGED)
    elif to == "folder":
        files = files_of(checkpoint, tokenizer) if like is None else pipeline_files(like)
        left_out = single_to_folder(checkpoint, tensors, out, files, partial=partial, overwrite=overwrite)
    elif like is None:
        left_out = folder_to_single(checkpoint, out, overwrite)
    else:
        folder_into_single(checkpoint, _single(like), out, overwrite)
    return Conversion(out=out, layout=to, tensors=len(tensors), left_out=left_out)


def _with_averaged(checkpoint: Checkpoint, averaged: Averaged | None) -> dict[str, TensorEntry]:
    """The weights, those of the U-Net from its averaged copy where that is asked for."""
    if averaged is not None and not any(part.what == AVERAGED for part in checkpoint.leftovers):
        raise CheckpointError(
            f"{checkpoint.path} carries no averaged copy of its U-Net (keys that begin with 'model_ema.'); "
            "one was expected. Leave --averaged out."
        )
    if averaged != "take":
        return dict(checkpoint.tensors)
    unet = {name for name in checkpoint.tensors if name.startswith("unet/")}
    missing = sorted(unet - checkpoint.averaged.keys())
    if missing:
        raise CheckpointError(
            f"the averaged copy in {checkpoint.path} lacks {len(missing)} of {len(unet)} tensors (the first "
            f"is {missing[0]!r}); a whole one was expected. Leave it out (--averaged drop)."
        )
    return {**checkpoint.tensors, **checkpoint.averaged}


def _refuse_same(checkpoint: Checkpoint, averaged: Averaged | None) -> None:
    if averaged is None:
        raise CheckpointError(
            f"{checkpoint.path} is a single file already; the other layout was expected. Only its averaged "
            "copy can be taken out of it (--averaged)."
        )


def _refuse_idle(**options: object) -> None:
    """Options that say nothing about a folder that stays one."""
    given = [f"--{name}" for name, value in options.items() if value]
    raise_all(
        CheckpointError,
        [
            f"{name} means nothing where a folder stays one; expected it for another layout. Leave it out."
            for name in given
        ],
    )


def _without_copies(checkpoint: Checkpoint, out: Path, overwrite: bool) -> tuple[str, ...]:
    """Write a folder with each component's weights once, and say which files that leaves out."""
    surplus = second_copies(checkpoint.path, checkpoint.weights)
    if not surplus:
        raise CheckpointError(
            f"{checkpoint.path} is a folder already, with each component's weights once; a single file to "
            "convert, or a folder with several variants, was expected."
        )
    write_checkpoint(checkpoint, out, {}, without=surplus, overwrite=overwrite)
    return tuple(str(file.relative_to(checkpoint.path)) for file in surplus)


def _single(path: Path) -> Checkpoint:
    like = open_checkpoint(path)
    if like.layout != "single":
        raise CheckpointError(
            f"{path} is a folder; to write a single file like another, a single file was expected (--like)."
        )
    return like
