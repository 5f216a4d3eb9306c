"""How weights are attributed and chosen: the knobs, their defaults, and the published scheme."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, TypeVar, get_args

from surgery.errors import MethodError, raise_all
from surgery.record import JSON

Objective: TypeAlias = Literal["base_gap", "denoise"]
Pairing: TypeAlias = Literal["matched", "shifted"]
Rule: TypeAlias = Literal["row", "tensor", "global"]
Rounding: TypeAlias = Literal["carry", "floor", "ceil"]
Ranking: TypeAlias = Literal["score", "t", "retain", "damage"]
Weighting: TypeAlias = Literal["none", "even"]
Polarity: TypeAlias = Literal["positive", "negative"]
Combine: TypeAlias = Literal["union", "sum", "quota", "intersection", "difference"]
Named = TypeVar("Named")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionSettings:
    """What a concept's measure is, and at which noisy pictures it is looked at.

    ``base_gap`` measures how far the prediction for the concept's prompt is from that for the base prompt, at
    points of the paths that the sampler takes to pictures of the concept. ``denoise`` measures how well the
    noise of pictures of the concept is predicted; ``pictures`` are drawn unless the concept has its own.

    The defaults are those of ``base_gap``; for pictures start from ``denoising(…)``.

    Attributes:
        trajectories: Paths of the sampler; prompts take turns.
        sampling_steps: Steps of each path (DDIM), also of drawn pictures.
        graded_steps: Steps of each path that are looked at; of a picture, timesteps.
        staggered: Whether paths pass other timesteps, between each other's, and are looked at in other parts:
            many short paths then see every timestep. Else all take the sampler's own timesteps and are looked
            at in the middle of equal parts. Of pictures, whether timesteps are spread over all of them; else
            each takes the sampler's own where it has as many.
        antithetic: Whether paths start two by two from one noise and its negative, which makes means steadier
            (Hammersley and Morton 1956); a pair is then one draw.
        guidance: Guidance scale of the paths and drawn pictures.
        base_prompt: What the concept's prompt is compared with.
        pairing: ``matched`` looks at a point with its own timestep; ``shifted`` at the point one step later,
            as published.
        restart: Whether every graded step has a path of its own with new noise, as published.
        pictures: Pictures of the objective ``denoise``.
        weighting: ``none`` adds the gradients of the measure, which is largest at few timesteps; ``even``
            those of its logarithm, so that every pair says as much.
        standard_errors: Whether the spread between paths (pictures) is kept for each weight.
    """

    objective: Objective = "base_gap"
    trajectories: int = 24
    sampling_steps: int = 8
    graded_steps: int = 2
    staggered: bool = True
    antithetic: bool = True
    guidance: float = 3.0
    base_prompt: str = ""
    pairing: Pairing = "matched"
    restart: bool = False
    pictures: int = 10
    weighting: Weighting = "none"
    standard_errors: bool = False

    @property
    def pairs(self) -> int:
        """Noisy pictures that are looked at for each concept."""
        if self.objective == "denoise":
            return self.pictures * self.graded_steps
        return self.graded_steps * (1 if self.restart else self.trajectories)

    @property
    def paths(self) -> int:
        """Paths of the sampler, or drawn pictures."""
        if self.objective == "denoise":
            return self.pictures
        return self.sampling_steps if self.restart else self.trajectories

    @property
    def samples(self) -> int:
        """What counts as one draw for standard errors: a path, two that mirror each other, or a picture."""
        return -(-self.paths // 2) if self.mirrors else self.paths

    @property
    def mirrors(self) -> bool:
        """Whether two paths at a time start from one noise."""
        return self.antithetic and self.objective == "base_gap" and not self.restart


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionSettings:
    """Which of the weights are masked, and how strongly.

    Attributes:
        rule: Whether rows, tensors or all weights together have a quota.
        ratio: Share of the weights, at most; those that speak against the concept are never taken.
        count: So many weights in the ratio's place.
        left: In the ratio's place the smallest mask that leaves no more than this of the concept's direction,
            looked for on noise of its own (``control.left_of``). On pocket-sd the first mask that takes a
            concept out of the pictures leaves -24 to 20 %, whatever the rule.
        rounding: How a row's quota becomes whole: ``carry`` hands what is left over to the next row, so that
            no layer is skipped; ``floor`` skips (published). With ``count`` it is always ``carry``.
        ranking: What weights are ordered by: ``score``; ``t``, the score over its standard error;
            ``retain``, the score less ``retain_weight`` times the mean absolute score of the concepts to
            retain; ``damage``, the score for each unit of damage to them: over 1 + ``retain_weight`` times
            the curvature of their predictions, whose mean over all weights is 1.
        retain_weight: See ``ranking``.
        protect: Share of the weights, those that matter most to the concepts to retain, that are never taken.
        zeros: Whether a weight with a score of exactly nothing may fill a quota (published).
        strength: What is taken away of a weight: 1 is all of it.
        scores: Whether the patch carries how much speaks for each masked weight, two bytes each, so that
            smaller masks can be cut from it.
    """

    rule: Rule = "row"
    ratio: float = 0.001
    count: int | None = None
    left: float | None = None
    rounding: Rounding = "carry"
    ranking: Ranking = "score"
    retain_weight: float = 1.0
    protect: float = 0.0
    zeros: bool = False
    strength: float = 1.0
    scores: bool = False

    @property
    def rounded(self) -> Rounding:
        """How quotas become whole numbers; a count is exact only where nothing is cut off."""
        return self.rounding if self.count is None else "carry"


def aimed(concepts: Sequence[Named], combine: Combine) -> tuple[Named, ...]:
    """The concepts that are to change: of a difference the first alone, whose others stay."""
    return tuple(concepts[:1] if combine == "difference" else concepts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CadSettings:
    """All knobs of an edit.

    Attributes:
        polarity: ``positive`` takes away what makes a concept, ``negative`` what stands in its way.
        combine: What several concepts share: ``union`` masks the ratio for each, ``sum`` for the sum of their
            scores, each as a share of its concept's measure; ``quota`` an equal part of the ratio for each.
            ``intersection`` masks only what the masks of all have, ``difference`` what that of the first has
            and those of the others have not.
        controls: Whether every mask is tried on pairs with other noise beside random ones.
        micro_batch: Noisy pictures in one pass forward and back; what suits U-Net and device when left out.
        batch: Paths of the sampler at a time; the same.
        checkpointing: Whether activations are computed again on the way back: slower, with less memory.
    """

    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    polarity: Polarity = "positive"
    combine: Combine = "union"
    controls: bool = True
    micro_batch: int | None = None
    batch: int | None = None
    checkpointing: bool = False


DENOISE: Final = AttributionSettings(objective="denoise", sampling_steps=20, graded_steps=10, guidance=7.5)
"""Where settings for amplifying start from: ten drawn pictures, ten timesteps each."""
ENOUGH: Final = 200
"""Noisy pictures of a concept's own pictures; so many rank weights as thousands do (r above 0.98)."""


def denoising(pictures: int) -> AttributionSettings:
    """Settings for so many own pictures: each with as many timesteps as it takes to have enough in all."""
    return replace(DENOISE, graded_steps=max(2, -(-ENOUGH // max(1, pictures)))) if pictures else DENOISE


PUBLISHED_ERASE: Final = (
    AttributionSettings(
        sampling_steps=50, graded_steps=50, staggered=False, antithetic=False, pairing="shifted", restart=True
    ),
    SelectionSettings(rounding="floor", zeros=True),
)
"""As released: 50 paths of 1 to 50 steps, each looked at where it ends, one step late."""

PUBLISHED_AMPLIFY: Final = (
    replace(DENOISE, sampling_steps=50, graded_steps=50, staggered=False, pictures=50),
    SelectionSettings(rounding="floor", zeros=True),
)
"""As released: 50 pictures, each looked at with all 50 timesteps of the sampler."""

QUICK: Final = (AttributionSettings(trajectories=16, sampling_steps=4), SelectionSettings())
"""Fewer and shorter paths, half the time: on pocket-sd two seeds agree as well (r 0.92), and with the mean of
eight seeds of the defaults at 0.93, which themselves do at 0.96."""

PRESETS: Final = MappingProxyType(
    {"quick": QUICK, "published-erase": PUBLISHED_ERASE, "published-amplify": PUBLISHED_AMPLIFY}
)


def check_settings(attribution: AttributionSettings, selection: SelectionSettings) -> None:
    """Refuse settings that cannot be carried out, all faults at once.

    Raises:
        MethodError: naming each.
    """
    faults = [*_words(attribution), *_words(selection), *_ranges(attribution, selection)]
    if attribution.objective == "base_gap" and attribution.graded_steps > attribution.sampling_steps:
        faults.append(
            f"graded_steps is {attribution.graded_steps} and sampling_steps {attribution.sampling_steps}; a "
            "path has no more points than steps. Grade fewer, or sample with more."
        )
    if attribution.restart and attribution.graded_steps != attribution.sampling_steps:
        faults.append(
            f"restart looks at the end of a path of every length, {attribution.sampling_steps} in all, and "
            f"graded_steps is {attribution.graded_steps}; expected the same number."
        )
    paths = attribution.objective == "base_gap"
    if paths and attribution.staggered and (attribution.restart or attribution.pairing == "shifted"):
        faults.append(
            "staggered paths are looked at where they are, and published ones end where they are looked at; "
            "set staggered to false for pairing 'shifted' and for restart."
        )
    if attribution.pairing == "shifted" and attribution.objective == "denoise":
        faults.append("pairing 'shifted' belongs to paths of the sampler; denoise knows the noise it added.")
    if selection.count is not None and selection.count < 1:
        faults.append(f"count is {selection.count}; expected 1 or more.")
    if selection.left is not None:
        faults += _left_faults(attribution, selection, selection.left)
    if selection.ranking == "t" and not attribution.standard_errors:
        faults.append("ranking 't' divides by standard errors; set standard_errors to true.")
    if attribution.standard_errors and attribution.samples < 2:
        faults.append("standard errors need two paths (pairs of them, pictures) or more; one was asked for.")
    raise_all(MethodError, faults)


def _left_faults(attribution: AttributionSettings, selection: SelectionSettings, left: float) -> list[str]:
    faults = []
    if not -1 <= left < 1:
        faults.append(f"left is {left:g}; expected at least -1, below 1 (nothing changed). Try 0.")
    if selection.count is not None:
        faults.append("left and count say both how large masks are; expected one of the two.")
    if attribution.objective == "denoise":
        faults.append(
            "left is about the way from the base prompt to the concept, and denoise knows no base prompt; "
            "give a ratio or a count, or set the objective to base_gap."
        )
    return faults


def _ranges(attribution: AttributionSettings, selection: SelectionSettings) -> list[str]:
    counts = ("trajectories", "sampling_steps", "graded_steps", "pictures")
    shares = ("ratio", "protect")
    return [
        *(
            f"{name} is {getattr(attribution, name)}; expected 1 or more."
            for name in counts
            if getattr(attribution, name) < 1
        ),
        *(
            f"{name} is {getattr(selection, name)}; expected a share of at least 0, below 1."
            for name in shares
            if not 0 <= getattr(selection, name) < 1
        ),
    ]


def _words(settings: AttributionSettings | SelectionSettings) -> list[str]:
    allowed: dict[str, tuple[Any, ...]] = {
        "objective": get_args(Objective),
        "pairing": get_args(Pairing),
        "rule": get_args(Rule),
        "rounding": get_args(Rounding),
        "ranking": get_args(Ranking),
        "weighting": get_args(Weighting),
    }
    return [
        f"{one.name} is {getattr(settings, one.name)!r}; expected {' or '.join(allowed[one.name])}."
        for one in fields(settings)
        if one.name in allowed and getattr(settings, one.name) not in allowed[one.name]
    ]


def as_json(settings: AttributionSettings | SelectionSettings) -> dict[str, JSON]:
    """The settings as plain data, for keys and reports."""
    return dict(asdict(settings))
