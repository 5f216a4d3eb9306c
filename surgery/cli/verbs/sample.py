"""The verb that draws pictures: sample."""

from pathlib import Path

import click

from surgery.checkpoint.atomic import check_outputs
from surgery.cli.devices import chosen_device, use_threads
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    batch_option,
    device_option,
    dtype_option,
    offload_option,
    other_base_option,
    output_option,
    overwrite_option,
    threads_option,
)
from surgery.cli.program import Verb
from surgery.shelf import checkpoint_path


@click.command(cls=Verb)
@click.argument("checkpoint", type=CHECKPOINT)
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to draw; one row for each.")
@click.option("--patch", type=FILE, help="Draw with this patch too, beside the same seeds without it.")
@click.option("--strength", type=float, help="Of the patch; 1, as computed, when left out.")
@other_base_option
@click.option(
    "--seed", type=click.IntRange(0, 2**53), default=0, show_default=True, help="Seed of the first column."
)
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Columns.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=25, show_default=True, help="Steps of the sampler."
)
@click.option("--guidance", type=float, default=5.0, show_default=True, help="Guidance scale.")
@dtype_option
@output_option("The sheet, a PNG file.")
@overwrite_option
@device_option
@offload_option
@threads_option
@batch_option
def sample(
    checkpoint: str,
    prompts: tuple[str, ...],
    patch: Path | None,
    strength: float | None,
    allow_other_base: bool,
    seed: int,
    count: int,
    steps: int,
    guidance: float,
    dtype: str | None,
    output: Path,
    overwrite: bool,
    device: str,
    offload: bool,
    threads: int | None,
    batch: int | None,
) -> None:
    """Draw prompts onto one labelled sheet; with a patch, before and after it."""
    place = checkpoint_path(checkpoint)
    if strength is not None and patch is None:
        raise click.UsageError("--strength says how much of a patch is drawn with; name one with --patch.")
    if allow_other_base and patch is None:
        raise click.UsageError("--allow-other-base is about a patch; name one with --patch.")
    if output.suffix.lower() != ".png":
        raise click.UsageError(f"-o is {str(output)!r}; the sheet is a PNG file. Give it the ending .png.")
    check_outputs([output], [place, patch], overwrite=overwrite)
    import torch

    from surgery.diffusion import SampleKnobs
    from surgery.study import sample_sheet, write_sheet

    use_threads(threads)
    knobs = SampleKnobs(steps=steps, guidance=guidance)
    if batch is not None:
        knobs["batch"] = batch
    sheet = sample_sheet(
        place,
        prompts,
        patch=patch,
        strength=1.0 if strength is None else strength,
        allow_other_base=allow_other_base,
        seeds=range(seed, seed + count),
        device=chosen_device(device),
        offloaded=offload,
        dtype=getattr(torch, dtype or "float32"),
        **knobs,
    )
    write_sheet(sheet, output, overwrite=overwrite)
    print(output)
