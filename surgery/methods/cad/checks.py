"""What can be wrong with an attribution, told before its mask is trusted (8.5 of the study)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from surgery.errors import MethodError
from surgery.methods.cad.attribution import Attribution
from surgery.methods.cad.control import Control, percent
from surgery.methods.cad.masks import ComponentMask
from surgery.methods.cad.nouns import Measured
from surgery.methods.cad.settings import SelectionSettings
from surgery.record import JSON, Finding

# more scores of exactly nothing than this: numbers were too small for their type
_ZEROS: Final = 1e-3
_ONE_TIMESTEP: Final = 0.5
_TENTH: Final = 100  # of the thousand timesteps of all Stable Diffusions
# trained weights are hardly ever nothing, but for what half precision is too coarse for: an update that was
# added to them cancels up to 0.02 % of a tensor on pocket-sd; more are a mask
_NEVER: Final = 3
_COARSE: Final = 4e-4
_NO_GAP: Final = 1e-6
# made-up words are drawn as something, too: on pocket-sd they measure 4 to 7.5, what it knows 6.4 to 15
_HARDLY_MORE: Final = 1.1
# a random mask that does at least so much of what the chosen one does says that the choice was idle
_IDLE: Final = 0.5
# what may be left of a concept's direction when its pictures no longer show it: on pocket-sd the first mask
# that erases leaves -24 to 20 %
_STILL: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Numbers of one attribution that the checks look at and reports show.

    Attributes:
        measure: The mean of J over all pairs; ``deviation`` between paths or pictures.
        positive: Share of the weights whose score is above nothing.
        zeros: Share whose score is exactly nothing though the weight is not.
        empty: Tensors all of whose scores are nothing.
        masked_already: Tensors with more weights of nothing than training leaves, and their share.
        by_tensor: The sum of the positive and that of the negative scores of each tensor.
    """

    measure: float
    deviation: float
    pairs: int
    by_timestep: Mapping[int, float]
    positive: float
    zeros: float
    empty: tuple[str, ...]
    masked_already: Mapping[str, float]
    by_tensor: Mapping[str, tuple[float, float]]

    def as_data(self) -> dict[str, JSON]:
        """As plain data, for a store."""
        return {
            "measure": self.measure,
            "deviation": self.deviation,
            "pairs": self.pairs,
            "by_timestep": {str(step): value for step, value in self.by_timestep.items()},
            "positive": self.positive,
            "zeros": self.zeros,
            "empty": list(self.empty),
            "masked_already": dict(self.masked_already),
            "by_tensor": {name: list(sums) for name, sums in self.by_tensor.items()},
        }


def facts_from(data: Mapping[str, Any]) -> Facts:
    """What ``as_data`` was made of."""
    told = {**data, "empty": tuple(data["empty"])}
    told["by_tensor"] = {name: (above, below) for name, (above, below) in data["by_tensor"].items()}
    told["by_timestep"] = {int(step): value for step, value in data["by_timestep"].items()}
    return Facts(**told)


def facts_of(attribution: Attribution) -> Facts:
    """The numbers of an attribution; tensors pass one by one."""
    positive, zeros, count = 0, 0, 0
    empty, already, sums = [], {}, {}
    for name, scores in attribution.scores():
        gone = int((attribution.weights[name] == 0).sum())
        nothing = int((scores == 0).sum())
        if nothing == scores.numel():
            empty.append(name)
        if gone > _NEVER + _COARSE * scores.numel():
            already[name] = gone / scores.numel()
        above, below = (part.double().sum() for part in (scores.clamp_min(0), scores.clamp_max(0)))
        sums[name] = (float(above), float(below))
        positive += int((scores > 0).sum())
        zeros += nothing - gone
        count += scores.numel()
    measured = attribution.measured
    return Facts(
        measure=measured.mean,
        deviation=measured.deviation,
        pairs=len(measured.values),
        by_timestep=measured.by_timestep(),
        positive=positive / count,
        zeros=max(0, zeros) / count,
        empty=tuple(empty),
        masked_already=already,
        by_tensor=sums,
    )


def refuse_no_gap(name: str, measured: Measured) -> None:
    """Refuse a concept whose measure is nothing but rounding: so would its scores be.

    Raises:
        MethodError: saying what can be the reason.
    """
    if abs(measured.mean) < _NO_GAP:
        raise MethodError(
            f"the measure of {name!r} is nothing: the predictions for it and for the base prompt are alike. "
            "Does the prompt name the concept before its 77th token, and is the base prompt another one?"
        )


def attribution_findings(name: str, facts: Facts) -> Iterator[Finding]:
    """What is suspicious about an attribution."""
    if facts.empty:
        yield _finding(
            "no-gradient",
            name,
            f"all scores of {len(facts.empty)} tensors are nothing, {facts.empty[0]!r} among them. Is the "
            "layer replaced, or never used?",
        )
    if facts.zeros > _ZEROS:
        yield _finding(
            "underflow",
            name,
            f"{100 * facts.zeros:.1f} % of the scores are exactly nothing where the weight is not: gradients "
            "were too small for their type. Compute in float32.",
        )
    share = _largest_share(facts.by_timestep)
    if share > _ONE_TIMESTEP:
        yield _finding(
            "one-timestep",
            name,
            f"one tenth of the timesteps holds {100 * share:.0f} % of the measure; the scores are about it "
            "alone. Grade more steps, or take more paths.",
        )
    if facts.masked_already:
        worst = max(facts.masked_already, key=lambda one: facts.masked_already[one])
        yield _finding(
            "masked-already",
            name,
            f"{_share(facts.masked_already[worst])} of {worst!r} is nothing already, and some of "
            f"{len(facts.masked_already)} tensors: a mask is in this checkpoint, and its weights have no "
            "score. Attribute the checkpoint it was made from.",
        )


def unknown_findings(name: str, measured: float, made_up: float | None) -> Iterator[Finding]:
    """Whether a concept's measure is about that of made-up words in its place, where there is one."""
    if made_up is not None and measured <= _HARDLY_MORE * made_up:
        yield _finding(
            "unknown-concept",
            name,
            f"the measure is {measured:.3g}, with made-up words in its place {made_up:.3g}: the checkpoint "
            "may not know it. Look at a picture of it before you trust its mask.",
        )


def size_findings(
    name: str, mask: ComponentMask, wanted: int | None, tensors: Sequence[str]
) -> Iterator[Finding]:
    """Where a mask is empty, has fewer weights than the ratio's ``wanted``, or none of some tensors.

    Args:
        name: Its concepts.
        mask: The mask.
        wanted: None of an intersection or a difference, which may have any number.
        tensors: Those that it may have weights of.
    """
    if wanted is None:
        if not mask.count:
            yield _finding("empty-mask", name, "the masks of its concepts, combined, have no weight.")
        return
    if not mask.count:
        reason = (
            "none of those looked at says enough. Look at other components."
            if wanted
            else "the ratio stands for less than one of each quota. Take a larger one, or rounding 'carry'."
        )
        yield _finding("empty-mask", name, f"no weight is masked: {reason}")
        return
    skipped = [tensor for tensor in tensors if tensor not in mask.places]
    if skipped:
        yield _finding(
            "skipped-tensors",
            name,
            f"no weight of {len(skipped)} of {len(tensors)} tensors is masked, {skipped[0]!r} among them: "
            "their quota is nothing, or nothing in them speaks for the concept.",
            severity="info",
        )
    if mask.count < wanted:
        yield _finding(
            "short-mask",
            name,
            f"{mask.count} weights are masked of the {wanted} that the ratio stands for; the others of their "
            "rows speak against the concept.",
            severity="info",
        )


def grown_findings(left: Mapping[str, float], chosen: SelectionSettings) -> Iterator[Finding]:
    """Whose direction a mask that was grown leaves more of than was asked for, by name."""
    for concept, share in left.items():
        if chosen.left is not None and share > chosen.left:
            yield _finding(
                "not-reached",
                concept,
                f"{percent(share)} of its direction is left and {percent(chosen.left)} was asked for; of all "
                f"masks that were tried this one does best. {_more(chosen)} Or ask for less: a larger left.",
            )


def effect_findings(
    mask: ComponentMask,
    controls: Mapping[str, Control],
    chosen: SelectionSettings,
    *,
    erases: bool,
    seeks: bool = True,
) -> Iterator[Finding]:
    """What is suspicious about what a mask does to each concept, beside random ones.

    Args:
        mask: The mask; of an empty one nothing is told.
        controls: By concept, what it does.
        chosen: How it was chosen.
        erases: Whether it is to lower the measure; else to raise it.
        seeks: Whether the ratio could have been looked for.
    """
    for concept, control in controls.items() if mask.count else ():
        if (control.effect > 0) == erases and control.effect:
            yield _wrong_way(concept, control)
        elif control.random_size >= _IDLE * abs(control.effect):
            yield _finding(
                "no-better-than-random",
                concept,
                f"the mask {control.line()} ({percent(control.random_size)} up or down). Is it too large, or "
                "are there too few paths?",
            )
        elif erases and chosen.left is None and chosen.strength == 1 and (control.left or 0) > _STILL:
            yield _finding(
                "still-there",
                concept,
                f"{percent(control.left or 0)} of its direction is left: pictures probably show it still. "
                f"{_more(chosen)}{' Or let selection.left look for the ratio.' if seeks else ''}",
            )


def _more(chosen: SelectionSettings) -> str:
    """How a mask takes more away."""
    if chosen.strength < 1:
        return f"Take more than {percent(chosen.strength)} of each weight (strength)."
    return "Look at more components." if chosen.left is not None else "Take a larger ratio."


def _wrong_way(name: str, control: Control) -> Finding:
    word = "raises" if control.effect > 0 else "lowers"
    what = "measure" if control.left is None else "share of its direction that is left"
    return _finding(
        "wrong-way",
        name,
        f"the mask {word} the {what}, by {100 * control.effect:+.0f} % on other noise: so many weights at "
        "once do not do what each of them would. Take fewer, or less strength.",
    )


def _share(share: float) -> str:
    """Whole percents, or as many digits as a small share has."""
    return percent(share) if share >= 0.01 else f"{100 * share:.1g} %"


def _largest_share(by_timestep: Mapping[int, float]) -> float:
    """The share of the measure that the heaviest tenth of the timesteps holds."""
    parts: dict[int, float] = {}
    for timestep, value in by_timestep.items():
        part = timestep // _TENTH
        parts[part] = parts.get(part, 0.0) + abs(value)
    whole = sum(parts.values())
    return max(parts.values()) / whole if whole > 0 else 0.0


def _finding(kind: str, subject: str, message: str, severity: str = "warning") -> Finding:
    return Finding(kind=kind, subject=subject, message=message, severity=severity)  # type: ignore[arg-type]  # one of two words
