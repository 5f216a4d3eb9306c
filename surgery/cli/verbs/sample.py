"""The verb that draws pictures: sample."""

from pathlib import Path
from typing import Any

import click

from surgery.checkpoint.outputs import check_outputs
from surgery.cli.devices import chosen_device, use_threads
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    RECIPE,
    batch_option,
    device_option,
    dtype_option,
    given_options,
    offload_option,
    other_base_option,
    output_option,
    overwrite_option,
    set_option,
    threads_option,
)
from surgery.cli.program import Verb
from surgery.recipe import GuideRecipe, load_guide
from surgery.shelf import checkpoint_path


@click.command(cls=Verb)
@click.argument("checkpoint", type=CHECKPOINT, required=False)
@click.option("--prompt", "prompts", multiple=True, help="What to draw; one row for each.")
@click.option(
    "--guide",
    type=RECIPE,
    help="Draw as this recipe says, beside plain guidance; checkpoint, prompts, seeds and steps are the "
    "recipe's unless given here.",
)
@set_option
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
@click.pass_context
def sample(
    context: click.Context,
    checkpoint: str | None,
    prompts: tuple[str, ...],
    guide: str | None,
    overrides: dict[str, str],
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
    """Draw prompts onto one labelled sheet; with a patch, before and after it; with a guide, beside it."""
    given = given_options(context)
    recipe = None if guide is None else load_guide(guide, overrides)
    _refuse(given, recipe)
    if output.suffix.lower() != ".png":
        raise click.UsageError(f"-o is {str(output)!r}; the sheet is a PNG file. Give it the ending .png.")
    place = checkpoint_path(checkpoint or "") if recipe is None or checkpoint else recipe.base_path()
    check_outputs([output], [place, patch, *_read_by(recipe)], overwrite=overwrite)
    import torch

    from surgery.study import guided_sheet, sample_sheet, write_sheet

    use_threads(threads)
    seeds = range(seed, seed + count)
    on: dict[str, Any] = {
        "device": chosen_device(device),
        "offloaded": offload,
        "dtype": getattr(torch, dtype or "float32"),
        "batch": batch or 16,
    }
    if recipe is not None:
        sheet = guided_sheet(
            recipe,
            checkpoint=place,
            prompts=prompts,
            seeds=seeds if given & {"--seed", "--count"} else (),
            steps=steps if "--steps" in given else None,
            **on,
        )
    else:
        sheet = sample_sheet(
            place,
            prompts,
            patch=patch,
            strength=1.0 if strength is None else strength,
            allow_other_base=allow_other_base,
            seeds=seeds,
            steps=steps,
            guidance=guidance,
            **on,
        )
    write_sheet(sheet, output, overwrite=overwrite)
    print(output)


def _refuse(given: set[str], recipe: GuideRecipe | None) -> None:
    """Options that contradict each other, or miss one."""
    if recipe is not None:
        wrong = sorted(given & {"--guidance", "--patch", "--strength", "--allow-other-base"})
        if wrong:
            raise click.UsageError(f"{', '.join(wrong)}: the guide's recipe says that. Leave it out.")
        return
    if not {"checkpoint", "--prompt"} <= given:
        raise click.UsageError("a CHECKPOINT and at least one --prompt are needed, or a recipe with --guide.")
    if "--set" in given:
        raise click.UsageError("--set changes a guide's recipe; name one with --guide.")
    if "--patch" not in given:
        if "--strength" in given:
            raise click.UsageError(
                "--strength says how much of a patch is drawn with; name one with --patch."
            )
        if "--allow-other-base" in given:
            raise click.UsageError("--allow-other-base is about a patch; name one with --patch.")


def _read_by(recipe: GuideRecipe | None) -> list[Path]:
    """The files that a recipe of guidance reads."""
    if recipe is None:
        return []
    gcfg, scaling = recipe.guide.gcfg, recipe.guide.scaling_concept
    names = list(scaling.images) if scaling else []
    if gcfg is not None:
        names += [one.patch for one in gcfg.concepts]
        names += [] if gcfg.controlnet is None else [gcfg.controlnet.path, gcfg.controlnet.image]
    found = [recipe.file(name) for name in names]
    return found if recipe.path is None else [recipe.path, *found]
