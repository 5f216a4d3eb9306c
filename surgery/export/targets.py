"""The kinds of export, as one table, and the one function that writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from surgery.checkpoint.layout import open_checkpoint
from surgery.errors import PatchError, nearest, raise_all
from surgery.export.comfy import export_comfy
from surgery.export.job import Job, Knobs
from surgery.export.lycoris import export_lycoris
from surgery.export.peft import export_peft
from surgery.export.report import ExportReport
from surgery.export.universal import export_universal
from surgery.export.whole import export_checkpoint, export_variant
from surgery.patch.match import match_base
from surgery.patch.model import Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One kind of export: what it is, what writes it, and which knobs it takes beside ``partial``."""

    summary: str
    write: Callable[[Job], ExportReport]
    knobs: tuple[str, ...] = ()


TARGETS: Final[Mapping[str, Target]] = {
    "checkpoint": Target(
        summary="the base with the patch in it, in its own layout or the other one",
        write=export_checkpoint,
        knobs=("layout",),
    ),
    "variant": Target(
        summary="weight files of the touched components, to lie beside those of a folder",
        write=export_variant,
        knobs=("variant",),
    ),
    "universal-lora": Target(
        summary="a LoRA that every loader applies: weights of linear layers and convolutions",
        write=export_universal,
        knobs=("nearest", "rank", "limit_bytes"),
    ),
    "lycoris": Target(
        summary="differences of weights, biases and the U-Net's norms; not for diffusers and kohya",
        write=export_lycoris,
        knobs=("nearest",),
    ),
    "comfy": Target(
        summary="for ComfyUI alone: weights to set, embeddings and norms too, whatever the strength",
        write=export_comfy,
    ),
    "peft": Target(
        summary="an adapter for each touched component, for PEFT",
        write=export_peft,
        knobs=("transformers",),
    ),
}


def export_patch(
    patch: Patch, base: Path, out: Path, *, to: str, knobs: Knobs | None = None, overwrite: bool = False
) -> ExportReport:
    """Write a patch in a form that other programs read.

    What is written was held against the weights that the patch makes before its first byte goes to the disk.

    Args:
        patch: What to write.
        base: The patch's base: a path in any layout.
        out: The new file or folder.
        to: The target, a key of `TARGETS`.
        knobs: What else is asked; by default everything must be carried, and exactly.
        overwrite: Allow ``out`` to be replaced.

    Raises:
        PatchError: for an unknown target or a knob that it does not take; when the base is not the patch's;
            or listing every tensor that the target cannot carry.
        SurgeryError: when ``out`` exists, or the disk refuses.
    """
    knobs = knobs or Knobs()
    if to not in TARGETS:
        guess = nearest(to, TARGETS)
        hint = f"Did you mean {guess!r}?" if guess else f"There are {', '.join(TARGETS)}."
        raise PatchError(f"there is no target {to!r}. {hint}")
    raise_all(PatchError, [_surplus(to, knob) for knob in _asked(knobs) if knob not in TARGETS[to].knobs])
    checkpoint = open_checkpoint(base)
    job = Job(
        target=to,
        patch=patch,
        checkpoint=checkpoint,
        agreements=match_base(patch, checkpoint),
        out=out,
        knobs=knobs,
        overwrite=overwrite,
    )
    return TARGETS[to].write(job)


def _asked(knobs: Knobs) -> list[str]:
    """The knobs that are not as they come, but for the one that all targets take."""
    plain = Knobs()
    changed = [
        field.name for field in fields(Knobs) if getattr(knobs, field.name) != getattr(plain, field.name)
    ]
    return [name for name in changed if name != "partial"]


def _surplus(to: str, knob: str) -> str:
    takers = [name for name, target in TARGETS.items() if knob in target.knobs]
    return f"the target {to!r} takes no --{knob}; that is for {' and '.join(takers)}. Leave it out."
