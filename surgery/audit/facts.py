"""Numbers about changed tensors, put into words: what the claims of an audit rest on."""

import statistics
from collections.abc import Iterable, Sequence

from surgery.anatomy.atlas import block_order
from surgery.report.audit_record import TensorRow


def by_component(rows: Iterable[TensorRow]) -> list[tuple[str, list[TensorRow]]]:
    """Components and their tensors, sorted by component."""
    groups: dict[str, list[TensorRow]] = {}
    for row in rows:
        groups.setdefault(row.component, []).append(row)
    return sorted(groups.items())


def subjects(rows: Sequence[TensorRow]) -> str:
    """The components of some tensors: ``text_encoder, unet``."""
    return ", ".join(dict.fromkeys(row.component for row in rows))


def places(rows: Sequence[TensorRow]) -> str:
    """How many tensors, of which roles, in which blocks."""
    roles = ", ".join(dict.fromkeys(row.role for row in rows))
    blocks = block_order(row.block for row in rows)
    shown = ", ".join(blocks[:6]) + (f" and {len(blocks) - 6} more blocks" if len(blocks) > 6 else "")
    return f"{len(rows)} tensors: {roles} in {shown}"


def rank_facts(rows: Sequence[TensorRow]) -> list[str]:
    """Smallest and largest rank; nothing where no spectrum is known."""
    spectra = [row.spectrum for row in rows if row.spectrum is not None]
    if not spectra:
        return []
    ranks = [one.rank for one in spectra]
    full = [one.count for one in spectra]
    return [f"rank above rounding {_spread(ranks)} of {_spread(full)}"]


def size_facts(rows: Sequence[TensorRow]) -> list[str]:
    """Relative sizes of the changes; nothing without a base."""
    sizes = [row.relative for row in rows if row.relative is not None]
    if not sizes:
        return []
    middle = statistics.median(sizes)
    return [f"‖ΔW‖/‖W‖ {min(sizes):.2g} to {max(sizes):.2g}, median {middle:.2g}"]


def _spread(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def span(low: float, high: float) -> str:
    """One number, or from where to where where they differ by more than half a percent."""
    return f"{low:.3g}" if high - low <= 0.005 * max(1.0, abs(high)) else f"{low:.3g} to {high:.3g}"
