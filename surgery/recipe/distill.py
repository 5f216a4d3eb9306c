"""The recipe entry of distillation: how much of a concept is left, and how it becomes weights.

Settings left out take the method's own default (``surgery.methods.distill.DistillSettings``).
"""

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from pydantic import Field

from surgery.recipe.model import Knobs, Part
from surgery.recipe.parameters import Count, NotNegative, Phrase, Positive, Seed, Share, Template

DistillPreset: TypeAlias = Literal["esd", "closed-form"]


class Rescaled(Part):
    """One concept, and how much of it is to be left."""

    source: Phrase
    """The concept's name in a prompt."""
    scale: float | None = None
    """ω: -1 pushes away, 0 draws as without a prompt, 1 would change nothing, more enhances. Without it, -1
    with the preset ``esd``, else 0."""
    templates: tuple[Template, ...] | None = Field(default=None, min_length=1)
    """Prompts with one ``{}`` where the concept's name goes; the method has its own."""
    seed: Seed | None = None
    """Seed of this concept's paths; without it, it follows from the recipe's seed and the concept's name."""


class Distillation(Knobs):
    """How the scale becomes weights."""

    form: Literal["weights", "factors"] | None = None
    """Train the weights themselves, or low-rank factors beside the layers."""
    rank: Count | None = None
    """Of the factors."""
    start: Literal["closed_form", "none"] | None = None
    """Whether keys and values of cross-attention start from their closed form."""
    ridge: NotNegative | None = None
    """What holds the closed form in directions that no text speaks of."""
    steps: int | None = Field(default=None, ge=0)
    """Updates; 0 leaves the closed form as it is."""
    batch: Count | None = None
    """Points behind each update."""
    learning_rate: Positive | None = None
    """Of AdamW."""
    weight_decay: NotNegative | None = None
    """Of AdamW."""
    clip: Positive | None = None
    """Longest gradient of an update."""
    average: Share | None = None
    """Decay of the moving average whose weights are the result; 0: none."""
    precision: Literal["float32", "bfloat16"] | None = None
    """In which type products are taken."""
    guidance: NotNegative | None = None
    """Scale of the paths that points are taken from."""
    sampling_steps: Count | None = None
    """Of each path."""
    graded_steps: Count | None = None
    """Points on each path."""
    paths: Count | None = None
    """New ones at a time."""
    refresh: Count | None = None
    """Updates between new paths."""
    null_weight: NotNegative | None = None
    """Of staying what it was without words."""
    preserve_weight: NotNegative | None = None
    """Of staying what it was with the phrases in ``preserve``."""
    limit: NotNegative | None = None
    """The largest scale that may be asked for, without a decay."""
    decay: NotNegative | None = None
    """γ. The scale falls towards 1 with this power of the rest of the path; 0 keeps it."""


class Distill(Part):
    """Bake a scale of guidance into the U-Net (arXiv 2303.07345 and its other directions)."""

    preset: DistillPreset | None = None
    """Where settings start from: ``esd`` as published, or the ``closed-form`` of keys and values alone."""
    concepts: tuple[Rescaled, ...] = Field(min_length=1)
    preserve: tuple[Phrase, ...] = ()
    """Phrases that must stay as they are."""
    components: tuple[Phrase, ...] | None = Field(default=None, min_length=1)
    """Weights of the U-Net that may change: ff, attn2_kv, attn, conv, linear, all, or patterns. Without it,
    all of cross-attention with the preset ``esd``, else attn2_kv."""
    leave_out: tuple[Phrase, ...] = ()
    """Patterns of names among them that may not."""
    distillation: Distillation = Distillation()


def distill_faults(entry: Distill) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Keys that contradict each other: place in the entry, and what is wrong."""
    given: dict[str, Any] = entry.distillation.given()
    for number, concept in enumerate(entry.concepts):
        if concept.scale == 1:
            yield ("concepts", number, "scale"), "1 changes nothing. Take less to weaken, more to enhance."
    if entry.preset == "closed-form" or given.get("steps") == 0:
        allowed = {"ridge", "preserve_weight", "limit"} | ({"steps"} if entry.preset is None else set())
        for name in sorted(given.keys() - allowed):
            yield ("distillation", name), "the closed form does not read it. Leave it out."
    if entry.preset == "esd" and entry.preserve and not given.get("preserve_weight"):
        yield ("preserve",), "preset 'esd' preserves nothing. Set distillation.preserve_weight."
