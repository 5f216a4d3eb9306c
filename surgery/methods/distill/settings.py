"""How a scale of guidance becomes weights: the concepts, the knobs, and their defaults."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Final, Literal, TypeAlias, get_args

from surgery.errors import MethodError, raise_all
from surgery.methods.concepts import repeats
from surgery.methods.training import LoopSettings, loop_faults
from surgery.record import JSON

Form: TypeAlias = Literal["weights", "factors"]
Start: TypeAlias = Literal["closed_form", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConcept:
    """One concept and how much of it is to be left.

    Attributes:
        name: For people and keys.
        prompts: Prompts that show it.
        scale: ω: -1 pushes away (ESD with η = 1), 0 draws as without a prompt, 1 is as it was, more enhances.
        seed: Of its paths.
    """

    name: str
    prompts: tuple[str, ...]
    scale: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings(LoopSettings):
    """What is trained, towards what, and where it is looked at.

    Attributes:
        form: ``weights`` themselves, or ``factors`` beside the layers.
        rank: Of the factors.
        start: Whether keys and values of cross-attention among the weights start from their closed form.
        ridge: What holds the closed form in directions that no text speaks of, as a share of the mean square
            of the concepts' features.
        batch: Points behind each update; each is looked at with the concept, without words, and with a phrase
            to preserve.
        guidance: Scale of the paths that points are taken from, drawn by the weights as they are by then.
        sampling_steps: Of each path.
        graded_steps: Points on each path.
        paths: New ones at a time.
        refresh: Updates between new paths.
        null_weight: Of staying what it was without words.
        preserve_weight: Of staying what it was with phrases to preserve, also in the closed form.
        limit: The largest scale that may be asked for, without a decay: predictions saturate beyond.
        decay: γ. The scale falls towards 1 with this power of the rest of the path; 0 keeps it.
        seed: Of all noise.
    """

    steps: int = 200
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    average: float = 0.0
    form: Form = "weights"
    rank: int = 16
    start: Start = "closed_form"
    ridge: float = 1e-3
    batch: int = 8
    guidance: float = 3.0
    sampling_steps: int = 20
    graded_steps: int = 5
    paths: int = 8
    refresh: int = 25
    null_weight: float = 1.0
    preserve_weight: float = 1.0
    limit: float = 2.0
    decay: float = 0.0
    seed: int = 0


ESD: Final = DistillSettings(
    steps=1000,
    start="none",
    batch=1,
    sampling_steps=50,
    graded_steps=1,
    paths=1,
    refresh=1,
    null_weight=0.0,
    preserve_weight=0.0,
)
"""The scheme of arXiv 2303.07345: one point of a new path for each update, nothing preserved; ω is -η."""


def check_distill(
    concepts: Sequence[DistillConcept], settings: DistillSettings, preserve: Sequence[str] = ()
) -> None:
    """Refuse what cannot be carried out, all faults at once.

    Raises:
        MethodError: naming each.
    """
    faults = [*_concept_faults(concepts, preserve), *_setting_faults(settings)]
    faults += [
        f"the scale of {one.name!r} is {one.scale:g}, at which predictions saturate; expected at most "
        f"{settings.limit:g}. Set a decay, or raise the limit."
        for one in concepts
        if one.scale > settings.limit and not settings.decay
    ]
    raise_all(MethodError, [*faults, *(loop_faults(settings) if settings.steps else ())])


def _concept_faults(concepts: Sequence[DistillConcept], preserve: Sequence[str]) -> Iterator[str]:
    if not concepts:
        yield "there is no concept; expected at least one."
    names = [one.name.casefold() for one in concepts]
    yield from repeats(names)
    for one in concepts:
        if not isfinite(one.scale):
            yield f"the scale of {one.name!r} is {one.scale}; expected a finite number."
        if one.scale == 1:
            yield f"the scale of {one.name!r} is 1, which changes nothing; expected another."
        if not one.prompts:
            yield f"{one.name!r} has no prompt; expected at least one."
    for name in preserve:
        if name.casefold() in names:
            yield f"{name!r} is to be changed and preserved; expected one of them."


def _setting_faults(settings: DistillSettings) -> Iterator[str]:
    for name, allowed in (("form", get_args(Form)), ("start", get_args(Start))):
        if getattr(settings, name) not in allowed:
            yield f"{name} is {getattr(settings, name)!r}; expected {' or '.join(allowed)}."
    for name in ("rank", "batch", "sampling_steps", "graded_steps", "paths", "refresh"):
        if getattr(settings, name) < 1:
            yield f"{name} is {getattr(settings, name)}; expected 1 or more."
    for name in ("ridge", "null_weight", "preserve_weight", "decay", "guidance", "limit"):
        if not (isfinite(getattr(settings, name)) and getattr(settings, name) >= 0):
            yield f"{name} is {getattr(settings, name)}; expected 0 or more."
    if settings.graded_steps > settings.sampling_steps:
        yield (
            f"graded_steps is {settings.graded_steps}, and a path has {settings.sampling_steps} steps; "
            "expected no more."
        )
    if settings.start == "none" and not settings.steps:
        yield "there is neither a closed form nor a step; expected one of them."
    if settings.start == "closed_form" and settings.form == "factors" and settings.steps:
        yield "factors start from nothing; expected start 'none', or form 'weights'."


def as_json(settings: DistillSettings) -> dict[str, JSON]:
    """The settings as plain data, for keys and reports."""
    return dict(asdict(settings))
