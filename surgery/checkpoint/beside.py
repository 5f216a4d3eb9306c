"""What lies beside the weights of two single files: averaged copies, schedules and the like."""

from dataclasses import dataclass

from surgery.checkpoint.digest import entry_digest
from surgery.checkpoint.header import TensorEntry
from surgery.checkpoint.layout import Checkpoint
from surgery.checkpoint.leftovers import Leftover
from surgery.checkpoint.reader import read_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Tensors of one kind that are no weights of the pipeline, and differ between two files.

    Attributes:
        what: The kind, in words.
        keys: Those with other bytes, another type or shape, or in one of the files alone.
        nonfinite: NaN and infinite elements of the second file's.
    """

    what: str
    keys: tuple[str, ...]
    nonfinite: int

    def __str__(self) -> str:
        """In words, with the number of tensors."""
        return str(Leftover(what=self.what, keys=self.keys))


def beside_weights(before: Checkpoint, after: Checkpoint) -> tuple[Beside, ...]:
    """What differs beside the weights, by kind; nothing where one is a folder, which has no such things.

    Every such tensor is read once for its digest, those of ``after`` once more for what is no number.
    """
    if before.layout != "single" or after.layout != "single":
        return ()
    sides = [_beside(checkpoint) for checkpoint in (before, after)]
    kinds = dict.fromkeys(what for side in sides for what, _ in side.values())
    return tuple(found for what in kinds if (found := _differing(what, *sides)) is not None)


def _beside(checkpoint: Checkpoint) -> dict[str, tuple[str, TensorEntry]]:
    """Kind and place of each, by its key in the file."""
    entries = {entry.key: entry for header in checkpoint.headers.values() for entry in header.entries}
    return {key: (one.what, entries[key]) for one in checkpoint.leftovers for key in one.keys}


def _differing(
    what: str, before: dict[str, tuple[str, TensorEntry]], after: dict[str, tuple[str, TensorEntry]]
) -> Beside | None:
    keys = sorted({key for side in (before, after) for key, (kind, _) in side.items() if kind == what})
    other = tuple(key for key in keys if not _same(before.get(key), after.get(key)))
    broken = sum(_nonfinite(after[key][1]) for key in keys if key in after)
    return Beside(what=what, keys=other, nonfinite=broken) if other or broken else None


def _same(one: tuple[str, TensorEntry] | None, other: tuple[str, TensorEntry] | None) -> bool:
    if one is None or other is None:
        return False
    first, second = one[1], other[1]
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return entry_digest(first.key, first).bytes == entry_digest(first.key, second).bytes


def _nonfinite(entry: TensorEntry) -> int:
    if not entry.dtype.is_floating_point:
        return 0
    blocks = (rows for _, rows in read_blocks(entry))
    wide = entry.dtype.itemsize > 1  # torch asks no eight-bit number
    return sum(int((~(rows if wide else rows.float()).isfinite()).sum()) for rows in blocks)
