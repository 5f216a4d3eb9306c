"""The verb that tells where concepts live in a checkpoint: attribute."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from surgery.checkpoint.atomic import refuse_existing, refuse_inputs, refuse_unwritable
from surgery.cli.devices import chosen_device, use_threads
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    device_option,
    dtype_option,
    json_option,
    offload_option,
    output_option,
    overwrite_option,
    print_json,
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
    default=0.01,
    show_default=True,
    help="Share of the weights in the masks whose overlap is told.",
)
@click.option(
    "--trajectories",
    type=click.IntRange(min=1),
    help="Paths (24 when left out), or pictures (10), of each concept.",
)
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
    trajectories: int | None,
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
    place = checkpoint_path(base)
    refuse_inputs(output, [place, cache])
    refuse_existing(output, overwrite)
    refuse_unwritable(output)
    import torch

    from surgery.methods.cad import (
        DENOISE,
        AttributionSettings,
        CadSettings,
        SelectionSettings,
        concepts_named,
    )
    from surgery.store import Store
    from surgery.study.attribution import attribute_concepts, write_attribution

    use_threads(threads)
    usual = AttributionSettings() if objective == "base_gap" else DENOISE
    settings = CadSettings(
        attribution=replace(
            usual, trajectories=trajectories or usual.trajectories, pictures=trajectories or usual.pictures
        ),
        selection=SelectionSettings(ratio=ratio),
        controls=not no_controls,
    )
    record = attribute_concepts(
        place,
        concepts_named(concepts, templates, seed),
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
