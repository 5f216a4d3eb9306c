"""A patch as something to audit: the one place here that looks inside patches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from surgery.audit.sides import BLOCK_ELEMENTS, Block, Listed, checkpoint_facts, sliced
from surgery.checkpoint.layout import Checkpoint
from surgery.delta.algebra import materialise
from surgery.delta.forms import Replace, Rescale
from surgery.errors import NumericsError
from surgery.patch import Patch, load_patch, patch_digest, verify_patch
from surgery.patch.match import match_base
from surgery.record import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a patch says of one tensor that it changes: form names, and the numbers of its change."""

    forms: tuple[str, ...]
    changed: int
    largest: float
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedBase:
    """The base of a patch, without and with the patch in it; nothing is written."""

    patch: Patch
    base: Checkpoint

    @property
    def has_base(self) -> bool:
        """Always."""
        return True

    @property
    def tensors(self) -> Mapping[str, Listed]:
        """All of the base's."""
        entries = sorted(self.base.tensors.items())
        return {
            name: Listed(presence="shared", shape=entry.shape, dtypes=(entry.dtype, entry.dtype))
            for name, entry in entries
        }

    @property
    def facts(self) -> Mapping[str, Mapping[str, JSON]]:
        """The patch and its base."""
        return {"base": checkpoint_facts(self.base), "patch": patch_facts(self.patch)}

    def blocks(self, name: str, elements: int = BLOCK_ELEMENTS) -> Iterator[Block]:
        """A tensor that the patch changes; nothing of the others."""
        if name in self.patch.changes:
            before = self.base.read(name)
            yield from sliced(before, self.patch.edited(name, before), elements)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchAlone:
    """A patch without its base: ``before`` is nothing and ``after`` the change itself."""

    patch: Patch

    @property
    def has_base(self) -> bool:
        """Never."""
        return False

    @property
    def tensors(self) -> Mapping[str, Listed]:
        """Those that the patch changes."""
        return {
            name: Listed(presence="shared", shape=change.shape, dtypes=(change.dtype, change.dtype))
            for name, change in sorted(self.patch.changes.items())
        }

    @property
    def facts(self) -> Mapping[str, Mapping[str, JSON]]:
        """The patch."""
        return {"patch": patch_facts(self.patch)}

    def blocks(self, name: str, elements: int = BLOCK_ELEMENTS) -> Iterator[Block]:
        """The change of a tensor; nothing where it depends on the base's weight."""
        change = change_alone(self.patch, name)
        if change is not None:
            yield from sliced(torch.zeros_like(change), change, elements)


def open_patch(path: Path, base: Checkpoint | None) -> PatchedBase | PatchAlone:
    """A patch file to audit, on its base where there is one.

    Raises:
        PatchError: when the file is damaged, or ``base`` is not what it was made for.
    """
    patch = load_patch(path)
    if base is None:
        return PatchAlone(patch=patch)
    match_base(patch, base)
    return PatchedBase(patch=patch, base=base)


def recorded(patch: Patch, name: str) -> Recorded:
    """What a patch records of one tensor."""
    change = patch.changes[name]
    forms = [type(term.delta.terms[name]).__name__ for term in patch.terms if name in term.delta.terms]
    return Recorded(
        forms=tuple(dict.fromkeys(forms)),
        changed=change.changed,
        largest=change.largest,
        norm=change.norm,
    )


def places_alone(patch: Patch, name: str) -> Tensor | None:
    """Which elements a patch sets or rescales (bool); None where it does something else as well."""
    forms = [term.delta.terms[name] for term in patch.terms if name in term.delta.terms]
    marked = torch.zeros(patch.changes[name].shape, dtype=torch.bool)
    for form in forms:
        if not isinstance(form, Replace | Rescale):
            return None
        marked |= form.places.mask()
    return marked


def change_alone(patch: Patch, name: str) -> Tensor | None:
    """The change of one tensor in single precision; None where only the base can tell."""
    total = torch.zeros(patch.changes[name].shape, dtype=torch.float64)
    for term in patch.terms:
        if name in term.delta.terms:
            try:
                total += materialise(term.delta.terms[name]).reshape(total.shape) * term.strength
            except NumericsError:
                return None
    return total.float()


def patch_facts(patch: Patch) -> dict[str, JSON]:
    """What a patch says of itself."""
    return {
        "digest": patch_digest(patch),
        "architecture": patch.architecture,
        "tensors": len(patch.changes),
        "terms": [{"source": term.source, "strength": term.strength} for term in patch.terms],
        "base": {component: root.value16 for component, root in patch.roots.items()},
        "provenance": dict(patch.provenance),
    }


def expectation(patch: Path, edited: Path) -> dict[str, JSON]:
    """How a checkpoint stands to the patch that was expected in it; see `surgery.patch.verify_patch`.

    Raises:
        SurgeryError: when either cannot be read.
    """
    return {"patch": str(patch), **verify_patch(load_patch(patch), edited).as_json()}
