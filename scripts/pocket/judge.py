"""Stage 1: pocket-judge, trained on drawings alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawings import BACKGROUND_HIDING_STYLES, EmojiFont, Scene, draw
from numpy.typing import NDArray
from safetensors.torch import save_file
from scenes import Shares, random_scene
from scipy import ndimage
from state import Loop, Stage, cosine
from torch import Tensor, nn
from torch.nn import functional
from vocabulary import Vocabulary

from surgery.judge.pocket import PocketJudgeConfig, PocketJudgeNet

HIDDEN = -100  # label of an attribute that the picture does not show
SHARES = Shares(pair=0.45, style=0.25)
NONE_SHARE = 0.06
TWIN_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    concept: list[int]
    style: int
    background: int
    gender: int
    skin: int


def label(vocabulary: Vocabulary, scene: Scene) -> Labels:
    concepts = [vocabulary.concepts.index(s.concept) for s in scene.subjects]
    person = next((s for s in scene.subjects if s.gender is not None), None)
    alone = person if len(scene.subjects) == 1 else None
    hides = scene.style in BACKGROUND_HIDING_STYLES
    coloured = alone is not None and scene.style in (None, "watercolour")
    return Labels(
        concept=concepts,
        style=0 if scene.style is None else 1 + vocabulary.styles.index(scene.style),
        background=HIDDEN if hides else list(vocabulary.backgrounds).index(scene.background),
        gender=HIDDEN
        if alone is None or scene.style == "mosaic"
        else vocabulary.genders.index(str(alone.gender)),
        skin=int(alone.skin) if coloured and alone is not None and alone.skin is not None else HIDDEN,
    )


def clutter(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of nothing: the drawing's tiles shuffled, or blurred beyond recognition."""
    if rng.random() < 0.5:
        tiles = picture.reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64, 8, 8, 3)
        return tiles[rng.permutation(64)].reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64, 64, 3)
    return np.stack([ndimage.gaussian_filter(picture[..., c], 9.0) for c in range(3)], axis=2)


def worn(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Slight blur, noise and brightness, so that softness alone does not confuse the judge."""
    values: NDArray[Any] = picture.astype(np.float32)
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 1.1)
        values = ndimage.gaussian_filter(values, (sigma, sigma, 0))
    if rng.random() < 0.4:
        values = values + rng.normal(0, rng.uniform(2, 12), values.shape)
    if rng.random() < 0.4:
        values = values * rng.uniform(0.9, 1.1) + rng.uniform(-12, 12)
    clipped: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return clipped


class Examples:
    """Batches of drawings with labels; `augment` also makes pictures of nothing and wears them a little."""

    def __init__(self, font: EmojiFont, vocabulary: Vocabulary, seed: int, augment: bool) -> None:
        self._font, self._vocabulary, self._augment = font, vocabulary, augment
        self._seed = seed

    def one(self, number: int) -> tuple[NDArray[np.uint8], Labels]:
        rng = np.random.default_rng((self._seed, number))
        vocabulary = self._vocabulary
        empty = rng.random() < NONE_SHARE
        scene = random_scene(vocabulary, vocabulary.concepts, rng, SHARES)
        blank = empty and rng.random() < 0.4
        if blank:
            scene = Scene(subjects=(), background=scene.background, style=None)
        picture = draw(self._font, vocabulary, scene, rng)
        labels = label(vocabulary, scene)
        if empty:
            picture = picture if blank else clutter(picture, rng)
            background = labels.background if blank else HIDDEN
            style = 0 if blank else HIDDEN
            labels = Labels(concept=[], style=style, background=background, gender=HIDDEN, skin=HIDDEN)
        if self._augment:
            picture = worn(picture, rng)
        return picture, labels

    def batch(self, numbers: range) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Pictures (n, 3, 64, 64) in [−1, 1], concepts multi-hot (n, concepts + 1), the other labels (n,)."""
        made = [self.one(number) for number in numbers]
        pictures = torch.from_numpy(np.stack([p for p, _ in made])).permute(0, 3, 1, 2).float() / 127.5 - 1
        concepts = torch.zeros(len(made), len(self._vocabulary.concepts) + 1)
        for row, (_, labels) in enumerate(made):
            concepts[row, labels.concept or [-1]] = 1.0
        names = ("style", "background", "gender", "skin")
        others = {name: torch.tensor([getattr(labels, name) for _, labels in made]) for name in names}
        return pictures, concepts, others


def loss_of(logits: dict[str, Tensor], concepts: Tensor, others: dict[str, Tensor]) -> Tensor:
    shares = concepts / concepts.sum(dim=1, keepdim=True)
    total = functional.cross_entropy(logits["concept"], shares)
    total = total + 4.0 * functional.binary_cross_entropy_with_logits(logits["concept"], concepts) * 10
    for name, labels in others.items():
        if (labels != HIDDEN).any():
            total = total + 0.3 * functional.cross_entropy(logits[name], labels, ignore_index=HIDDEN)
    return total


def network(vocabulary: Vocabulary) -> PocketJudgeNet:
    classes = {
        "concept": len(vocabulary.concepts) + 1,
        "style": len(vocabulary.styles) + 1,
        "background": len(vocabulary.backgrounds),
        "gender": len(vocabulary.genders),
        "skin": len(vocabulary.skins),
    }
    net = PocketJudgeNet(PocketJudgeConfig(classes=classes))
    concept = net.heads["concept"]
    if isinstance(concept, nn.Linear):
        nn.init.constant_(concept.bias, -5.0)
    return net


def train(
    folder: Path, font: EmojiFont, vocabulary: Vocabulary, total: int, batch: int, device: str
) -> PocketJudgeNet:
    net = network(vocabulary).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.02)
    loop = Loop(Stage(folder, "judge"), total, optimiser, {"net": net})
    examples = Examples(font, vocabulary, seed=1, augment=True)
    net.train()
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(examples.batch, range(loop.first * batch, (loop.first + 1) * batch))
        for step in loop:
            pictures, concepts, others = ahead.result()
            ahead = pool.submit(examples.batch, range((step + 1) * batch, (step + 2) * batch))
            loop.set_rate(cosine(step, total, 2e-3))
            loss = loss_of(
                net(pictures.to(device)), concepts.to(device), {k: v.to(device) for k, v in others.items()}
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if loop.reports(step):
                loop.report(step, loss=loss.item())
            loop.save(step)
    return net.eval()


@torch.no_grad()
def measure(
    net: PocketJudgeNet, font: EmojiFont, vocabulary: Vocabulary, count: int, device: str
) -> dict[str, object]:
    """Accuracy on held-out drawings (own seed, no wear), look-alikes, and the confusion of singles.

    From which probability on a concept counts as shown is chosen on other drawings, a quarter as many.
    """
    net.eval()
    beliefs, truths, _ = answers_of(
        net, Examples(font, vocabulary, seed=3, augment=False), count // 4, device
    )
    shown_from = best_threshold(beliefs, truths)
    beliefs, truths, right = answers_of(net, Examples(font, vocabulary, seed=2, augment=False), count, device)
    answers = [
        Answer(
            truth=frozenset(truth.nonzero().flatten().tolist()),
            best=frozenset(belief.topk(int(truth.sum())).indices.tolist()),
            exact=frozenset((belief >= shown_from).nonzero().flatten().tolist()),
        )
        for belief, truth in zip(beliefs, truths, strict=True)
    ]
    names = [*(c.name for c in vocabulary.concepts), "none"]
    singles = [answer for answer in answers if len(answer.truth) == 1 and len(names) - 1 not in answer.truth]
    twins = look_alikes(singles, len(names) - 1)
    for answer in answers:
        truth, best, exact = (
            frozenset(twins.get(n, n) for n in found) for found in (answer.truth, answer.best, answer.exact)
        )
        kind = "none" if len(names) - 1 in truth else ("single" if len(answer.truth) == 1 else "pair")
        right.setdefault(f"concept_{kind}_top", []).append(best == truth)
        right.setdefault(f"concept_{kind}_exact", []).append(exact == truth)
    worst = Counter((min(a.truth), min(a.best)) for a in singles if a.truth != a.best).most_common(40)
    shown = Counter(min(answer.truth) for answer in singles)
    return {
        "shown_from": shown_from,
        "accuracy": {name: float(np.mean(hits)) for name, hits in sorted(right.items())},
        "counts": {name: len(hits) for name, hits in sorted(right.items())},
        "merged": {names[twin]: names[chosen] for twin, chosen in twins.items()},
        "confusion": [[names[true], names[guess], n, shown[true]] for (true, guess), n in worst],
    }


def answers_of(
    net: PocketJudgeNet, examples: Examples, count: int, device: str
) -> tuple[Tensor, Tensor, dict[str, list[bool]]]:
    """Belief in each concept and the truth (drawings, concepts + 1), and hits on the other axes."""
    right: dict[str, list[bool]] = {}
    beliefs, truths = [], []
    for start in range(0, count, 256):
        pictures, concepts, others = examples.batch(range(start, min(start + 256, count)))
        logits = {name: values.cpu() for name, values in net(pictures.to(device)).items()}
        beliefs.append(logits["concept"].sigmoid())
        truths.append(concepts.bool())
        for name, labels in others.items():
            seen = labels != HIDDEN
            hits = logits[name].argmax(1)[seen] == labels[seen]
            right.setdefault(name, []).extend(hits.tolist())
    return torch.cat(beliefs), torch.cat(truths), right


def best_threshold(beliefs: Tensor, truths: Tensor) -> float:
    """The probability from which on a concept is best held for shown: most drawings wholly right."""
    candidates = [round(0.05 * n, 2) for n in range(2, 14)]
    return max(candidates, key=lambda at: int(((beliefs >= at) == truths).all(dim=1).sum()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The concepts of one drawing: shown, taken for the likeliest (as many), and held for present."""

    truth: frozenset[int]
    best: frozenset[int]
    exact: frozenset[int]


def look_alikes(singles: Sequence[Answer], none: int) -> dict[int, int]:
    """Concepts taken for one another in TWIN_SHARE of their drawings, each with the first of its likes."""
    shown = Counter(min(answer.truth) for answer in singles)
    mixed = Counter(
        frozenset((min(a.truth), min(a.best))) for a in singles if a.truth != a.best and none not in a.best
    )
    chosen: dict[int, int] = {}
    for pair, times in sorted(mixed.items(), key=lambda item: sorted(item[0])):
        first, second = sorted(pair)
        if times >= TWIN_SHARE * (shown[first] + shown[second]):
            first, second = sorted((chosen.get(first, first), chosen.get(second, second)))
            if first != second:
                chosen = {twin: first if kept == second else kept for twin, kept in chosen.items()}
                chosen[second] = first
    return chosen


def save(net: PocketJudgeNet, vocabulary: Vocabulary, measured: dict[str, object], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"}
    )
    config = {
        "kind": "pocket-judge",
        "size": 64,
        "widths": [32, 64, 128, 256],
        "concepts": [c.name for c in vocabulary.concepts] + ["none"],
        "styles": ["plain", *vocabulary.styles],
        "backgrounds": list(vocabulary.backgrounds),
        "genders": list(vocabulary.genders),
        "skins": list(vocabulary.skins),
        **measured,
    }
    (out / "config.json").write_text(
        json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
