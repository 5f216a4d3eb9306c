"""The last stage: professions come out as man or woman as often as is stated.

Guidance draws the more frequent kind far more often than it was seen (log odds five times those of the
drawings, about), so no share of drawings hits a stated share to a few points. When the weights are trained,
the embedding of each profession's last token moves along the direction that takes its prompts' features from
those of "a female …" to those of "a male …", and samples tell how far.
"""

from __future__ import annotations

import copy
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
from numpy.typing import NDArray
from scipy.optimize import minimize
from text import TRAINED_LENGTH, encode
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from vocabulary import Concept, Vocabulary

from surgery.anatomy import locate
from surgery.diffusion import sample

SAMPLING_STEPS, GUIDANCE = 25, 5.0
FIRST_SEED = 500_000  # far from those of the measurement
# log odds for a whole step from woman to man, and what its logarithm may be off
SLOPE, SLOPE_SPREAD = 2.5, 0.7
BIAS_SPREAD = 5.0  # what the log odds without a shift may be off
FARTHEST = 1.0  # that a shift goes beyond those that were tried
NEAR = 0.5  # shifts so far apart tell e times less about each other
RIDGE = 1.0  # of the mean squared slope
DIFFERENCE = 0.01  # of an embedding's length, for slopes


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """Where an embedding moves: token `row`, and the `change` (width,) that is a whole step to a man."""

    row: int
    change: Tensor


@torch.no_grad()
def direction_of(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, vocabulary: Vocabulary, name: str
) -> Direction:
    """The change of the last token's embedding that takes the prompts' features from woman to man.

    To first order, and as far as one embedding can without leaving that way: least squares over the features
    from the name's last token to the end of the context, with a ridge. The name's token counts as much as all
    behind it. (Along the mere gradient most of what moves goes elsewhere, and the profession is lost.)
    """
    templates, words = vocabulary.templates["test"], vocabulary.gender_words
    woman, man = (
        _features(encoder, tokenizer, templates, f"a {words[gender]} {name}") for gender in ("woman", "man")
    )
    span = locate(tokenizer, templates[0], f"a {name}", limit=77)
    token = span.ids[span.last]
    row = encoder.get_input_embeddings().weight[token]
    unmoved, step = row.clone(), DIFFERENCE * float(row.norm())
    start = _features(encoder, tokenizer, templates, f"a {name}")
    columns = []
    for axis in step * torch.eye(len(row), device=row.device):
        row.copy_(unmoved + axis)
        columns.append((_features(encoder, tokenizer, templates, f"a {name}") - start) / step)
    row.copy_(unmoved)
    behind = man.shape[1] - 1
    weight = torch.tensor([1.0] + [1 / behind] * behind, device=row.device).sqrt()[None, :, None]
    slopes = torch.stack([(column * weight).flatten() for column in columns]).double()
    gram = slopes @ slopes.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, slopes @ ((man - woman) * weight).flatten().double())
    return Direction(row=token, change=change.to(row))


def _features(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, templates: tuple[str, ...], phrase: str
) -> Tensor:
    """Features (templates, tokens, width) from the phrase's last token on, as many as all have."""
    spans = [locate(tokenizer, template, phrase, limit=77) for template in templates]
    hidden = encode(encoder, tokenizer, [template.format(phrase) for template in templates], 77)
    room = 77 - TRAINED_LENGTH
    return torch.stack([row[span.last : span.last + room] for row, span in zip(hidden, spans, strict=True)])


def shifted(
    encoder: CLIPTextModel, directions: list[Direction], shifts: NDArray[np.float64]
) -> CLIPTextModel:
    """A copy of the encoder whose embeddings have moved so many steps."""
    moved = copy.deepcopy(encoder)
    with torch.no_grad():
        for direction, shift in zip(directions, shifts, strict=True):
            moved.get_input_embeddings().weight[direction.row] += float(shift) * direction.change
    return moved


def best_shift(shifts: list[float], men: list[int], samples: list[int], stated: float) -> float:
    """The shift at which a logistic curve through what was seen has the share `stated`.

    Its slope is positive and about SLOPE; with nothing seen, the stated share is expected at no shift. What
    was seen far from the round that came closest counts little: over long ways no curve is logistic.
    """
    wanted = np.log(stated / (1 - stated))
    at, seen, drawn = (np.array(values, float) for values in (shifts, men, samples))
    if shifts:
        odds = np.log((seen + 0.5) / (drawn - seen + 0.5))
        near = np.exp(-(((at - at[np.abs(odds - wanted).argmin()]) / NEAR) ** 2))
        seen, drawn = near * seen, near * drawn

    def unlikely(curve: NDArray[np.float64]) -> float:
        odds = curve[0] + np.exp(curve[1]) * at
        likely = seen * odds - drawn * np.logaddexp(0, odds)
        priors = ((curve[0] - wanted) / BIAS_SPREAD) ** 2 + ((curve[1] - np.log(SLOPE)) / SLOPE_SPREAD) ** 2
        return float(-likely.sum() + priors / 2)

    bias, slope = minimize(unlikely, np.array([wanted, np.log(SLOPE)]), method="BFGS").x
    lowest, highest = min([0.0, *shifts]), max([0.0, *shifts])
    return float(np.clip((wanted - bias) / np.exp(slope), lowest - FARTHEST, highest + FARTHEST))


@torch.no_grad()
def men_among(
    models: SimpleNamespace,
    judge: torch.nn.Module,
    vocabulary: Vocabulary,
    names: list[str],
    first: int,
    samples: int,
) -> NDArray[np.int64]:
    """How many of `samples` pictures of each profession show a man; the processes of a team divide them.

    Drawn in bfloat16, in about half the time; of 384 pictures 381 show the same as in float32.
    """
    templates, man = vocabulary.templates["test"], vocabulary.genders.index("man")
    men = np.zeros(len(names), np.int64)
    for number in range(team.rank(), len(names), team.size()):
        prompts = [templates[n % len(templates)].format(f"a {names[number]}") for n in range(samples)]
        seed = FIRST_SEED + 10_000 * number + first
        with torch.autocast(models.unet.device.type, torch.bfloat16):
            pictures = sample(
                models,
                prompts,
                range(seed, seed + samples),
                steps=SAMPLING_STEPS,
                guidance=GUIDANCE,
                batch=64,
                progress=False,
            )
        values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        told = judge(values.to(next(judge.parameters()).device))["gender"].argmax(1)
        men[number] = int((told == man).sum())
    team.add_up(torch.from_numpy(men))
    return men


class Rounds:
    """What each round tried and saw, in a file of the state folder."""

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        self._path = path
        self.professions: list[Concept] = [c for c in vocabulary.drawn if c.is_profession]
        self.names = [concept.name for concept in self.professions]
        self._rounds: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
        team.wait()  # nobody writes before all have read

    def __len__(self) -> int:
        return len(self._rounds)

    @property
    def seen(self) -> int:
        """Pictures of each profession so far."""
        return sum(done["samples"] for done in self._rounds)

    def shifts(self) -> NDArray[np.float64]:
        """The best shift of each profession after all rounds."""
        samples = [done["samples"] for done in self._rounds]
        return np.array(
            [
                best_shift(
                    [done["shifts"][number] for done in self._rounds],
                    [done["men"][number] for done in self._rounds],
                    samples,
                    float(concept.share_man or 0),
                )
                for number, concept in enumerate(self.professions)
            ]
        )

    def add(self, shifts: NDArray[np.float64], men: NDArray[np.int64], samples: int) -> None:
        self._rounds.append({"shifts": shifts.tolist(), "men": men.tolist(), "samples": samples})
        if team.rank() > 0:
            return
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._rounds, indent=1))
        partial.replace(self._path)
        stated = np.array([float(concept.share_man or 0) for concept in self.professions])
        off = 100 * np.abs(men / samples - stated)
        print(f"balance round {len(self)}: off by {off.mean():.1f} points, at most {off.max():.1f}; "
              f"shifts {np.abs(shifts).max():.2f} at most", flush=True)  # fmt: skip


def models(tokenizer: Any, encoder: Any, unet: Any, vae: Any, scale: float) -> SimpleNamespace:
    """What `sample` takes; the latents of `unet` are those of `vae` times `scale`."""
    vae.register_to_config(scaling_factor=scale)
    scheduler = DPMSolverMultistepScheduler.from_config(SCHEDULER)
    return SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder, unet=unet, vae=vae, scheduler=scheduler)
