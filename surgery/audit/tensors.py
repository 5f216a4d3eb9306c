"""Every tensor of both sides measured: a few at a time, each a few megabytes at once."""

from dataclasses import replace

import torch

from surgery.anatomy.atlas import place_of
from surgery.audit.measure import Measured, measure
from surgery.audit.patch_side import PatchAlone, change_alone, places_alone, recorded
from surgery.audit.sides import Listed, Sides, matrix_shape
from surgery.audit.spectrum import spectrum
from surgery.progress import track
from surgery.report.audit_record import Spectrum, State, Structure, TensorRow
from surgery.threads import one_thread_each

# Norms beyond these leave single precision in products; no weight of a model is near.
_DECOMPOSED = (1e-12, 1e12)


def tensor_rows(sides: Sides, *, spectra: bool) -> tuple[TensorRow, ...]:
    """One row for each tensor of either side, sorted by name.

    The numbers are made in threads, since reading waits for the disk; spectra one after the other, since each
    uses all cores and may hold 64 MB.
    """
    listed = sides.tensors
    with one_thread_each() as pool:
        rows = pool.map(lambda name: tensor_row(sides, name, listed[name]), listed)
        plain = list(track(rows, "compare", total=len(listed), unit="tensor"))
    if not spectra:
        return tuple(plain)
    changed = [row for row in plain if row.state == "changed" and _can_decompose(sides, row)]
    found = {row.name: decompose(sides, row) for row in track(changed, "spectra", unit="tensor")}
    return tuple(_with_spectrum(row, found.get(row.name)) for row in plain)


def tensor_row(sides: Sides, name: str, listed: Listed) -> TensorRow:
    """The row of one tensor, without its spectrum."""
    place = place_of(name)
    blocks = sides.blocks(name) if listed.presence == "shared" else iter(())
    measured = measure(listed.shape, blocks)
    if isinstance(sides, PatchAlone) and not measured.changed:
        places = places_alone(sides.patch, name)
        if places is not None:
            measured.mark(places)
    before, after = (_dtype(dtype) for dtype in listed.dtypes)
    rows, columns = matrix_shape(listed.shape)
    row = TensorRow(
        name=name,
        component=place.component,
        block=place.block,
        role=place.role,
        shape=listed.shape,
        dtypes=(before, after),
        state=_state(listed, measured),
        elements=rows * columns,
        changed=measured.changed,
        zero_signs=measured.zero_signs,
        largest=measured.largest,
        norm=measured.norm,
        base_norm=measured.base_square**0.5,
        rows=(measured.rows_changed, rows),
        columns=(measured.columns_changed, columns),
        structure=structure(measured),
        factor=measured.factor,
        misfit=measured.misfit,
        nonfinite=(measured.nonfinite_before, measured.nonfinite_after),
    )
    return _as_recorded(sides, row) if isinstance(sides, PatchAlone) else row


def structure(measured: Measured) -> Structure:
    """Where the changed elements lie.

    A row or column counts as changed with one changed element; rows are called the structure when at most
    half of them are changed and at least half of what lies in them is.
    """
    rows, columns = matrix_shape(measured.shape)
    in_rows, in_columns = measured.rows_changed, measured.columns_changed
    if not measured.changed:
        return "nothing"
    if measured.changed == rows * columns:
        return "everything"
    filled = measured.changed >= in_rows * in_columns / 2
    few_rows, few_columns = in_rows <= rows / 2, in_columns <= columns / 2
    if filled and few_rows and few_columns:
        return "block"
    if filled and (few_rows or few_columns):
        return "rows" if few_rows else "columns"
    return "most" if measured.changed >= rows * columns / 2 else "scattered"


def decompose(sides: Sides, row: TensorRow) -> Spectrum:
    """The spectrum of a changed tensor."""
    dtype = row.dtypes[1] or row.dtypes[0]
    return spectrum(
        sides,
        row.name,
        row.shape,
        weight_norm=row.base_norm + row.norm,
        change_norm=row.norm,
        eps=torch.finfo(getattr(torch, dtype)).eps,
    )


def _state(listed: Listed, measured: Measured) -> State:
    match listed.presence:
        case "added" | "missing" | "reshaped":
            return listed.presence
    real = measured.changed - measured.zero_signs
    if not real:
        one_type = listed.dtypes[0] == listed.dtypes[1]
        return "same" if one_type and not measured.changed else "cast"
    # in one type, two models may differ by less than half precision shows, and neither is the other's copy
    copied = listed.dtypes[0] != listed.dtypes[1] or any(measured.rounded_sides)
    return "rounded" if measured.half_equal and copied else "changed"


def _as_recorded(sides: PatchAlone, row: TensorRow) -> TensorRow:
    """Without a base, the patch's own record says how many elements change, and how far."""
    known = recorded(sides.patch, row.name)
    return replace(
        row,
        state="changed" if known.changed else "same",
        changed=known.changed,
        largest=known.largest,
        norm=known.norm,
        stored_as=known.forms,
    )


def _can_decompose(sides: Sides, row: TensorRow) -> bool:
    if isinstance(sides, PatchAlone) and change_alone(sides.patch, row.name) is None:
        return False  # only the base can tell how far its elements change
    floating = getattr(torch, row.dtypes[1]).is_floating_point
    return bool(floating) and min(row.shape, default=0) > 0 and len(row.shape) > 1 and _in_range(row.norm)


def _in_range(norm: float) -> bool:
    return _DECOMPOSED[0] < norm < _DECOMPOSED[1]


def _with_spectrum(row: TensorRow, found: Spectrum | None) -> TensorRow:
    return row if found is None else replace(row, spectrum=found)


def _dtype(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else str(dtype).removeprefix("torch.")
