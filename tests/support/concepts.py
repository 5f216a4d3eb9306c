"""Edits, captions and random targets in the tiny vocabulary."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch

from surgery.anatomy import text_stack, weights_digest
from surgery.methods.emcid import Concept, ConceptEdit, Target, prepare
from surgery.methods.emcid.sweeps import measure, subjects_of

CAT = ConceptEdit(source="cat", destination="dog")
PIZZA = ConceptEdit(source="pizza", destination="fish", seed=3)
DOCTOR = ConceptEdit(source="female doctor", destination="male", seed=5)
FORGET = ConceptEdit(source="style", kind="forget", templates=("a photo of {} in the image", "{}"))


def captions(count: int = 60) -> list[str]:
    words = ("cat", "dog", "fish", "pizza", "doctor", "style", "x", "qv")
    texts = [
        f"{a} {b} of {c}" for a, b, c in product(("a", "the", "an"), ("photo", "image", "picture"), words)
    ]
    return texts[:count]


def concepts_of(tokenizer: Any, *edits: ConceptEdit) -> tuple[Concept, ...]:
    concepts, _ = prepare(edits, tokenizer)
    return concepts


def random_targets(
    encoder: Any, concepts: Sequence[Concept], layer: int = 10, length: float = 1.0, seed: int = 0
) -> list[Target]:
    """Targets with random offsets, ``length`` times as long as the source vector."""
    generator = torch.Generator().manual_seed(seed)
    stack = text_stack(encoder)
    targets: list[Target] = []
    for concept in concepts:
        blank = target_of(concept, torch.zeros(stack.width), torch.zeros(stack.width), layer, "")
        subjects, _ = subjects_of([blank])
        source = measure(stack, subjects, [layer])[1][0]
        offset = torch.randn(stack.width, generator=generator)
        offset = offset / offset.norm() * source.norm() * length
        targets.append(target_of(concept, offset, source, layer, weights_digest(encoder)))
    return targets


def target_of(
    concept: Concept, offset: torch.Tensor, source: torch.Tensor, layer: int, digest: str
) -> Target:
    return Target(
        concept=concept,
        offset=offset,
        source=source,
        layer=layer,
        encoder_digest=digest,
        steps=1,
        first_loss=1.0,
        last_loss=0.5,
        settled=True,
        clamped=False,
        finite=True,
    )
