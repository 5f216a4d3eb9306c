"""The verb that measures an edit: evaluate."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgery.checkpoint.texts import read_json
from surgery.cli.devices import chosen_device, use_threads
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    RECIPE,
    Finite,
    batch_option,
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
from surgery.errors import JudgeError
from surgery.recipe import load_recipe
from surgery.shelf import checkpoint_path

if TYPE_CHECKING:
    from surgery.judge import Questions


@click.command(cls=Verb)
@click.argument("base", type=CHECKPOINT)
@click.argument("edited", type=CHECKPOINT)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    help="What to measure, any number of times: update, erase, debias, style, quality, neighbours, "
    "composition, conditions; when left out update, and debias of debiased phrases.",
)
@output_option("Folder for evaluation.json and evaluation.png.")
@click.option("--recipe", type=RECIPE, help="Which edits were made, where EDITED does not remember.")
@click.option("--judge", default="pocket-judge", show_default=True, help="Who looks: a name or a folder.")
@click.option(
    "--names",
    type=FILE,
    help="Names that a CLIP judge chooses from, one a line; or JSON with lists: concept, gender, style, …",
)
@click.option("--labelled", type=FILE, help="Pictures in one folder a name, to measure the judge on first.")
@click.option("--words", type=FILE, help="Names, aliases and templates; those beside BASE when left out.")
@click.option("--drawings", type=FILE, help="Pictures of how it should look, for the suite quality.")
@click.option("--samples", type=click.IntRange(min=1), default=2, show_default=True, help="For each prompt.")
@click.option(
    "--group-samples",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="For each prompt of the suite debias.",
)
@click.option("--held-out", type=click.IntRange(min=1), help="Unedited names looked at; all when left out.")
@click.option("--steps", type=click.IntRange(min=1), default=25, show_default=True, help="Of the sampler.")
@click.option("--guidance", type=Finite(0), default=5.0, show_default=True, help="Guidance scale.")
@click.option("--seed", type=click.IntRange(0, 2**53), default=0, show_default=True, help="Of all pictures.")
@click.option(
    "--probes", is_flag=True, help="Probe predictions too: drift, energy, alignment, leaks; with probes.png."
)
@click.option(
    "--resurrection", is_flag=True, help="Try to draw each edited concept back along inverted paths."
)
@click.option("--phrases", is_flag=True, help="List every phrase, not only the sums.")
@click.option("--cache", type=FILE, help="Folder of stored pictures, which evaluations share.")
@overwrite_option
@device_option
@offload_option
@dtype_option
@threads_option
@batch_option
@json_option
def evaluate(
    base: str,
    edited: str,
    suites: tuple[str, ...],
    output: Path,
    recipe: str | None,
    judge: str,
    names: Path | None,
    labelled: Path | None,
    words: Path | None,
    drawings: Path | None,
    samples: int,
    group_samples: int,
    held_out: int | None,
    steps: int,
    guidance: float,
    seed: int,
    probes: bool,
    resurrection: bool,
    phrases: bool,
    cache: Path | None,
    overwrite: bool,
    device: str,
    offload: bool,
    dtype: str | None,
    threads: int | None,
    batch: int | None,
    as_json: bool,
) -> None:
    """Measure what an edit did: EDITED is a patch or a checkpoint, held against BASE seed by seed.

    An evaluation that was stopped goes on when the same command is given again.
    """
    places = checkpoint_path(base), checkpoint_path(edited)
    made = None if recipe is None else load_recipe(recipe)
    import torch

    from surgery.evaluate import debias_text, evaluation_text, probes_text
    from surgery.judge import load_judge
    from surgery.study.evaluated import RECORD, Wish, refuse_evaluation
    from surgery.study.evaluation import evaluate_edit
    from surgery.study.words import read_words

    use_threads(threads)
    place = chosen_device(device)
    asked = None if names is None else _questions(names)
    wish = Wish(
        suites=suites,
        samples=samples,
        group_samples=group_samples,
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch=batch,
        held_out=held_out,
        drawings=drawings,
        probes=probes,
        resurrection=resurrection,
    )
    refuse_evaluation(output, wish, cache=cache, overwrite=overwrite)
    found = evaluate_edit(
        *places,
        output,
        wish,
        load_judge(judge, place, questions=asked, labelled=labelled),
        recipe=made,
        words=None if words is None else read_words(places[0], words),
        device=place,
        dtype=getattr(torch, dtype or "float32"),
        offloaded=offload,
        cache=cache,
        overwrite=overwrite,
    )
    if as_json:
        print_json(json.loads((output / RECORD).read_bytes()))
        return
    if found.balance is not None:
        print(debias_text(found.balance) + "\n")
    print(evaluation_text(found.headlines, found.sections, phrases))
    if found.probes:
        print("\n" + probes_text(found.probes))
    for one in found.resurrections:
        print(one.line())
    for finding in found.findings:
        print(f"{finding.subject}: {finding.message}")
    print(output)


def _questions(path: Path) -> "Questions":
    """The names in a file: concepts line by line, or those of several axes as JSON."""
    from surgery.judge import AXES, Questions

    if path.suffix != ".json":
        return Questions(concepts=_lines(path))
    try:
        told = read_json(path)
    except ValueError as error:
        raise JudgeError(f"{path} {error}; expected JSON with lists of names by axis.") from error
    match told:
        case dict() if all(
            axis in AXES and isinstance(names, list) and all(isinstance(name, str) for name in names)
            for axis, names in told.items()
        ):
            others = {axis: tuple(names) for axis, names in told.items() if axis != "concept"}
            return Questions(concepts=tuple(told.get("concept", ())), others=others)
    raise JudgeError(f"{path} is no object of lists of names under {', '.join(AXES)}; expected one.")


def _lines(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(f"{path} cannot be read ({error}); expected one name a line in UTF-8.") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())
