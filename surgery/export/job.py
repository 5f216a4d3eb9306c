"""What every export works on: the patch, its base, what was asked for, and what may be left out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from surgery.checkpoint.digest import tensor_digest
from surgery.checkpoint.layout import Checkpoint, Layout
from surgery.checkpoint.serialise import Written
from surgery.delta import Rescale
from surgery.errors import PatchError, raise_all
from surgery.export.report import ExportReport, size_of
from surgery.names import split
from surgery.patch.file import patch_digest
from surgery.patch.kohya import FAMILIES, Family
from surgery.patch.manifest import dump
from surgery.patch.match import Agreement
from surgery.patch.model import Patch
from surgery.patch.rounding import add_once

EXPORT_KEY: Final = "sdpatch.export"
"""Metadata of exports: which patch they are, what they carry and how exactly, and what they leave out."""
ADDITIVE: Final = ("universal-lora", "peft", "lycoris")
"""Targets whose loaders add a change, times a strength; others set weights, or are whole files."""

EXACT_LIMIT_BYTES: Final = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What can be asked of an export; each target takes some.

    Attributes:
        partial: Leave out what the target cannot carry, instead of refusing.
        nearest: Take the nearest half-precision change where none leads to the patch's value.
        rank: Of a LoRA that approximates every change; None for the exact one.
        limit_bytes: The largest exact LoRA.
        layout: Of a merged checkpoint; that of the base when None.
        variant: The word in the names of the files of a folder's variant.
        transformers: The version whose names of text encoders an adapter gets; the installed one when None.
    """

    partial: bool = False
    nearest: bool = False
    rank: int | None = None
    limit_bytes: int = EXACT_LIMIT_BYTES
    layout: Layout | None = None
    variant: str = "surgery"
    transformers: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One export: a patch, its base, how they agree, where it goes, and what is asked.

    Attributes:
        agreements: Per touched tensor, how the base at hand agrees with the patch's.
    """

    target: str
    patch: Patch
    checkpoint: Checkpoint
    agreements: Mapping[str, Agreement]
    out: Path
    knobs: Knobs
    overwrite: bool

    @property
    def family(self) -> Family:
        """How files of this family of models name their layers.

        Raises:
            PatchError: for a family without such files.
        """
        family = FAMILIES.get(self.patch.architecture)
        if family is None:
            raise PatchError(
                f"the patch is for a {self.patch.architecture}; LoRA files and the like exist for "
                f"{', '.join(FAMILIES)}. Ship the patched checkpoint instead (--to checkpoint)."
            )
        return family

    @property
    def title(self) -> str:
        """For people."""
        return str(self.patch.provenance.get("title", "patch"))

    def weight(self, name: str) -> Tensor:
        """The base's weight."""
        return self.checkpoint.read(name)

    def published(self, name: str) -> Tensor:
        """The weight that the patch makes, held against the patch's own record.

        Raises:
            PatchError: when the very base leads to another outcome than the recorded one.
        """
        after = self.patch.edited(name, self.weight(name))
        recorded = self.patch.changes[name].after
        if self.agreements[name] == "bytes" and tensor_digest(name, after).bytes != recorded.bytes:
            raise PatchError(
                f"tensor {name!r} did not come out as the patch records ({recorded.bytes[:12]}). The patch "
                "is damaged, or this machine adds wrongly."
            )
        return after

    def error_of(self, name: str, change: Tensor) -> float:
        """The largest difference of an element when a loader adds ``change`` instead of patching."""
        held = add_once(self.weight(name), change)
        return largest_difference(held, self.published(name))

    def half_change(self, name: str) -> Tensor:
        """The half-precision change that an export may carry, in the shape of the weight."""
        return self.patch.added(name, self.weight(name))[0]

    def unreachable(self, names: Iterable[str]) -> dict[str, str]:
        """Tensors whose new values no half-precision change leads to, and why.

        Where the nearest one will do, only those whose change is too large for half precision.
        """
        lenient = self.knobs.nearest or self.knobs.rank is not None
        faults = {}
        for name in names:
            change, missed = self.patch.added(name, self.weight(name))
            if not bool(change.isfinite().all()):
                largest = self.patch.changes[name].largest
                faults[name] = f"it changes by {largest:.3g}, and half precision ends at 65504"
            elif missed and not lenient:
                faults[name] = (
                    f"{missed} of its new values cannot be reached by adding a half-precision change "
                    "(--nearest takes the nearest and states the error)"
                )
        return faults

    def kept(self, left_out: Mapping[str, str]) -> tuple[str, ...]:
        """The tensors that go into the export.

        Raises:
            PatchError: listing every tensor that cannot, unless a partial export was asked for; or when
                nothing is left.
        """
        advice = "Ship the patched checkpoint (--to checkpoint), or leave the tensor out (--partial)."
        faults = [
            f"{name!r} cannot go into the target {self.target!r}: {reason}. {advice}"
            for name, reason in left_out.items()
        ]
        if not self.knobs.partial:
            raise_all(PatchError, faults)
        names = tuple(name for name in self.patch.changes if name not in left_out)
        if not names:
            listed = "; ".join(f"{name!r}: {reason}" for name, reason in list(left_out.items())[:3])
            raise PatchError(
                f"the target {self.target!r} carries none of the {len(left_out)} tensors that the patch "
                f"changes ({listed}). Ship the patched checkpoint instead (--to checkpoint)."
            )
        return names

    def added_masks(self, names: Iterable[str]) -> tuple[str, ...]:
        """Of these tensors those that the patch masks and that the target changes by an addition."""
        if self.target not in ADDITIVE:
            return ()
        terms = [term.delta.terms for term in self.patch.terms]
        return tuple(name for name in names if any(isinstance(own.get(name), Rescale) for own in terms))

    def record(self, errors: Mapping[str, float], left_out: Mapping[str, str]) -> dict[str, str]:
        """The metadata by which `surgery.export.loaders` and people know what a file is."""
        content = {
            "patch": patch_digest(self.patch),
            "target": self.target,
            "exact": not left_out and not any(errors.values()),
            "tensors": {name: {"largest_error": error} for name, error in errors.items()},
            "left_out": dict(left_out),
        }
        masks = self.added_masks(errors)
        return {EXPORT_KEY: dump(content | {"added_masks": list(masks)} if masks else content)}

    def report(self, errors: Mapping[str, float], left_out: Mapping[str, str], modules: int) -> ExportReport:
        """The report, once everything is written."""
        return ExportReport(
            target=self.target,
            path=self.out,
            size_bytes=size_of(self.out),
            modules=modules,
            errors=errors,
            left_out=left_out,
            added_masks=self.added_masks(errors),
        )


def largest_difference(first: Tensor, second: Tensor) -> float:
    """The largest difference of an element, in float64; -0 equals 0."""
    difference = (first.double() - second.double()).abs()
    return float(difference.max()) if difference.numel() else 0.0


def module_of(name: str) -> str:
    """The layer that a weight or a bias belongs to: its canonical name without the last part."""
    return name.rpartition(".")[0]


def components_of(names: Iterable[str]) -> tuple[str, ...]:
    """The components of some tensors, sorted."""
    return tuple(sorted({split(name)[0] for name in names}))


def modules_in(tensors: Mapping[str, Written]) -> int:
    """Layers of a LoRA-like file: what stands before the first dot of kohya's keys."""
    return len({key.partition(".")[0] for key in tensors})
