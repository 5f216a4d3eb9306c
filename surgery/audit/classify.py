"""What kind of change it is: a table of plain rules, each with the numbers it rests on.

Changed tensors are first told apart one by one (`kind_of`), then the rules look at them together. A tensor
may be spoken of by several rules.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from surgery.audit.facts import by_component, places, rank_facts, size_facts, span, subjects
from surgery.audit.merge import MergeFit
from surgery.audit.operator import KEYS, VALUES, OperatorFit
from surgery.report.audit_record import Claim, Spectrum, Sureness, TensorRow

TensorKind: TypeAlias = Literal["mask", "scaled", "places", "low_rank", "dense", "unknown"]

# Share of the squared change that one factor may leave over; rounding to half leaves about 1e-7.
_FACTOR_MISFIT: Final = 1e-3
# With fewer elements, one factor always fits.
_FACTOR_ELEMENTS: Final = 16
# Low rank: at most this share of the singular values stands above rounding, they hold at least half of the
# squared change, and what they leave is no more than rounding explains.
_LOW_RANK: Final = 0.9
_HELD: Final = 0.5
_ROUNDING_TIMES: Final = 2.0
_SLACK: Final = 1e-3
# Share of a component's tensors from which on all of it counts as changed.
_EVERYWHERE: Final = 0.8
_MLP: Final = ("mlp_in", "mlp_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that the rules look at."""

    rows: Sequence[TensorRow]
    has_base: bool
    operator: OperatorFit | None = None
    merge: MergeFit | None = None
    beside: tuple[str, ...] = ()
    """What differs beside the weights, in words."""

    @property
    def changed(self) -> list[TensorRow]:
        """Tensors with other values."""
        return [row for row in self.rows if row.state == "changed"]

    def of_kind(self, *kinds: TensorKind) -> list[TensorRow]:
        """Changed tensors of these kinds."""
        return [row for row in self.changed if kind_of(row) in kinds]


def kind_of(row: TensorRow) -> TensorKind:
    """What the change of one tensor looks like by itself."""
    if "Rescale" in row.stored_as:
        return "mask"
    if "Operator" in row.stored_as:
        return "low_rank"
    one_factor = row.misfit is not None and row.misfit <= _FACTOR_MISFIT and row.changed >= _FACTOR_ELEMENTS
    if one_factor:
        return "scaled" if row.structure == "everything" else "mask"
    if row.structure in ("rows", "columns", "block"):
        return "places"
    if row.spectrum is None:
        return "unknown" if len(row.shape) > 1 else "dense"
    return "low_rank" if is_low_rank(row.spectrum) else "dense"


def is_low_rank(spectrum: Spectrum) -> bool:
    """Whether few directions make up a change, but for rounding."""
    left_over = 1 - spectrum.held
    return (
        0 < spectrum.rank <= _LOW_RANK * spectrum.count
        and spectrum.held >= _HELD
        and left_over <= _ROUNDING_TIMES * spectrum.rounding_share + _SLACK
    )


def classify(evidence: Evidence) -> tuple[Claim, ...]:
    """Every claim that a rule makes, in the order of the rules."""
    return tuple(claim for rule in RULES for claim in rule(evidence))


def _nothing(evidence: Evidence) -> Iterator[Claim]:
    if all(row.state == "same" for row in evidence.rows):
        count = f"{len(evidence.rows)} tensors, not one bit differs"
        others = [f"what differs beside them: {', '.join(evidence.beside)}"] if evidence.beside else []
        statement = (
            "Nothing was changed but what lies beside the weights." if others else "Nothing was changed."
        )
        yield _claim("nothing", "all weights", "certain", statement, [count, *others], 0)


def _cast(evidence: Evidence) -> Iterator[Claim]:
    for component, rows in by_component(row for row in evidence.rows if row.state in ("cast", "rounded")):
        types = sorted({f"{before} → {after}" for row in rows for before, after in [row.dtypes]})
        rounded = sum(row.state == "rounded" for row in rows)
        facts = [
            f"types {', '.join(types)}",
            f"{len(rows) - rounded} tensors are equal in the coarser type, {rounded} once rounded to half",
        ]
        statement = "The same values in another precision; this is no edit."
        yield _claim("dtype-cast", component, "certain", statement, facts, len(rows))


def _text_mlp(evidence: Evidence) -> Iterator[Claim]:
    rows = [
        row
        for row in evidence.of_kind("low_rank")
        if row.component.startswith("text_encoder") and row.role in _MLP
    ]
    for component, mine in by_component(rows):
        others = [row for row in evidence.changed if row.component == component and row.role not in _MLP]
        facts = [places(mine), *rank_facts(mine), *size_facts(mine)]
        facts.append(f"{len(others)} other tensors of the component changed")
        yield _claim(
            "text-mlp-low-rank",
            component,
            "likely" if others else "certain",
            "A low-rank edit of the text encoder's MLP, as concept edits of the EMCID and ROME kind make it.",
            facts,
            len(mine),
        )


def _cross_attention(evidence: Evidence) -> Iterator[Claim]:
    rows = [row for row in evidence.changed if row.role in (KEYS, VALUES)]
    if not rows:
        return
    stored = [row for row in rows if "Operator" in row.stored_as]
    fit = evidence.operator
    if stored:
        facts = [f"{len(stored)} changes are stored as W(I+G) with a map G of low rank", *rank_facts(stored)]
        yield _operator_claim("certain", facts, len(stored))
    elif fit is not None and fit.explained >= 0.9:
        words = {KEYS: "keys", VALUES: "values"}
        mine = [row for row in rows if row.role in fit.roles]
        facts = [
            f"one G for the {' and '.join(words[role] for role in fit.roles)}, solved from {fit.fitted} "
            f"sites, explains {100 * fit.explained:.2f} % of the change of {fit.held_out} others",
            f"effective rank of G: {fit.effective_rank:.1f}",
            *size_facts(mine),
        ]
        yield _operator_claim("certain" if fit.explained >= 0.98 else "likely", facts, len(mine))
    elif _only(evidence, rows) and any(kind_of(row) in ("low_rank", "dense", "unknown") for row in rows):
        facts = [*rank_facts(rows), *size_facts(rows)]
        if fit is not None:
            facts.append(
                f"one shared G explains only {max(0.0, 100 * fit.explained):.0f} % of held-out sites"
            )
        statement = "A change of cross-attention keys and values alone, not of the form W(I+G)."
        yield _claim("cross-attention", "unet", "likely", statement, facts, len(rows))


def _mask(evidence: Evidence) -> Iterator[Claim]:
    rows = evidence.of_kind("mask")
    if not rows:
        return
    factors = [row.factor for row in rows if row.factor is not None]
    changed, elements = sum(row.changed for row in rows), sum(row.elements for row in rows)
    facts = [
        f"{changed:,} of {elements:,} elements ({100 * changed / elements:.2g} %) changed",
        places(rows),
    ]
    doing = "changed by factors"
    if factors:
        low, high = min(factors), max(factors)
        doing = "set to zero" if max(abs(low), abs(high)) < 1e-3 else f"scaled by {span(low, high)}"
        misfit = max(row.misfit or 0.0 for row in rows)
        facts.append(f"one factor per tensor leaves at most {misfit:.1e} of the squared change over")
    yield _claim("element-mask", subjects(rows), "certain", f"Single elements {doing}.", facts, len(rows))


def _scaled(evidence: Evidence) -> Iterator[Claim]:
    rows = evidence.of_kind("scaled")
    if rows:
        factors = [row.factor for row in rows if row.factor is not None]
        statement = f"Whole tensors scaled by {span(min(factors), max(factors))}."
        yield _claim("scaled", subjects(rows), "certain", statement, [places(rows)], len(rows))


def _embedding_rows(evidence: Evidence) -> Iterator[Claim]:
    for row in evidence.of_kind("places"):
        if row.role == "token_embedding" and row.structure == "rows":
            facts = [f"{row.rows[0]} of {row.rows[1]} rows changed"]
            statement = "The vectors of single tokens were changed."
            yield _claim("token-rows", row.component, "certain", statement, facts, 1)


def _places_only(evidence: Evidence) -> Iterator[Claim]:
    rows = [row for row in evidence.of_kind("places") if row.role != "token_embedding"]
    if rows:
        shapes = sorted({row.structure for row in rows})
        facts = [places(rows), f"changed elements fill {' or '.join(shapes)}"]
        statement = "A few elements, rows or columns of weights were changed."
        yield _claim("rows-and-columns", subjects(rows), "certain", statement, facts, len(rows))


def _low_rank(evidence: Evidence) -> Iterator[Claim]:
    rows = [
        row
        for row in evidence.of_kind("low_rank")
        if not (row.component.startswith("text_encoder") and row.role in _MLP)
    ]
    if rows and not (evidence.operator and evidence.operator.explained >= 0.9 and _only(evidence, rows)):
        facts = [places(rows), *rank_facts(rows), *size_facts(rows)]
        statement = "A low-rank change, as a merged LoRA leaves it."
        yield _claim("low-rank", subjects(rows), "likely", statement, facts, len(rows))


def _fine_tune(evidence: Evidence) -> Iterator[Claim]:
    for component, rows in by_component(evidence.of_kind("dense", "unknown")):
        alike = [row for row in evidence.rows if row.component == component]
        share = len(rows) / len(alike)
        facts = [
            f"{len(rows)} of {len(alike)} tensors changed densely",
            *size_facts(rows),
            *rank_facts(rows),
        ]
        if not evidence.has_base:
            facts[0] = f"{len(rows)} tensors changed densely"
        if share >= _EVERYWHERE and evidence.has_base:
            statement = "Changed everywhere, as by fine-tuning, or by merging with another model."
            yield _claim("fine-tune", component, "likely", statement, facts, len(rows))
        elif any(row.role not in (KEYS, VALUES) for row in rows):
            statement = "A dense change of a part, as by fine-tuning that part."
            yield _claim("dense-part", component, "possible", statement, [places(rows), *facts], len(rows))


def _merged(evidence: Evidence) -> Iterator[Claim]:
    fit = evidence.merge
    if fit is not None:
        facts = [
            f"steps towards the other model explain {100 * fit.explained:.2f} % of the change",
            f"share of the other model: {span(fit.lowest, fit.highest)} over {fit.tensors} tensors",
        ]
        if fit.explained >= 0.9:
            sure: Sureness = "certain" if fit.explained >= 0.99 else "likely"
            statement = f"A merge with the other model, about {100 * fit.share:.0f} % of it."
            yield _claim("merge", "all weights", sure, statement, facts, fit.tensors)
        else:
            yield _claim("no-merge", "all weights", "likely", "No merge with that other model.", facts, 0)
        return
    changed = [row for row in evidence.of_kind("dense", "unknown") if row.relative]
    everywhere = len(changed) >= _EVERYWHERE * len(evidence.rows)
    if everywhere and len({row.component for row in changed}) > 1:
        facts = [
            f"{len(changed)} of {len(evidence.rows)} tensors in all components changed",
            *size_facts(changed),
            "two models cannot tell a merge from a fine-tune; name the other one (--other) to find out",
        ]
        statement = "Possibly a merge of two models."
        yield _claim("merge", "all weights", "possible", statement, facts, len(changed))


RULES: Final[tuple[Callable[[Evidence], Iterable[Claim]], ...]] = (
    _nothing,
    _text_mlp,
    _cross_attention,
    _mask,
    _scaled,
    _embedding_rows,
    _places_only,
    _low_rank,
    _fine_tune,
    _merged,
    _cast,
)


def _operator_claim(sure: Sureness, facts: Sequence[str], tensors: int) -> Claim:
    statement = "Cross-attention was edited as W(I+G): one map of the text's features, shared by all sites."
    return _claim("cross-attention-operator", "unet", sure, statement, facts, tensors)


def _claim(
    kind: str, subject: str, sure: Sureness, statement: str, facts: Sequence[str], tensors: int
) -> Claim:
    return Claim(
        kind=kind, subject=subject, sure=sure, statement=statement, evidence=tuple(facts), tensors=tensors
    )


def _only(evidence: Evidence, rows: Sequence[TensorRow]) -> bool:
    """Whether these are all that changed in the U-Net."""
    return len(rows) == len([row for row in evidence.changed if row.component == "unet"])
