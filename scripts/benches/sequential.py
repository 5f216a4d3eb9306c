"""Edits made one after the other: what is left of the first ones, with and without their keys protected.

Each round edits the checkpoint that the round before left, as a person does who cannot start again. What the
first round did is looked at again at the end: how far the edited streams have moved from where it put them,
in lengths of what it moved them, and how many pictures of the edited concepts show their destinations.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from massive import draw_edits

from surgery.anatomy import text_stack
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import sample
from surgery.judge import Trait, load_judge
from surgery.methods.emcid.concepts import OBJECT_TEMPLATES, prepare
from surgery.methods.emcid.nouns import ConceptEdit
from surgery.methods.emcid.walk import Stretch, Walk
from surgery.recipe import parse_recipe
from surgery.shelf import checkpoint_path
from surgery.study import run_recipe
from surgery.study.words import read_words

Pairs = Sequence[tuple[str, str]]


def sequential(options: argparse.Namespace) -> None:
    """Prints one row after the first round, and one for each way after the last."""
    base = checkpoint_path(options.base)
    words = read_words(base)
    edits = draw_edits(words, options.concepts * options.rounds)
    rounds = [edits[start :: options.rounds] for start in range(options.rounds)]
    print(f"{'after':24}{'offset disturbed':>18}{'destination shown':>20}{'held-out shown':>16}")
    first = made(options, base, rounds[:1], protect=False)
    held_out = [name for name in words.concepts if name not in {one for pair in edits for one in pair}]
    looked_at = random.Random(0).sample(held_out, min(options.held_out, len(held_out)))
    wanted = moved(base, first, rounds[0])
    for name, place in (
        ("the first round", first),
        ("all, unprotected", made(options, base, rounds, protect=False)),
        ("all, protected", made(options, base, rounds, protect=True)),
    ):
        reached = moved(base, place, rounds[0])
        disturbed = ((reached - wanted).norm(dim=1) / wanted.norm(dim=1)).mean()
        shown = pictures(place, rounds[0], words.templates("test"), options)
        others = pictures(place, [(name, name) for name in looked_at], words.templates("test"), options)
        print(f"{name:24}{float(disturbed):18.3f}{shown:20.3f}{others:16.3f}", flush=True)


def made(options: argparse.Namespace, base: Path, rounds: Sequence[Pairs], *, protect: bool) -> Path:
    """The checkpoint after all rounds; those that lie there from another try are used again."""
    place = base
    before: Path | None = None
    for number, pairs in enumerate(rounds):
        way = "protected" if protect and number else "plain"
        out = (
            options.scratch / f"{way}-{options.concepts}-{options.captions}-{number + 1}-of-{options.rounds}"
        )
        if not (out / "run.json").exists():
            after = [before] if protect and before is not None else []
            run_recipe(recipe_of(place, pairs, after, options.captions), out)
        place, before = out / "checkpoint", out / "patch.safetensors"
    return place


def recipe_of(base: Path, pairs: Pairs, after: Sequence[Path], captions: int) -> Any:
    concepts = "\n".join(f"        - {{source: {one}, destination: {other}}}" for one, other in pairs)
    return parse_recipe(
        f"""surgery: 1
base: {base.resolve()}
after: [{", ".join(str(path.resolve()) for path in after)}]
edits:
  - emcid:
      preset: pocket
      offsets: {{mode: text}}
      corpus: {{count: {captions}}}
      concepts:
{concepts}
sample: {{prompts: [a photo of a cat], seeds: 1, steps: 1}}
export: [checkpoint]
"""
    )


@torch.no_grad()
def moved(base: Path, edited: Path, pairs: Pairs) -> torch.Tensor:
    """How far each source's stream behind the last edited block is from the unedited checkpoint's."""
    streams = []
    for place in (base, edited):
        pipeline: Any = load_pipeline(place)
        asked = [
            ConceptEdit(source=one, destination=other, templates=OBJECT_TEMPLATES) for one, other in pairs
        ]
        concepts, _ = prepare(asked, pipeline.tokenizer)
        spans = [span for concept in concepts for span in concept.spans]
        stretches = [Stretch(ids=span.ids[: span.end], start=span.last, end=span.end) for span in spans]
        walk = Walk(text_stack(pipeline.text_encoder), stretches)
        streams.append(walk.stream_behind(6, {}))  # the preset's last edited block
    return streams[1] - streams[0]


def pictures(place: Path, pairs: Pairs, templates: Sequence[str], options: argparse.Namespace) -> float:
    """The share of pictures of each first name that show the second."""
    judge, pipeline = load_judge("pocket-judge"), load_pipeline(place)
    prompts = [template.replace("{}", one) for one, _ in pairs for template in templates]
    drawn = sample(pipeline, prompts, list(range(len(prompts))), steps=options.steps)
    verdicts, count = judge.score(drawn), len(templates)
    shows = [
        verdicts.shows(Trait(other))[number * count : (number + 1) * count]
        for number, (_, other) in enumerate(pairs)
    ]
    return float(sum(part.sum() for part in shows)) / len(prompts)
