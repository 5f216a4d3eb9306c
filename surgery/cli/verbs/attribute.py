"""The verb that tells where concepts live in a checkpoint: attribute."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from surgery.checkpoint.outputs import refuse_existing, refuse_inputs, refuse_unwritable
from surgery.cli.devices import chosen_device, use_threads
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    device_option,
    dtype_option,
    given_options,
    json_option,
    offload_option,
    output_option,
    overwrite_option,
    print_json,
    rule_option,
    threads_option,
)
from surgery.cli.program import Verb
from surgery.shelf import checkpoint_path


@click.command(cls=Verb)
@click.argument("base", type=CHECKPOINT)
@click.argument("concepts", nargs=-1, required=True, metavar="CONCEPT...")
@click.option("--template", "templates", multiple=True, help="A prompt with one {}; several take turns.")
@click.option(
    "--components",
    multiple=True,
    default=("ff",),
    show_default=True,
    help="Weights looked at: ff, ff_out, attn2_kv, attn, conv, linear, all, text_mlp, or a pattern.",
)
@click.option(
    "--objective",
    type=click.Choice(["base_gap", "denoise"]),
    default="base_gap",
    show_default=True,
    help="What is measured: the gap to an empty prompt, or how well pictures are denoised.",
)
@click.option(
    "--ratio",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=0.001,
    show_default=True,
    help="Share of the weights in the masks whose overlap is told.",
)
@click.option(
    "--left",
    type=click.FloatRange(min=-1, max=1, max_open=True),
    help="In the ratio's place masks that leave so much of each concept's direction; 0 is nothing.",
)
@rule_option("row", "What the masks take the ratio of:")
@click.option(
    "--weighting",
    type=click.Choice(["none", "even"]),
    default="none",
    show_default=True,
    help="Gradients as they are, or so that every noisy picture says as much.",
)
@click.option(
    "--trajectories",
    type=click.IntRange(1, 10_000),
    help="Paths (24 when left out), or drawn pictures (10), of each concept.",
)
@click.option("--quick", is_flag=True, help="16 paths of 4 steps for 24 of 8: scores take half the time.")
@click.option("--base-prompt", help="What prompts are compared with; an empty one when left out.")
@click.option("--image", "images", type=FILE, multiple=True, help="Own picture of the concept, for denoise.")
@click.option(
    "--polarity",
    type=click.Choice(["positive", "negative"]),
    default="positive",
    show_default=True,
    help="Masks of what makes the concepts, or of what stands in their way.",
)
@click.option(
    "--micro-batch", type=click.IntRange(min=1), help="Rows of a pass; what suits the U-Net when left out."
)
@click.option("--checkpointing", is_flag=True, help="Less memory: compute activations again on the way back.")
@click.option("--seed", type=click.IntRange(0, 2**53), default=0, show_default=True, help="Of all noise.")
@click.option("--no-controls", is_flag=True, help="Do not try the masks beside random ones.")
@click.option("--cache", type=FILE, help="Folder for parts of the work, to go on after a stop.")
@output_option("A new folder for attribution.json and map.png.")
@overwrite_option
@device_option
@offload_option
@dtype_option
@threads_option
@json_option
def attribute(
    base: str,
    concepts: tuple[str, ...],
    templates: tuple[str, ...],
    components: tuple[str, ...],
    objective: Literal["base_gap", "denoise"],
    ratio: float,
    left: float | None,
    rule: Literal["row", "tensor", "global"],
    weighting: Literal["none", "even"],
    trajectories: int | None,
    quick: bool,
    base_prompt: str | None,
    images: tuple[Path, ...],
    polarity: Literal["positive", "negative"],
    micro_batch: int | None,
    checkpointing: bool,
    seed: int,
    no_controls: bool,
    cache: Path | None,
    output: Path,
    overwrite: bool,
    device: str,
    offload: bool,
    dtype: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Tell which weights of BASE make each CONCEPT: a map of blocks and roles, and how far concepts overlap.

    Nothing is edited. Recipes with 'cad' take such weights away.
    """
    if images:
        _check_images(images, objective, concepts, trajectories)
    if left is not None:
        _check_left(objective, polarity)
    if quick and objective == "denoise":
        raise click.UsageError("--quick shortens paths, and the objective denoise has none.")
    if base_prompt is not None and objective == "denoise":
        raise click.UsageError("--base-prompt belongs to the objective base_gap; denoise compares nothing.")
    place = checkpoint_path(base)
    refuse_inputs(output, [place, cache])
    refuse_existing(output, overwrite)
    refuse_unwritable(output)
    import torch

    from surgery.methods.cad import (
        PRESETS,
        AttributionSettings,
        CadSettings,
        SelectionSettings,
        concepts_named,
        denoising,
    )
    from surgery.store import Store
    from surgery.study.attribution import attribute_concepts, refuse_foreign, write_attribution

    refuse_foreign(output)
    use_threads(threads)
    if objective == "base_gap":
        usual = PRESETS["quick"][0] if quick else AttributionSettings()
    else:
        usual = denoising(len(images))
    settings = CadSettings(
        attribution=replace(
            usual,
            trajectories=trajectories or usual.trajectories,
            pictures=trajectories or usual.pictures,
            base_prompt=base_prompt or "",
            weighting=weighting,
        ),
        selection=SelectionSettings(rule=rule, ratio=ratio, left=left),
        polarity=polarity,
        controls=not no_controls,
        micro_batch=micro_batch,
        checkpointing=checkpointing,
    )
    record = attribute_concepts(
        place,
        [replace(one, images=images) for one in concepts_named(concepts, templates, seed)],
        settings,
        components=components,
        device=chosen_device(device),
        offloaded=offload,
        dtype=getattr(torch, dtype or "float32"),
        store=None if cache is None else Store(cache),
    )
    write_attribution(record, output, overwrite=overwrite)
    if as_json:
        print_json(record.data)
        return
    for line in record.lines():
        print(line)
    print(output)


def _check_images(
    images: tuple[Path, ...], objective: str, concepts: tuple[str, ...], trajectories: int | None
) -> None:
    """Refuse pictures that nothing reads, and names of none.

    Raises:
        click.UsageError: saying what was expected.
    """
    if objective != "denoise" or len(concepts) > 1:
        raise click.UsageError("--image is for one concept and --objective denoise: pictures show one thing.")
    if trajectories is not None:
        raise click.UsageError("--trajectories is how many pictures are drawn; with --image none are.")
    for missing in (path for path in images if not path.is_file()):
        raise click.UsageError(
            f"--image: no file {missing}; expected a picture, such as a PNG. Is the path right?"
        )


def _check_left(objective: str, polarity: str) -> None:
    """Refuse what --left says nothing about.

    Raises:
        click.UsageError: naming the option that contradicts it.
    """
    if "--ratio" in given_options(click.get_current_context()):
        raise click.UsageError("--left takes the place of --ratio; give one of the two.")
    if objective == "denoise" or polarity == "negative":
        raise click.UsageError("--left is how far a concept is erased: of positive masks and base_gap.")
