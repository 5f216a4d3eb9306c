"""The verb that writes a checkpoint in another form: convert."""

from pathlib import Path
from typing import Literal

import click

from surgery.cli.options import CHECKPOINT, FILE, output_option, overwrite_option
from surgery.cli.program import Verb
from surgery.errors import printable
from surgery.shelf import checkpoint_path


@click.command(cls=Verb)
@click.argument("checkpoint", type=CHECKPOINT)
@click.option("--to", "layout", type=click.Choice(["single", "folder"]), help="The other one when left out.")
@output_option("The new file, or the new folder.")
@click.option(
    "--like",
    type=CHECKPOINT,
    help="For a folder: one of the same model, for the configurations and the tokenizer that a single file "
    "lacks. For a single file: one whose keys, order and surplus tensors the new one gets.",
)
@click.option("--tokenizer", type=FILE, help="A folder with CLIP's vocabulary; looked for when left out.")
@click.option("--variant", help="Which variant of a folder's files to take, for example fp16.")
@click.option(
    "--averaged",
    type=click.Choice(["drop", "take"]),
    help="Leave the averaged copy of the U-Net (model_ema) out of a single file, or put it in the U-Net's "
    "place. A folder never has it.",
)
@click.option("--partial", is_flag=True, help="Leave out tensors that are no part of a Stable Diffusion.")
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Write the tensors of a .ckpt or .bin file as safetensors. Nothing in the file is run.",
)
@overwrite_option
def convert(
    checkpoint: str,
    layout: Literal["single", "folder"] | None,
    output: Path,
    like: str | None,
    tokenizer: Path | None,
    variant: str | None,
    averaged: Literal["drop", "take"] | None,
    partial: bool,
    allow_pickle: bool,
    overwrite: bool,
) -> None:
    """Write a diffusers folder as a single file, or a single file as a folder.

    With --to folder, a folder that holds its weights in several variants becomes one that holds one.
    Values, shapes and types stay as they are, and what is left out is said. A single file written here
    carries the configurations and the tokenizer, so that it becomes the same folder again.
    """
    place = checkpoint_path(checkpoint)
    if allow_pickle:
        _unpickle(place, output, layout, overwrite)
        return
    from surgery.checkpoint import convert_checkpoint, open_checkpoint

    opened = open_checkpoint(place, variant=variant)
    if layout == opened.layout == "single" and averaged is None:
        raise click.UsageError(f"{opened.path} is a single file already; leave --to out to convert it.")
    done = convert_checkpoint(
        opened,
        output,
        to=layout,
        like=None if like is None else checkpoint_path(like),
        tokenizer=tokenizer,
        averaged=averaged,
        partial=partial,
        overwrite=overwrite,
    )
    _say(output, done.tensors, done.left_out)


def _unpickle(place: Path, output: Path, layout: str | None, overwrite: bool) -> None:
    if layout == "folder":
        raise click.UsageError("--allow-pickle writes one safetensors file; convert that to a folder next.")
    from surgery.checkpoint.pickles import unpickle_checkpoint

    done = unpickle_checkpoint(place, output, overwrite=overwrite)
    _say(output, done.tensors, done.left_out)


def _say(output: Path, tensors: int, left_out: tuple[str, ...]) -> None:
    print(printable(f"{output}: {tensors} tensors"))
    for what in left_out:
        print(printable(f"left out: {what}"))
