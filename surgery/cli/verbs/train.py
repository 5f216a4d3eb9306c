"""The verb that learns a look from pictures: train."""

from pathlib import Path
from typing import Literal

import click

from surgery.checkpoint.outputs import check_outputs
from surgery.cli.devices import chosen_device, use_threads
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    Finite,
    device_option,
    given_options,
    json_option,
    output_option,
    overwrite_option,
    print_json,
    threads_option,
)
from surgery.cli.program import Verb
from surgery.shelf import checkpoint_path


@click.command(cls=Verb)
@click.argument("folder", type=FILE)
@click.option("--base", type=CHECKPOINT, required=True, help="Checkpoint: a path or a shelf name.")
@click.option(
    "--form",
    type=click.Choice(["lora", "full"]),
    default="lora",
    show_default=True,
    help="Train factors beside the layers, or all weights of the U-Net but cross-attention.",
)
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="Of the factors.")
@click.option(
    "--layers",
    type=click.Choice(["attention", "linear", "all"]),
    default="all",
    show_default=True,
    help="Which layers have factors.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Updates, at most."
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Pictures in each update."
)
@click.option(
    "--micro-batch", type=click.IntRange(min=1), help="Of them in one pass; all of them when left out."
)
@click.option(
    "--learning-rate",
    type=Finite(0, above=True),
    help="Of AdamW; 1e-4 for factors and 1e-5 for weights when left out.",
)
@click.option(
    "--average",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.995,
    show_default=True,
    help="Decay of the moving average of the weights that is the result; 0: the weights themselves.",
)
@click.option(
    "--mirror/--no-mirror",
    default=True,
    show_default=True,
    help="Show every other picture from its left, on average.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the pictures that say when to stop.",
)
@click.option(
    "--check-every",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Updates between two looks at their loss, each with a sheet of samples.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Looks without a better loss before it stops.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Type in which products are taken; weights and gradients stay in float32.",
)
@click.option("--seed", type=click.IntRange(0, 2**53), default=0, show_default=True, help="Of all noise.")
@click.option(
    "--truncate",
    type=click.IntRange(min=1),
    help="With form full: a patch of changes of this rank at most, a LoRA, and the energy that each keeps.",
)
@click.option(
    "--constants", type=FILE, help="Also write cross-attention as one vector a layer, to this file."
)
@click.option(
    "--tolerance",
    type=Finite(0),
    default=0.02,
    show_default=True,
    help="How far predictions with constants may be off, as a share; else none are written.",
)
@click.option(
    "--work", type=FILE, help="Folder for the state, losses and sheets; beside the patch when left out."
)
@output_option("The patch.")
@overwrite_option
@device_option
@threads_option
@json_option
@click.pass_context
def train(
    context: click.Context,
    folder: Path,
    base: str,
    form: Literal["lora", "full"],
    rank: int,
    layers: Literal["attention", "linear", "all"],
    steps: int,
    batch: int,
    micro_batch: int | None,
    learning_rate: float | None,
    average: float,
    mirror: bool,
    held_out: float,
    check_every: int,
    patience: int,
    precision: Literal["float32", "bfloat16"],
    seed: int,
    truncate: int | None,
    constants: Path | None,
    tolerance: float,
    work: Path | None,
    output: Path,
    overwrite: bool,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Learn the look of the pictures in FOLDER, without captions, as a patch of the U-Net.

    A stopped training that is started again with the same options goes on where it was. Started by
    'accelerate launch', several devices share every batch.
    """
    place = checkpoint_path(base)
    _refuse(given_options(context), form, constants)
    outputs = [output] if constants is None else [output, constants]
    check_outputs(outputs, [place, folder], overwrite=overwrite)
    from surgery.methods.null_text import TrainSettings
    from surgery.study.look import train_look

    use_threads(threads)
    settings = TrainSettings(
        form=form,
        rank=rank,
        layers=layers,
        steps=steps,
        batch=batch,
        micro_batch=micro_batch or batch,
        learning_rate=learning_rate or (1e-4 if form == "lora" else 1e-5),
        average=average,
        mirrored=mirror,
        held_out=held_out,
        check_every=check_every,
        patience=patience,
        precision=precision,
        seed=seed,
    )
    found = train_look(
        place,
        folder,
        output,
        settings,
        truncate=truncate,
        constants=constants,
        tolerance=tolerance,
        work=work,
        overwrite=overwrite,
        device=chosen_device(device),
    )
    if not found.first:
        return
    if as_json:
        print_json(found.as_json())
        return
    for line in found.lines():
        print(line)
    print(output)


def _refuse(given: set[str], form: str, constants: Path | None) -> None:
    """Options that nothing would read."""
    if form == "lora" and "--truncate" in given:
        raise click.UsageError("--truncate is about form full; factors have their --rank.")
    if form == "full":
        wrong = sorted(given & {"--rank", "--layers"})
        if wrong:
            raise click.UsageError(f"{', '.join(wrong)}: form full has no factors. Leave it out.")
    if constants is None and "--tolerance" in given:
        raise click.UsageError("--tolerance is about constants; name a file with --constants.")
