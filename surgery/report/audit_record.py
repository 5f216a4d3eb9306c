"""What an audit found, as plain data: the one source of the JSON, the text and the page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

from surgery.record import JSON, Finding

State: TypeAlias = Literal["same", "cast", "rounded", "changed", "added", "missing", "reshaped"]
"""How a tensor stands between the two sides.

``cast``: the same values in another type, or with another sign of a zero. ``rounded``: other values that are
equal once both sides are rounded to half precision.
"""

Structure: TypeAlias = Literal["nothing", "everything", "most", "rows", "columns", "block", "scattered"]
"""Where in a tensor the changed elements lie."""

Sureness: TypeAlias = Literal["certain", "likely", "possible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Singular values of one change as a matrix ``(d_out, rest)``.

    Attributes:
        values: The largest ones, descending.
        count: How many there are in all.
        exact: False where the randomised method found ``values``.
        rank: How many stand above what rounding explains; with the randomised method, of ``values`` alone.
        held: Share of Σσ² in these.
        effective_rank: (Σσ²)² / Σσ⁴: so many equally strong directions would be as spread out.
        rounding: The largest singular value that rounding alone would give.
        rounding_share: Share of Σσ² that rounding alone would give.
    """

    values: tuple[float, ...]
    count: int
    exact: bool
    rank: int
    held: float
    effective_rank: float
    rounding: float
    rounding_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One tensor of either side.

    Attributes:
        name: Canonical name.
        block: Which part of its component, such as ``down 1``.
        role: What the tensor does there, such as ``cross_value``.
        dtypes: Type before and after; "" on the side that lacks it.
        changed: Elements whose bits differ; with different types, whose values differ in the coarser one.
        zero_signs: Of these, how many differ in the sign of a zero alone.
        largest: Largest absolute change of an element.
        norm: Frobenius norm of the change.
        base_norm: Frobenius norm of the base's weight; 0 without a base.
        factor: What the changed elements were multiplied with, where one number fits.
        misfit: Share of the squared change that this factor leaves over, 0 to 1.
        nonfinite: NaN and infinite elements before and after.
        rows: Changed rows and all rows, of the tensor as a matrix ``(d_out, rest)``.
        columns: The same for columns.
        stored_as: Of a patch: the forms it stores the change in.
    """

    name: str
    component: str
    block: str
    role: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    state: State
    elements: int = 0
    changed: int = 0
    zero_signs: int = 0
    largest: float = 0.0
    norm: float = 0.0
    base_norm: float = 0.0
    rows: tuple[int, int] = (0, 0)
    columns: tuple[int, int] = (0, 0)
    structure: Structure = "nothing"
    factor: float | None = None
    misfit: float | None = None
    nonfinite: tuple[int, int] = (0, 0)
    stored_as: tuple[str, ...] = ()
    spectrum: Spectrum | None = None

    @property
    def relative(self) -> float | None:
        """The norm of the change relative to the base's; None where that is not known, or 0."""
        return self.norm / self.base_norm if self.base_norm else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Sums over the tensors of a component, or of one role in one block of it."""

    component: str
    block: str = ""
    role: str = ""
    tensors: int
    touched: int
    elements: int
    changed: int
    norm: float
    relative: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One thing that the change is, how sure that is, and the numbers that say so."""

    kind: str
    subject: str
    sure: Sureness
    statement: str
    evidence: tuple[str, ...]
    tensors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WordRow:
    """How strongly the change acts on one phrase.

    Attributes:
        strength: Its share relative to the median of all phrases.
        deviations: What the change hears of it beyond a control, above the median of all phrases, in robust
            standard deviations on the logarithmic scale.
        needed: Deviations from which on it would be touched.
        share: How much of its inputs lies in the directions that the change listens to, 0 to 1; of an
            ordinary input, where its own are smaller.
        chance: The largest share that a change of the same sizes about nothing has of any phrase.
        activation: Size of its inputs in usual units; far above 1 the phrase is an odd one to the model.
    """

    phrase: str
    strength: float
    deviations: float
    needed: float
    share: float
    chance: float
    activation: float
    touched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WordReport:
    """Phrases by how strongly the change acts on them, strongest first.

    Attributes:
        statement: What is claimed, in one sentence.
        rows: Every phrase that was asked for; ``touched`` ones are claimed.
        strength: From which on a phrase counts as touched.
        share: Share that it must also reach.
        added: Number of common nouns that it was compared with besides.
        sites: Weights whose change was looked at.
        left_out: Phrases that could not be looked at, and why.
    """

    statement: str
    rows: tuple[WordRow, ...]
    strength: float
    share: float
    added: int
    sites: int
    left_out: tuple[str, ...] = ()

    @property
    def touched(self) -> tuple[str, ...]:
        """The claimed phrases."""
        return tuple(row.phrase for row in self.rows if row.touched)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """Everything an audit says. Plain data: no tensor, no path object.

    Attributes:
        summary: One or two sentences.
        sides: What was compared: per side (``base``, ``edited``, ``patch``) its facts.
        claims: What the change is, the best first.
        totals: Of components.
        cells: Of roles in blocks, in the order of the blocks.
        roles: All roles, in the order they are shown in.
        tensors: Every tensor, in the order of their names.
        words: None where no words were asked for.
        expected: With ``--expect``: what was found (``after`` where the patch is in), per tensor and in all.
        findings: What a reader must know beyond the numbers; faults make the audit fail.
        notes: How the audit was made.
    """

    summary: str
    sides: Mapping[str, Mapping[str, JSON]]
    claims: tuple[Claim, ...]
    totals: tuple[Total, ...]
    cells: tuple[Total, ...]
    roles: tuple[str, ...]
    tensors: tuple[TensorRow, ...]
    words: WordReport | None = None
    expected: Mapping[str, JSON] | None = None
    findings: tuple[Finding, ...] = ()
    notes: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether nothing is at fault: no NaN or infinity, and what was expected is there."""
        return all(finding.severity != "fault" for finding in self.findings)

    def as_json(self) -> dict[str, JSON]:
        """The record as JSON, with the version of its shape."""
        tensors = [{**asdict(row), "relative": row.relative} for row in self.tensors]
        return {"audit": 1, "sound": self.sound, **asdict(self), "tensors": tensors}
