"""What an export says of itself, whatever its target."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from surgery.record import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written, and what was not.

    Attributes:
        target: The kind of export, as in `surgery.export.targets`.
        path: The file or folder.
        size_bytes: Of all files together.
        modules: Layers in the export, with those of zeros that some loaders need: what loaders count.
        errors: Per tensor carried, the largest difference between an element of the weight that it makes and
            of the weight that the patch makes; 0 when they are equal.
        left_out: Per tensor of the patch that is not in the export, why.
        added_masks: Tensors of which weights are taken away, by a difference that a loader adds: at any other
            strength than 1 those weights are not nothing, and at 2 they are the opposite of what they were.
    """

    target: str
    path: Path
    size_bytes: int
    modules: int
    errors: Mapping[str, float]
    left_out: Mapping[str, str]
    added_masks: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the export makes every weight that the patch makes, in every value."""
        return not self.left_out and not any(self.errors.values())

    def as_json(self) -> dict[str, JSON]:
        """The report as plain data for ``--json``."""
        return {
            "target": self.target,
            "path": str(self.path),
            "size_bytes": self.size_bytes,
            "modules": self.modules,
            "exact": self.exact,
            "tensors": dict(self.errors),
            "left_out": dict(self.left_out),
            "added_masks": list(self.added_masks),
        }


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
