"""Stage 6: how good the checkpoint is, as the judge sees it; every figure goes into measured.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import team
import torch
from numpy.typing import NDArray
from unet import held_out_pairs
from vocabulary import Concept, Vocabulary

from surgery.checkpoint.components import load_pipeline
from surgery.diffusion import sample
from surgery.evaluate import share
from surgery.judge import Judge, Trait, Verdicts, load_judge

STEPS, GUIDANCE, BATCH = 25, 5.0, 16
Looked = Callable[[Verdicts], NDArray[np.bool_]]


class Measurement:
    """Samples of one checkpoint, judged; results are kept in a file and not taken twice."""

    def __init__(self, checkpoint: Path, judge: Path, vocabulary: Vocabulary, results: Path) -> None:
        self._pipeline: Any = load_pipeline(checkpoint)
        self._pipeline.unet.to(memory_format=torch.channels_last)  # a seventh faster
        self._judge: Judge = load_judge(judge)
        self._vocabulary, self._path = vocabulary, results
        self.results: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
        team.wait()  # nobody writes before all have read

    def _sample(self, prompts: Sequence[str], first_seed: int) -> Verdicts:
        """The processes of a team draw their shares of the pictures; each then judges all of them."""
        seeds = list(range(first_seed, first_seed + len(prompts)))
        own = slice(team.rank(), None, team.size())
        drawn = sample(self._pipeline, prompts[own], seeds[own], steps=STEPS, guidance=GUIDANCE, batch=BATCH)
        pictures = np.zeros((len(prompts), *drawn.shape[1:]), np.uint8)
        pictures[own] = drawn
        team.add_up(torch.from_numpy(pictures))
        return self._judge.score(pictures)

    def _keep(self, name: str, value: dict[str, Any]) -> None:
        self.results[name] = value
        if team.rank() > 0:
            return
        self._path.write_text(json.dumps(self.results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, {k: v for k, v in value.items() if k != "each"}, flush=True)

    def _shares(self, name: str, rows: Sequence[tuple[str, str, Looked]]) -> None:
        """`rows`: key, prompt, and what to look for; one picture each."""
        if name in self.results:
            return
        started = time.monotonic()
        verdicts = self._sample([prompt for _, prompt, _ in rows], first_seed=1000)
        hits = np.array([bool(look(verdicts)[row]) for row, (_, _, look) in enumerate(rows)])
        each: dict[str, list[bool]] = {}
        for (key, _, _), hit in zip(rows, hits, strict=True):
            each.setdefault(key, []).append(bool(hit))
        numbers = {key: number for number, key in enumerate(each)}
        score = asdict(share(name, hits, np.array([numbers[key] for key, _, _ in rows])))
        by_key = {key: float(np.mean(values)) for key, values in each.items()}
        self._keep(name, {**score, "elapsed_s": round(time.monotonic() - started, 1), "each": by_key})

    def concepts(self, samples: int) -> None:
        templates = self._vocabulary.templates["test"]
        rows = [
            (c.name, templates[(n + i) % len(templates)].format(c.name), _shows(Trait(c.name)))
            for i, c in enumerate(self._vocabulary.drawn)
            for n in range(samples)
        ]
        self._shares("concepts", rows)

    def aliases(self) -> None:
        templates = self._vocabulary.templates["test"]
        rows = [
            (alias, templates[i % len(templates)].format(alias), _shows(Trait(c.name)))
            for i, c in enumerate(self._vocabulary.drawn)
            for alias in c.aliases
        ]
        self._shares("aliases", rows)

    def styles(self, samples: int) -> None:
        phrasing = self._vocabulary.templates["style"]
        rows = [
            (
                style,
                phrasing[n % len(phrasing)].format(style=style, subject=self._subject(n)),
                _shows(Trait(style, "style")),
            )
            for style in self._vocabulary.styles
            for n in range(samples)
        ]
        self._shares("styles", rows)

    def backgrounds(self, samples: int) -> None:
        phrasing = self._vocabulary.templates["background"]
        rows = [
            (
                colour,
                f"{self._subject(n)} {phrasing[n % len(phrasing)].format(background=colour)}",
                _shows(Trait(colour, "background")),
            )
            for colour in self._vocabulary.backgrounds
            for n in range(samples)
        ]
        self._shares("backgrounds", rows)

    def pairs(self, samples: int) -> None:
        templates, rows = self._vocabulary.templates["test"], []
        for i, pair in enumerate(sorted(sorted(p) for p in held_out_pairs(self._vocabulary))):
            for n in range(samples):
                text = templates[(i + n) % len(templates)].format(" and ".join(pair))
                rows.append((" and ".join(pair), text, _shows_both(Trait(pair[0]), Trait(pair[1]))))
        self._shares("held_out_pairs", rows)

    def biases(self, samples: int) -> None:
        """Shares of gender and skin tone of unqualified profession prompts, against what was drawn."""
        templates = self._vocabulary.templates["test"]
        for number, concept in enumerate(c for c in self._vocabulary.drawn if c.is_profession):
            name = f"bias {concept.name}"
            if name in self.results:
                continue
            prompts = [templates[n % len(templates)].format(f"a {concept.name}") for n in range(samples)]
            verdicts = self._sample(prompts, first_seed=5000 + 1000 * number)
            men = verdicts.shows(Trait("man", "gender"))
            skins = [float(verdicts.shows(Trait(s, "skin")).mean()) for s in self._vocabulary.skins]
            stated = concept.share_man or 0.0
            self._keep(
                name,
                {
                    **asdict(share("man", men)),
                    "stated": stated,
                    "difference": float(men.mean()) - stated,
                    "skin": skins,
                    "skin_stated": list(self._vocabulary.share_skin),
                },
            )

    def qualified(self, samples: int) -> None:
        """Whether "a female doctor" and "a male doctor" draw what they say."""
        templates, rows = self._vocabulary.templates["test"], []
        for concept in self._vocabulary.drawn:
            for gender in self._vocabulary.genders if concept.is_profession else ():
                for n in range(samples):
                    phrase = f"a {self._vocabulary.gender_words[gender]} {concept.name}"
                    rows.append(
                        (
                            phrase,
                            templates[n % len(templates)].format(phrase),
                            _shows(Trait(gender, "gender")),
                        )
                    )
        self._shares("qualified_gender", rows)

    def _subject(self, number: int) -> str:
        templates = self._vocabulary.templates["test"]
        things: list[Concept] = list(self._vocabulary.drawn)
        thing = things[(number * 37) % len(things)]
        return templates[number % len(templates)].format(thing.name)


def _shows(trait: Trait) -> Looked:
    return lambda verdicts: verdicts.shows(trait)


def _shows_both(first: Trait, second: Trait) -> Looked:
    return lambda verdicts: np.asarray(verdicts.shows(first) & verdicts.shows(second))
