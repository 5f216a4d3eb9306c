"""A pool of judged pictures of the unedited checkpoint: each phrase, each test template, several seeds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from surgery.anatomy import settings_text
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import at_once, in_order
from surgery.evaluate import Sampling
from surgery.evaluate.pictures import Painter
from surgery.judge import Judge, Trait, load_judge
from surgery.progress import bar
from surgery.shelf import checkpoint_path
from surgery.store import Store
from surgery.study.words import read_words

BATCH: Final = 18
EACH: Final = 6  # pictures of each prompt: two disjoint sets of up to three


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Whether each picture shows what its prompt names.

    Attributes:
        hits: By phrase, template and seed.
        phrases: The concepts that were asked for.
    """

    hits: np.ndarray[Any, Any]
    phrases: tuple[str, ...]

    @property
    def pictures(self) -> int:
        return int(self.hits.size)


def draw_pool(options: argparse.Namespace) -> Pool:
    """At least ``options.pictures`` pictures, phrase by phrase; what the store has is not drawn again."""
    base = checkpoint_path(options.base)
    models, words, judge = load_pipeline(base), read_words(base), load_judge("pocket-judge")
    templates = words.templates("test")
    known = [name for name in words.concepts if judge.labels.fault(Trait(name)) is None]
    count = min(len(known), -(-options.pictures // (len(templates) * EACH)))
    phrases = [known[(2 * place + 1) * len(known) // (2 * count)] for place in range(count)]
    sampling = Sampling(
        templates=templates, samples=EACH, seed=options.seed, steps=options.steps, batch=BATCH
    )
    parts = (models.text_encoder, models.unet, models.vae, models.scheduler)
    tensors = open_checkpoint(base).fingerprint().tensors
    weights = Store.key(
        {
            "base": {name: digest.bytes for name, digest in tensors.items()},
            "settings": [settings_text(part) for part in parts],
            "padding": models.tokenizer.pad_token_id,
        }
    )
    painter = Painter(models=models, sampling=sampling, store=Store(options.store), weights=weights)
    return Pool(hits=_judged(painter, phrases, judge), phrases=tuple(phrases))


def _judged(painter: Painter, phrases: Sequence[str], judge: Judge) -> np.ndarray[Any, Any]:
    """Hits by phrase, template and seed; the cost is said after the first phrases."""
    templates = painter.sampling.templates
    of_phrase = len(templates) * painter.sampling.samples
    print(f"pool: {len(phrases)} phrases × {of_phrase} pictures = {len(phrases) * of_phrase}", flush=True)
    workers = at_once(painter.models.unet, len(phrases))
    rows, started = [], time.monotonic()
    with bar(len(phrases), "pool", "phrase") as shown:
        drawn = in_order(lambda phrase: painter.pictures(phrase, templates), phrases, workers)
        for phrase, pictures in zip(phrases, drawn, strict=True):
            rows.append(judge.score(pictures).shows(Trait(phrase)).reshape(len(templates), -1))
            shown.update(1)
            if len(rows) == 2 * workers:
                left = (time.monotonic() - started) / len(rows) * (len(phrases) - len(rows))
                print(f"about {left / 60:.0f} min more, less for what the store has", flush=True)
    return np.stack(rows)
