"""Forms as the tensors of a patch file, and back, with every index checked.

======================================================= ======================= =========================
operation                                               form                    parts besides the index
======================================================= ======================= =========================
``add_dense``                                           `Dense`                 ``values``
``add_sparse``                                          `Sparse`                ``values``
``add_lowrank``                                         `LowRank`               ``up``, ``down``
``operator``                                            `Operator`              ``left``, ``right``
``set_rows``, ``set_cols``, ``set_elems``, ``set_full``  `Replace`               ``new``, perhaps ``old``
``scale_rows``, … , ``scale_full``                       `Rescale`               ``factors`` (``scores``)
======================================================= ======================= =========================

The index of rows or columns is a list. That of elements is the smallest of three: ``gaps`` between them, in
one or two bytes each, ``flat`` positions, or ``bits`` (one for each element of the weight). Older files have
``csr`` too (ends of the rows, and a column per element), which never is the smallest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgery.delta.forms import Dense, Form, LowRank, Operator, Replace, Rescale, Sparse
from surgery.delta.places import Kind, Places
from surgery.errors import nearest

_SUFFIX: Final[Mapping[Kind, str]] = {"rows": "rows", "columns": "cols", "elements": "elems", "all": "full"}
_KIND: Final[Mapping[str, Kind]] = {suffix: kind for kind, suffix in _SUFFIX.items()}
OPERATIONS: Final = (
    "add_dense",
    "add_sparse",
    "add_lowrank",
    "operator",
    *(f"{verb}_{suffix}" for verb in ("set", "scale") for suffix in _KIND),
)
_INDEX_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "": (),
    "list": ("index",),
    "flat": ("index",),
    "gaps": ("gaps",),
    "csr": ("row_ends", "columns"),
    "bits": ("bits",),
}
# The largest number of each type that gaps are written in.
_GAPS: Final[Mapping[torch.dtype, int]] = {torch.uint8: (1 << 8) - 1, torch.uint16: (1 << 16) - 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A form as a patch file has it: the operation, how its index is written, and the tensors by part."""

    op: str
    index: str
    parts: Mapping[str, Tensor]


def encode(form: Form) -> Encoded:
    """A form as a patch file has it."""
    match form:
        case Dense():
            return Encoded(op="add_dense", index="", parts={"values": form.values})
        case LowRank():
            return Encoded(op="add_lowrank", index="", parts={"up": form.left, "down": form.right})
        case Operator():
            return Encoded(op="operator", index="", parts={"left": form.left, "right": form.right})
    index, parts = _index(form.places)
    suffix = _SUFFIX[form.places.kind]
    match form:
        case Sparse():
            return Encoded(op="add_sparse", index=index, parts={**parts, "values": form.values})
        case Replace():
            old = {} if form.old is None else {"old": form.old}
            return Encoded(op=f"set_{suffix}", index=index, parts={**parts, "new": form.new, **old})
        case Rescale():
            scores = {} if form.scores is None else {"scores": form.scores.half()}
            parts |= {"factors": form.factors, **scores}
            return Encoded(op=f"scale_{suffix}", index=index, parts=parts)


def with_index(form: Form, keep: Callable[[Tensor], Tensor]) -> Form:
    """The same form with the index of its places, eight bytes each, kept elsewhere."""
    if isinstance(form, Sparse | Replace | Rescale) and form.places.index is not None:
        return replace(form, places=replace(form.places, index=keep(form.places.index)))
    return form


def decode(op: str, index: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Form:
    """The form of a weight of that shape.

    Raises:
        ValueError: when the operation is unknown, parts are missing, or an index is none; the message
            continues "tensor <name> ".
        NumericsError: when the parts do not fit each other.
    """
    if op not in OPERATIONS:
        raise ValueError(f"is changed by {op!r}; nearest known operation: {nearest(op, OPERATIONS)!r}")
    if index not in _INDEX_PARTS:
        raise ValueError(
            f"has an index written as {index!r}; one of {', '.join(filter(None, _INDEX_PARTS))} was expected"
        )
    verb, _, suffix = op.partition("_")
    wanted = {
        "add_dense": {"values"},
        "add_sparse": {"values"},
        "add_lowrank": {"up", "down"},
        "operator": {"left", "right"},
    }.get(op, {"new"} if verb == "set" else {"factors"})
    wanted |= set(_INDEX_PARTS[index])
    perhaps = {"set": {"old"}, "scale": {"scores"}}.get(verb, set())
    if parts.keys() - perhaps != wanted:
        raise ValueError(f"has the parts {sorted(parts)}; {sorted(wanted)} were expected")
    if op == "add_dense":
        return Dense(parts["values"])
    if op == "add_lowrank":
        return LowRank(parts["up"], parts["down"])
    if op == "operator":
        return Operator(parts["left"], parts["right"])
    kind = "elements" if op == "add_sparse" else _KIND[suffix]
    places = _places(kind, index, parts, shape)
    if op == "add_sparse":
        return Sparse(places, parts["values"])
    if verb == "set":
        return Replace(places, parts["new"], parts.get("old"))
    return Rescale(places, parts["factors"], parts.get("scores"))


def _index(places: Places) -> tuple[str, dict[str, Tensor]]:
    """How the places are written, and the tensors that say so."""
    if places.index is None:
        return "", {}
    limit = prod(places.shape)
    if places.kind != "elements":
        return "list", {"index": _narrow(places.index, max(places.shape[:2]))}
    return _smallest(places.index, limit)


def _smallest(index: Tensor, limit: int) -> tuple[str, dict[str, Tensor]]:
    """The shortest way to write elements; the others are never made, since a shape may be a lie."""
    skipped = _skipped(index)
    flat = len(index) * _type_for(limit).itemsize
    sizes: dict[tuple[str, torch.dtype], int] = {("flat", torch.int64): flat}
    for kind, most in _GAPS.items():
        sizes["gaps", kind] = (len(index) + int((skipped // most).sum())) * kind.itemsize
    sizes["bits", torch.uint8] = -(-limit // 8)
    name, kind = min(sizes, key=lambda choice: sizes[choice])
    if name == "gaps":
        return name, {"gaps": gaps_of(index, kind)}
    return name, {"index": _narrow(index, limit)} if name == "flat" else {"bits": _bits(index, limit)}


def _narrow(index: Tensor, limit: int) -> Tensor:
    """Whole numbers below ``limit`` in the narrowest type of the format."""
    return index.to(_type_for(limit))


def _type_for(limit: int) -> torch.dtype:
    if limit <= 1 << 16:
        return torch.uint16
    return torch.int32 if limit <= 1 << 31 else torch.int64


def _skipped(index: Tensor) -> Tensor:
    """How many positions lie between each element and the one before it."""
    return torch.diff(index, prepend=torch.tensor([-1])) - 1


def gaps_of(index: Tensor, kind: torch.dtype) -> Tensor:
    """How many positions lie between each element and the one before it.

    The largest number of the type stands for so many positions without an element at their end.
    """
    skipped, most = _skipped(index), _GAPS[kind]
    whole = skipped // most
    found = torch.full((len(index) + int(whole.sum()),), most, dtype=torch.int64)
    found[torch.arange(len(index)) + whole.cumsum(0)] = skipped % most
    return found.to(kind)


def _bits(index: Tensor, limit: int) -> Tensor:
    marks = np.zeros(limit, np.bool_)
    marks[index.numpy()] = True
    return torch.from_numpy(np.packbits(marks, bitorder="little"))


def _places(kind: Kind, index: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Places:
    limit = prod(shape)
    expected = {"all": ("",), "elements": ("gaps", "flat", "csr", "bits")}.get(kind, ("list",))
    if index not in expected:
        raise ValueError(f"names its {kind} by {index!r}; {' or '.join(map(repr, expected))} was expected")
    for part in _INDEX_PARTS[index]:
        if parts[part].dtype.is_floating_point or parts[part].ndim != 1:
            raise ValueError(f"has an index {part!r} that is no list of whole numbers")
    if index == "bits" and parts["bits"].dtype != torch.uint8:
        raise ValueError(f"has bits of the type {parts['bits'].dtype}; uint8 was expected")
    if index == "":
        return Places(kind, shape)
    if index == "bits":
        marks: NDArray[np.uint8] = np.unpackbits(parts["bits"].numpy(), bitorder="little")
        if len(marks) < limit or len(marks) >= limit + 8 or marks[limit:].any():
            raise ValueError(f"marks {len(marks)} elements; {limit} were expected")
        return Places(kind, shape, torch.from_numpy(np.flatnonzero(marks[:limit])))
    if index == "gaps":
        return Places(kind, shape, _from_gaps(parts["gaps"]))
    if index == "csr":
        return Places(kind, shape, _from_csr(parts["row_ends"].long(), parts["columns"].long(), shape))
    return Places(kind, shape, parts["index"].long())


def _from_gaps(gaps: Tensor) -> Tensor:
    if gaps.dtype not in _GAPS:
        raise ValueError(f"has gaps of the type {gaps.dtype}; uint8 or uint16 was expected")
    most = _GAPS[gaps.dtype]
    steps = gaps.long()
    is_element = steps != most
    if len(steps) and not bool(is_element[-1]):
        raise ValueError("has gaps that end without an element")
    return (torch.where(is_element, steps + 1, steps).cumsum(0) - 1)[is_element]


def _from_csr(row_ends: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not shape or len(row_ends) != shape[0]:
        raise ValueError(f"has {len(row_ends)} ends of rows; its shape is {shape}")
    width = prod(shape[1:])
    counts = torch.diff(row_ends, prepend=torch.zeros(1, dtype=torch.int64))
    if bool((counts < 0).any()) or int(counts.sum()) != len(columns) or bool((columns >= width).any()):
        raise ValueError("has ends of rows and columns that do not fit each other")
    return torch.repeat_interleave(torch.arange(shape[0]), counts) * width + columns
