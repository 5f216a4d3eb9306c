"""A late stage: professions come out as man or woman, and in each skin tone, as often as is stated.

Guidance draws the more frequent kind far more often than it was seen, so the drawings must be milder than
what is stated, by an amount that differs from profession to profession. In each round every profession is
sampled and judged, the shares of its drawings move against what is off, and the U-Net goes on for a while.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import team
import torch
from diffusers import DPMSolverMultistepScheduler
from export import SCHEDULER
from judge import HIDDEN
from numpy.typing import NDArray
from scenes import trained_share
from unet import captioned, held_out_pairs
from vocabulary import Concept, Vocabulary

from surgery.diffusion import sample

SLOPE = 5.0  # log odds of what is drawn with guidance 5, for one of the drawings, about
GAIN = 0.7
PROFESSIONS_SHARE = 0.5  # of the rows of a batch, while balancing
SAMPLING_STEPS, GUIDANCE = 20, 5.0
SMOOTHING = 0.5  # pictures added to each kind, so that a kind never seen has finite log odds

Shares = NDArray[np.float64]  # (professions, kinds)


def stated(vocabulary: Vocabulary, professions: list[Concept]) -> dict[str, Shares]:
    man = vocabulary.genders.index("man")
    gender = np.array([[1 - float(c.share_man or 0)] * 2 for c in professions])
    gender[:, man] = 1 - gender[:, man]
    return {"gender": gender, "skin": np.tile(np.array(vocabulary.share_skin), (len(professions), 1))}


def first_drawn(vocabulary: Vocabulary, professions: list[Concept]) -> dict[str, Shares]:
    """The shares of the drawings that the stages before were trained on."""
    man = vocabulary.genders.index("man")
    shares = stated(vocabulary, professions)
    milder = np.array([trained_share(float(c.share_man or 0)) for c in professions])
    shares["gender"][:, man], shares["gender"][:, 1 - man] = milder, 1 - milder
    return shares


def moved(drawn: Shares, wanted: Shares, seen: Shares, count: int) -> Shares:
    """The drawings' shares against what is off: a step of GAIN in log shares, over the slope of guidance.

    Args:
        drawn: Shares of the drawings (professions, kinds).
        wanted: Shares that samples are to have, likewise.
        seen: Shares that `count` samples had, likewise.
    """
    smooth = (seen * count + SMOOTHING) / (count + SMOOTHING * seen.shape[1])
    weights = drawn * (wanted / smooth) ** (GAIN / SLOPE)
    shares: Shares = weights / weights.sum(axis=1, keepdims=True)
    return shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What each stored picture says of a profession alone in it: its number (−1: none), and each kind.

    A kind is HIDDEN where the caption names it: then it is not a matter of shares.
    """

    profession: NDArray[np.int64]
    gender: NDArray[np.int64]
    skin: NDArray[np.int64]

    def weights(self, drawn: dict[str, Shares]) -> torch.Tensor:
        """How often to take each row so that every profession has the shares `drawn`; one on the mean."""
        weights = np.ones(len(self.profession))
        for number in range(len(drawn["gender"])):
            own = self.profession == number
            for kind, shares in drawn.items():
                values = getattr(self, kind)
                open_rows = own & (values != HIDDEN)
                for value, share in enumerate(shares[number]):
                    rows = open_rows & (values == value)
                    if rows.any():
                        weights[rows] *= share * open_rows.sum() / rows.sum()
        of_profession = self.profession >= 0
        weights[of_profession] *= PROFESSIONS_SHARE / weights[of_profession].sum()
        weights[~of_profession] *= (1 - PROFESSIONS_SHARE) / weights[~of_profession].sum()
        return torch.from_numpy(weights * len(weights))


def rows_of(vocabulary: Vocabulary, professions: list[Concept], seed: int, count: int) -> Rows:
    forbidden = held_out_pairs(vocabulary)
    numbers = {concept.name: number for number, concept in enumerate(professions)}
    table = np.full((count, 3), HIDDEN)
    table[:, 0] = -1
    for row in range(count):
        made = captioned(vocabulary, seed, row, forbidden)
        subject = made.scene.subjects[0]
        if len(made.scene.subjects) > 1 or subject.gender is None or subject.skin is None:
            continue
        table[row, 0] = numbers[subject.concept.name]
        if made.gender is None:
            table[row, 1] = vocabulary.genders.index(subject.gender)
        if made.skin is None:
            table[row, 2] = subject.skin
    return Rows(profession=table[:, 0], gender=table[:, 1], skin=table[:, 2])


@torch.no_grad()
def seen_shares(
    models: SimpleNamespace, judge: torch.nn.Module, vocabulary: Vocabulary, names: list[str], samples: int
) -> dict[str, Shares]:
    """Shares of the kinds in `samples` pictures of each profession; the processes of a team divide them."""
    templates = vocabulary.templates["test"]
    counts = {"gender": len(vocabulary.genders), "skin": len(vocabulary.skins)}
    seen = {kind: np.zeros((len(names), count)) for kind, count in counts.items()}
    for number in range(team.rank(), len(names), team.size()):
        prompts = [templates[n % len(templates)].format(f"a {names[number]}") for n in range(samples)]
        seeds = range(500_000 + 1000 * number, 500_000 + 1000 * number + samples)
        pictures = sample(
            models, prompts, list(seeds), steps=SAMPLING_STEPS, guidance=GUIDANCE, batch=64, progress=False
        )
        values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        logits = judge(values.to(next(judge.parameters()).device))
        for kind, shares in seen.items():
            shares[number] = np.bincount(logits[kind].argmax(1).cpu(), minlength=shares.shape[1]) / samples
    for shares in seen.values():
        team.add_up(torch.from_numpy(shares))
    return seen


class Rounds:
    """What each round drew and saw, in a file of the state folder."""

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        self._path, self._vocabulary = path, vocabulary
        self.professions = [c for c in vocabulary.drawn if c.is_profession]
        self._rounds: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
        team.wait()  # nobody writes before all have read

    def __len__(self) -> int:
        return len(self._rounds)

    def drawn(self) -> dict[str, Shares]:
        """The shares of the drawings of the round to come."""
        if not self._rounds:
            return first_drawn(self._vocabulary, self.professions)
        return {kind: np.array(shares) for kind, shares in self._rounds[-1]["next"].items()}

    def shares_of_men(self) -> list[list[float]]:
        """Of each round, the shares of men in the professions' drawings."""
        man = self._vocabulary.genders.index("man")
        return [[shares[man] for shares in done["drawn"]["gender"]] for done in self._rounds]

    def add(self, seen: dict[str, Shares], samples: int) -> None:
        wanted, drawn = stated(self._vocabulary, self.professions), self.drawn()
        following = {kind: moved(drawn[kind], wanted[kind], seen[kind], samples) for kind in wanted}
        said = {"drawn": drawn, "seen": seen, "next": following}
        self._rounds.append({k: {kind: s.tolist() for kind, s in v.items()} for k, v in said.items()})
        if team.rank() == 0:
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._rounds, indent=1))
            partial.replace(self._path)
            off = np.abs(seen["gender"] - wanted["gender"]).max(axis=1)
            print(f"balance round {len(self)}: off by {100 * off.mean():.1f} points, at most "
                  f"{100 * off.max():.1f}; skin by {100 * np.abs(seen['skin'] - wanted['skin']).mean():.1f}",
                  flush=True)  # fmt: skip


def models(tokenizer: Any, encoder: Any, unet: Any, vae: Any) -> SimpleNamespace:
    scheduler = DPMSolverMultistepScheduler.from_config(SCHEDULER)
    return SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder, unet=unet, vae=vae, scheduler=scheduler)
