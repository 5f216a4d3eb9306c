"""A look learned from a folder of pictures: training, its sheets, its losses, and the patch."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoint.atomic import atomic_file, make_folder, write_bytes
from surgery.checkpoint.outputs import refuse_inputs
from surgery.delta import Delta
from surgery.delta.truncate import truncated
from surgery.diffusion import sample_table
from surgery.diffusion.conditions import read_without
from surgery.guidance.gcfg import GcfgSettings, GuidedConcept
from surgery.guidance.guides import GcfgGuide
from surgery.methods.null_text import (
    Check,
    Trained,
    TrainSettings,
    check_settings,
    measure_constants,
    read_pictures,
    save_constants,
    train,
)
from surgery.methods.null_text.pictures import PictureSet
from surgery.methods.null_text.settings import as_json
from surgery.methods.training import deciding
from surgery.names import split
from surgery.patch import Patch, Term, applied, describe_patch, make_patch, patch_digest, save_patch
from surgery.patch.kohya import FAMILIES, unexportable
from surgery.progress import silence
from surgery.record import JSON, Finding, json_digest
from surgery.store import Store
from surgery.store.libraries import library_versions
from surgery.study.loading import pipeline_on
from surgery.study.samples import sheet_of, write_sheet
from surgery.study.wordless import LOOK

_log = logging.getLogger(__name__)

_COLUMNS: Final = (0, 1, 2, 3, 4, 5)
_SHEET_STEPS: Final = 20
_LOSSES: Final = "losses.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What came of a training.

    Attributes:
        patch: As it was written.
        trained: Losses and steps.
        pictures: File names it was learned from.
        findings: What was noticed about the files.
        energies: By tensor, the share of its change's energy that truncation kept; empty without any.
        constants_error: How far predictions with constants are off; None where none were asked for.
        first: Whether this process wrote it; others that trained with it have it in memory alone.
    """

    patch: Patch
    trained: Trained
    pictures: tuple[str, ...]
    findings: tuple[Finding, ...]
    energies: Mapping[str, float] = field(default_factory=dict)
    constants_error: float | None = None
    first: bool = True

    def lines(self) -> Iterator[str]:
        """For people."""
        trained = self.trained
        told = f"{trained.steps} updates on {len(self.pictures)} pictures"
        if trained.held_out:
            first, best = trained.held_out[0][1], dict(trained.held_out)[trained.best]
            told += f"; held-out loss {first:.4f} → {best:.4f} after {trained.best}"
        yield told
        if self.energies:
            kept = {name: share for name, share in self.energies.items() if name in self.patch.changes}
            least = min(kept, key=lambda name: kept[name])
            left_out = len(self.energies) - len(kept)
            yield (
                f"energy kept: {100 * sum(kept.values()) / len(kept):.1f} % on average of {len(kept)} "
                f"weights, {100 * kept[least]:.1f} % of {least}; {left_out} biases, norms and layers that no "
                "LoRA reaches are left out"
            )
        if describe_patch(self.patch)["layout"] == "lora":
            yield "the patch is a LoRA file as it is"
        if self.constants_error is not None:
            yield f"constants: predictions {100 * self.constants_error:.2g} % off"

    def as_json(self) -> dict[str, JSON]:
        """For machines."""
        return {
            "steps": self.trained.steps,
            "best": self.trained.best,
            "losses": list(self.trained.losses),
            "held_out": [list(one) for one in self.trained.held_out],
            "pictures": list(self.pictures),
            "findings": [asdict(finding) for finding in self.findings],
            "energies": dict(self.energies),
            "constants_error": self.constants_error,
        }


def train_look(
    base: Path,
    folder: Path,
    output: Path,
    settings: TrainSettings,
    *,
    truncate: int | None = None,
    constants: Path | None = None,
    tolerance: float = 0.02,
    work: Path | None = None,
    overwrite: bool = False,
    device: str = "cpu",
) -> Look:
    """Train on a folder of pictures, without captions, and write the patch.

    The state, the latents, the losses so far and a sheet of samples at every look at the held-out loss lie in
    a folder beside the patch: a stopped training that is started again goes on from there.

    Args:
        base: The checkpoint.
        folder: Of the pictures.
        output: The patch.
        settings: What is trained, and for how long.
        truncate: The patch is of low-rank changes of at most this rank, with the energy that each keeps;
            None: as it was trained.
        constants: A file for cross-attention as one vector a layer, in the patched U-Net.
        tolerance: How far predictions with those may be off, as a share.
        work: That folder; ``output`` with ``.training`` behind it when left out.
        overwrite: Whether an older patch may be replaced.
        device: Where the models run.

    Several processes that ``accelerate launch`` or ``torchrun`` started share every batch, and the first of
    them writes.

    Raises:
        SurgeryError: when the checkpoint, the pictures or the settings cannot be used.
    """
    check_settings(settings)
    place = work or output.with_name(f"{output.name}.training")
    refuse_inputs(place, [base, folder])
    make_folder(place)
    store = Store(place / "state")
    checkpoint = open_checkpoint(base)
    company = company_here(device)
    models = pipeline_on(base, device if company is None else str(company.device), torch.float32)
    with nullcontext() if company is None else company.main_process_first():
        pictures = read_pictures(models, folder, store=store)
    first = company is None or company.is_main_process
    for finding in pictures.findings if first else ():
        _log.warning("%s: %s", finding.subject, finding.message)
    run = _run_of(settings, pictures, checkpoint, company)
    if first:
        _tell_of_others(place, run)
    beyond = _beyond_loras(checkpoint)
    shown = partial(_shown, models, place, run)
    trained = train(
        models, pictures, settings, store=store, on_check=shown, company=company, leave_out=beyond
    )
    delta: Delta = trained.delta
    energies: dict[str, float] = {}
    if truncate is not None:
        delta, energies = truncated(delta, truncate)
        delta = Delta({name: form for name, form in delta.terms.items() if name not in beyond})
        energies |= dict.fromkeys(energies.keys() & set(beyond), 0.0)
    patch = make_patch(
        [Term(delta=delta, source="null-text training")],
        checkpoint,
        {LOOK: _header(models, settings, trained, pictures)},
    )
    look = Look(
        patch=patch,
        trained=trained,
        pictures=pictures.names,
        findings=pictures.findings,
        energies=energies,
        first=first,
    )
    if not first:
        return look
    save_patch(patch, output, overwrite=overwrite)
    if constants is None:
        return look
    with applied(models, patch):
        found = measure_constants(models, pictures, settings.seed, settings.micro_batch)
    about: dict[str, JSON] = {"patch": patch_digest(patch), "unet": patch.roots["unet"].bytes}
    save_constants(found, constants, tolerance, about, overwrite=overwrite)
    return replace(look, constants_error=found.error)


def _run_of(settings: TrainSettings, pictures: PictureSet, checkpoint: Checkpoint, company: Any) -> str:
    """What tells this training from others in one folder."""
    return json_digest(
        [
            deciding(as_json(settings)),
            [library_versions(), torch.get_num_threads(), 1 if company is None else company.num_processes],
            list(pictures.names),
            pictures.mean.double().sum().item(),
            {name: root.bytes for name, root in checkpoint.fingerprint().roots.items()},
        ]
    )[:12]


def _header(models: Any, settings: TrainSettings, trained: Trained, pictures: PictureSet) -> dict[str, JSON]:
    """What the patch says of itself: under which context it was learned, and how to draw with it."""
    usual = GuidedConcept()
    return {
        "context": "" if bool(read_without(models, "").features.any()) else "zeros",
        "control_weight": GcfgSettings().control_weight,
        "concept_weight": usual.weight,
        "base_strength": usual.base_strength,
        "settings": as_json(settings),
        "steps": trained.best,
        "pictures": {"count": len(pictures), "digest": json_digest(list(pictures.names))},
    }


def _beyond_loras(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Weights of the U-Net that some loader of LoRA files drops or refuses."""
    family = FAMILIES.get(checkpoint.architecture)
    return tuple(
        name
        for name, shape in checkpoint.shapes.items()
        if family is not None and split(name)[0] == "unet" and unexportable(name, tuple(shape), family)
    )


def _tell_of_others(place: Path, run: str) -> None:
    """Say that a folder holds the looks of another training, which this one does not go on from."""
    others = {line["run"] for line in _lines(place / _LOSSES)} - {run}
    if others:
        _log.warning(
            "%s holds another training, of other settings, pictures, libraries or threads: this one starts "
            "anew. The other's state stays there until the folder is deleted; its sheets are replaced.",
            place,
        )


def company_here(device: str) -> Any:
    """The processes that ``accelerate launch`` or ``torchrun`` started together; None for a process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=device == "cpu")


def _shown(models: Any, place: Path, run: str, check: Check) -> None:
    """A sheet and a line for one look; the U-Net has the averaged weights and hears no words."""
    wordless = GcfgGuide(models, [], GcfgSettings(concepts=(), control_weight=0.0))  # the base branch alone
    with silence():
        table = sample_table(models, [""], _COLUMNS, steps=_SHEET_STEPS, guide=wordless)
    heading = f"after {check.step} updates"
    write_sheet(
        sheet_of({heading: table}, ["without words"], _COLUMNS),
        place / f"sheet-{check.step:06d}.png",
        overwrite=True,
    )
    line = {"run": run, "step": check.step, "loss": check.loss, "held_out": check.held_out}
    _noted(place / _LOSSES, line)
    held = "" if check.held_out is None else f", held out {check.held_out:.4f}"
    _log.info("update %d: loss %.4f%s", check.step, check.loss, held)


def _noted(path: Path, line: dict[str, Any]) -> None:
    """The lines of this run's earlier looks and this one, whole or not at all."""
    kept = [one for one in _lines(path) if one["run"] == line["run"] and one["step"] < line["step"]]
    whole = [*kept, line]
    with atomic_file(path, overwrite=True) as temporary:
        write_bytes(temporary, ["".join(f"{json.dumps(one)}\n" for one in whole).encode()])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_text().splitlines()] if path.is_file() else []
