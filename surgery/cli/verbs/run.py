"""Verbs that carry out a recipe: plan, run."""

from pathlib import Path

import click

from surgery.cli.devices import chosen_device, use_threads
from surgery.cli.options import (
    FILE,
    base_option,
    batch_option,
    device_option,
    dtype_option,
    json_option,
    offload_option,
    output_option,
    overwrite_option,
    print_json,
    recipe_argument,
    set_option,
    threads_option,
)
from surgery.cli.program import Verb
from surgery.recipe import Recipe, load_recipe
from surgery.record import JSON
from surgery.shelf import checkpoint_path


@click.command(cls=Verb)
@recipe_argument
@base_option
@set_option
@json_option
def plan(recipe: str, base: str | None, overrides: dict[str, str], as_json: bool) -> None:
    """Show the steps of a recipe, what they change and what they cost.

    Only headers are read, no tensor.
    """
    from surgery.checkpoint import open_checkpoint
    from surgery.execute import plan_recipe

    loaded = load_recipe(recipe, overrides)
    planned = plan_recipe(loaded, open_checkpoint(_base(loaded, base)))
    if as_json:
        print_json(planned.as_json())
        return
    print(f"plan {planned.identity[:12]} on {planned.base} ({planned.architecture})")
    for step in planned.steps:
        concepts, batches = sum(step.work.batches), len(step.work.batches)
        print(f"{step.number}. {step.work.method}: {concepts} concepts in {batches} batches")
        print(f"   may change {step.parameters:,} weights of {len(step.work.sites)} tensors")
        for unit, count in step.work.cost.items():
            print(f"   {unit.replace('_', ' ')}: {count:,}")


@click.command(cls=Verb)
@recipe_argument
@output_option("Folder for the patch, run.json, sheet.png and what the recipe exports.")
@base_option
@set_option
@overwrite_option
@device_option
@offload_option
@dtype_option
@threads_option
@batch_option
@click.option("--cache", type=FILE, help="Folder of stored results; without it, one inside the output.")
@json_option
def run(
    recipe: str,
    output: Path,
    base: str | None,
    overrides: dict[str, str],
    overwrite: bool,
    device: str,
    offload: bool,
    dtype: str | None,
    threads: int | None,
    batch: int | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Run a recipe.

    A run that was stopped goes on when the same command is given again.
    """
    loaded = load_recipe(recipe, overrides if dtype is None else {**overrides, "dtype": dtype})
    place = _base(loaded, base)
    from surgery.evaluate import as_text, debias_text
    from surgery.study.run import run_recipe

    use_threads(threads)
    finished = run_recipe(
        loaded,
        output,
        base=place,
        device=chosen_device(device),
        offloaded=offload,
        batch=batch,
        cache=cache,
        overwrite=overwrite,
    )
    if as_json:
        record: JSON = finished.record
        print_json(record)
        return
    for line in finished.lines:
        print(line)
    if finished.effect is not None:
        print(as_text(finished.effect))
    if finished.balance is not None:
        print(debias_text(finished.balance))
    print(finished.folder.path)


def _base(recipe: Recipe, base: str | None) -> Path:
    return recipe.base_path() if base is None else checkpoint_path(base)
