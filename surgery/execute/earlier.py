"""The patches that a base has in it already, and what they ask later edits to leave where it is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgery.checkpoint import Checkpoint
from surgery.checkpoint.digest import entry_digest
from surgery.errors import PatchError, brief, raise_all
from surgery.patch import Patch, load_patch
from surgery.patch.match import state_of
from surgery.recipe import Recipe
from surgery.record import JSON, file_digest


def digests_of(recipe: Recipe) -> Sequence[JSON]:
    """The sha256 of each file of ``recipe.after``, sorted: their order changes nothing."""
    return sorted(file_digest(recipe.file(name)) for name in recipe.after)


def keys_of(recipe: Recipe, base: Checkpoint) -> tuple[JSON, ...]:
    """What the patches of ``recipe.after`` wrote at, and those before them, as their methods told it.

    Raises:
        PatchError: when one of them is damaged, or is not in ``base``.
    """
    patches = {name: load_patch(recipe.file(name)) for name in recipe.after}
    raise_all(PatchError, [fault for name, patch in patches.items() for fault in _faults(name, patch, base)])
    return tuple(key for patch in patches.values() for key in carried_by(patch.provenance))


def carried_by(provenance: Mapping[str, Any]) -> list[JSON]:
    """The keys that a patch carries, also those of the patches that it was composed of.

    Raises:
        PatchError: when they are no list.
    """
    found: list[JSON] = []
    for name in ("keys", "composed"):
        entries = provenance.get(name, [])
        if not isinstance(entries, list):
            raise PatchError(f"a patch has {brief(entries)} as {name!r}; a list was expected. Make it again.")
        if name == "keys":
            found += entries
            continue
        for member in entries:
            inner = member.get("provenance") if isinstance(member, dict) else None
            found += carried_by(inner) if isinstance(inner, dict) else []
    return found


def _faults(name: str, patch: Patch, base: Checkpoint) -> Iterable[str]:
    states = [
        state_of(change, entry_digest(tensor, base.entry(tensor)), base.entry(tensor).dtype).after
        if tensor in base.tensors and tuple(base.entry(tensor).shape) == change.shape
        else None
        for tensor, change in patch.changes.items()
    ]
    if None in states:
        yield (
            f"{name} is not in {base.path}: {states.count(None)} of the {len(states)} tensors it changes "
            "are not as it leaves them. Name as base the checkpoint that it was applied to; of patches that "
            "were made on top of each other, the last one has the keys of all."
        )
