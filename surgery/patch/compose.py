"""Several patches of one base as one, and out of it again."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.delta.forms import Dense, Form, LowRank, Operator
from surgery.errors import PatchError, raise_all
from surgery.patch.file import patch_digest
from surgery.patch.match import match_very_base
from surgery.patch.model import Change, Patch, carried, change_at
from surgery.patch.terms import Term, conflicts, content_digest
from surgery.record import JSON
from surgery.store.libraries import library_versions

# Of the largest singular value: what is smaller is a row that others make up, with what rounding left of it.
_DEPENDENT: Final = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two patches that change one tensor.

    Attributes:
        patches: Digests of the two.
        keys: The largest cosine between an input direction that one changes and one of the other's, 0 to 1:
            near 1, each also moves what the other was made for. None where the forms have no such directions.
        rows: Rows of the weight that both change, and all rows.

    In one patch the order of the two changes nothing: both are changes of the base's weight.
    """

    name: str
    patches: tuple[str, str]
    keys: float | None
    rows: tuple[int, int]

    def as_json(self) -> dict[str, JSON]:
        """As plain data."""
        return {
            "tensor": self.name,
            "patches": list(self.patches),
            "keys": self.keys,
            "rows": list(self.rows),
        }


def compose_patches(patches: Sequence[Patch], base: Path | None = None) -> Patch:
    """One patch that does what all of them do to their common base; their order does not matter.

    Terms are put side by side, not summed, so that a part can be taken out again. All are changes of the
    base: none sees what another did.

    Args:
        patches: At least two, all different.
        base: Their base; needed only where two of them touch one tensor, to record the outcome.

    Raises:
        PatchError: when there are fewer than two, one comes twice, they have different bases, claim the same
            elements, or ``base`` is needed and missing, or is not theirs; all faults at once.
    """
    raise_all(PatchError, list(_misfits(patches)))
    terms = tuple(sorted((term for patch in patches for term in patch.terms), key=content_digest))
    raise_all(PatchError, list(conflicts(_labelled(patches))))
    members = [member for patch in patches for member in _members(patch)]
    return _assembled(terms, patches, base, sorted(members, key=lambda member: str(member["patch"])))


def _labelled(patches: Sequence[Patch]) -> list[Term]:
    """The terms, each with its patch's digest beside its source: two edits of one method are told apart."""
    return [
        replace(term, source=f"{term.source} ({patch_digest(patch)[:12]})")
        for patch in patches
        for term in patch.terms
    ]


def take_out(patch: Patch, part: str, base: Path | None = None) -> Patch:
    """A composed patch without one of its parts: what composing the others would have given.

    Args:
        patch: From `compose_patches`.
        part: The digest of the part, or its beginning.
        base: Needed only where other parts touch the part's tensors.

    Raises:
        PatchError: when ``patch`` is not composed, or has no such part, or several.
    """
    members = _members(patch)
    found = [member for member in members if str(member["patch"]).startswith(part)]
    if len(members) < 2 or len(found) != 1:
        known = ", ".join(str(member["patch"])[:12] for member in members)
        raise PatchError(
            f"{part!r} names {len(found)} parts of the patch, which has {known}. Name one, of two or more."
        )
    gone = Counter(cast(list[str], found[0]["terms"]))
    kept: list[Term] = []
    touched: set[str] = set()
    for term in patch.terms:
        digest = content_digest(term)
        if gone[digest]:
            gone[digest] -= 1
            touched |= term.delta.terms.keys()
        else:
            kept.append(term)
    names = sorted({name for term in kept for name in term.delta.terms})
    rest = replace(
        patch, terms=tuple(kept), changes={name: patch.changes[name] for name in names}, provenance={}
    )
    left = [member for member in members if member is not found[0]]
    return _recorded(carried(rest, [patch]), touched & set(names), base, left)


def overlaps(patches: Sequence[Patch]) -> Iterator[Overlap]:
    """Tensors that two patches both change, and how far they get in each other's way."""
    for first, second in combinations(patches, 2):
        for name in sorted(first.changes.keys() & second.changes.keys()):
            yield Overlap(
                name=name,
                patches=(patch_digest(first), patch_digest(second)),
                keys=_common_keys(_forms(first, name), _forms(second, name)),
                rows=_common_rows(_forms(first, name), _forms(second, name), first.changes[name].shape),
            )


def _forms(patch: Patch, name: str) -> list[Form]:
    return [term.delta.terms[name] for term in patch.terms if name in term.delta.terms]


def _common_keys(first: Sequence[Form], second: Sequence[Form]) -> float | None:
    """The largest cosine between the row spaces of low-rank changes."""
    spaces = []
    for forms in (first, second):
        rows = [
            (form.right if isinstance(form, LowRank) else form.left.T).double()
            for form in forms
            if isinstance(form, LowRank | Operator)
        ]
        if not rows:
            return None
        spaces.append(_row_space(torch.cat(rows)))
    if not all(space.numel() for space in spaces):
        return 0.0
    return float(torch.linalg.matrix_norm(spaces[0].T @ spaces[1], ord=2).clamp(max=1))


def _common_rows(first: Sequence[Form], second: Sequence[Form], shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows that both change, and all of them; an operator changes every row."""
    count = shape[0] if shape else 1
    sides = []
    for forms in (first, second):
        touched = torch.zeros(count, dtype=torch.bool)
        for form in forms:
            touched |= _rows_of(form, count)
        sides.append(touched)
    return int((sides[0] & sides[1]).sum()), count


def _rows_of(form: Form, count: int) -> Tensor:
    match form:
        case Operator():
            return torch.ones(count, dtype=torch.bool)
        case LowRank():
            return (form.left != 0).any(1)
        case Dense():
            return (form.values.reshape(count, -1) != 0).any(1)
        case _:
            return form.places.mask().reshape(count, -1).any(1)


def _row_space(rows: Tensor) -> Tensor:
    """An orthonormal basis, in columns; rows of nothing, and those that others make up, add none."""
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    if not values.numel():  # a change of rank nought
        return rows.new_zeros((rows.shape[1], 0))
    return torch.as_tensor(right[values > _DEPENDENT * values.amax()].T)


def _misfits(patches: Sequence[Patch]) -> Iterator[str]:
    if len(patches) < 2:
        yield f"{len(patches)} patches were given; at least two were expected."
        return
    digests = [patch_digest(patch) for patch in patches]
    for digest in sorted({digest for digest in digests if digests.count(digest) > 1}):
        yield f"the patch {digest[:12]} comes twice; a patch is applied once. Leave one out."
    first = patches[0]
    for patch, digest in zip(patches[1:], digests[1:], strict=True):
        if patch.architecture != first.architecture or patch.roots != first.roots:
            yield (
                f"the patch {digest[:12]} was made for another base than {digests[0][:12]}. "
                f"{_hint(first, patch)}"
            )


def _hint(first: Patch, second: Patch) -> str:
    """What two patches of different bases may have to do with each other."""
    shared = first.changes.keys() & second.changes.keys()
    if shared and all(second.changes[name].before == first.changes[name].after for name in shared):
        return "It was made on top of the other: apply one after the other, or diff the ends."
    return "Only patches of one base can be composed; apply one, and make the other again on the outcome."


def origins(patch: Patch) -> Iterator[Mapping[str, JSON]]:
    """The provenance of each patch that this one was composed of; its own when it was not composed."""
    for member in _members(patch):
        told = member.get("provenance")
        if isinstance(told, Mapping):
            yield told


def _members(patch: Patch) -> list[Mapping[str, JSON]]:
    """The patches that this one was composed of; itself when it was not composed."""
    composed = patch.provenance.get("composed")
    if isinstance(composed, list):
        return [cast(Mapping[str, JSON], member) for member in composed]
    terms: list[JSON] = [content_digest(term) for term in patch.terms]
    return [{"patch": patch_digest(patch), "terms": terms, "provenance": dict(patch.provenance)}]


def _assembled(
    terms: tuple[Term, ...], patches: Sequence[Patch], base: Path | None, members: list[Mapping[str, JSON]]
) -> Patch:
    changes: dict[str, Change] = {}
    shared: set[str] = set()
    for patch in patches:
        shared |= changes.keys() & patch.changes.keys()
        changes |= patch.changes
    ordered = {name: changes[name] for name in sorted(changes)}
    whole = carried(replace(patches[0], terms=terms, changes=ordered), patches)
    return _recorded(whole, shared, base, members)


def _recorded(patch: Patch, stale: set[str], base: Path | None, members: list[Mapping[str, JSON]]) -> Patch:
    """The patch with the outcome of the ``stale`` tensors computed anew, and where its parts came from."""
    changes = dict(patch.changes)
    if stale:
        checkpoint = _base_for(patch, stale, base)
        for name in sorted(stale):
            changes[name] = change_at(patch.terms, checkpoint, name, changes[name].before)
    composed: list[JSON] = [dict(member) for member in members]
    provenance: dict[str, Any] = {"composed": composed, "versions": library_versions()}
    if len(members) == 1:
        provenance = dict(cast(Mapping[str, JSON], members[0]["provenance"]))
    return replace(patch, changes=changes, provenance=provenance)


def _base_for(patch: Patch, names: set[str], base: Path | None) -> Checkpoint:
    if base is None:
        shown = ", ".join(repr(name) for name in sorted(names)[:3])
        more = ", …" if len(names) > 3 else ""
        raise PatchError(
            f"{len(names)} tensors are touched by several patches ({shown}{more}); their "
            "outcome depends on the base's numbers. Name the base."
        )
    checkpoint = open_checkpoint(base)
    match_very_base(patch, checkpoint, names)
    return checkpoint
