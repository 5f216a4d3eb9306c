"""A patch as a LoRA file that diffusers, ComfyUI, A1111, Forge, InvokeAI and others load."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.checkpoint.serialise import safetensors_chunks
from surgery.errors import PatchError, raise_all
from surgery.patch.factors import Factors, Ranks, choose_ranks, largest_error, pad, select, truncate
from surgery.patch.file import patch_digest
from surgery.patch.kohya import FAMILIES, Family, companions, lora_metadata, module_key, unexportable
from surgery.patch.manifest import dump
from surgery.patch.match import match_base
from surgery.patch.model import Patch

EXACT_LIMIT_BYTES: Final = 128 * 1024 * 1024

_MISLEADING: Final = (
    "optimizer",
    "scheduler",
    "checkpoint",
)  # names diffusers skips when it looks for the file


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraReport:
    """What was written.

    Attributes:
        errors: Per touched tensor, the largest error of an element of its change; 0 when exact.
        modules: Number of modules in the file, with those of zeros: what loaders print as applied.
    """

    path: Path
    size_bytes: int
    alpha: int
    modules: int
    errors: Mapping[str, float]

    @property
    def exact(self) -> bool:
        """Whether every loader that adds in half or single precision gets the patch's own change."""
        return not any(self.errors.values())


def export_lora(
    patch: Patch,
    base: Path,
    path: Path,
    *,
    rank: int | None = None,
    limit_bytes: int = EXACT_LIMIT_BYTES,
    overwrite: bool = False,
) -> LoraReport:
    """Write the patch as a LoRA under kohya's names.

    Args:
        patch: What to write.
        base: The patch's base; shapes of untouched layers come from there.
        path: The new file. "optimizer", "scheduler" or "checkpoint" in its name would hide it from diffusers.
        rank: None for the exact change; else its best approximation of this rank, with the error measured.
        limit_bytes: The largest exact file.
        overwrite: Allow ``path`` to be replaced.

    Raises:
        PatchError: listing every tensor that cannot travel as a LoRA; or when the base is not the patch's, or
            the exact file would be too large.
        SurgeryError: when ``path`` exists, or the disk refuses.
    """
    _refuse_arguments(patch, path, rank)
    checkpoint = open_checkpoint(base)
    match_base(patch, checkpoint)
    changes = _changes(patch, checkpoint, exact=rank is None)
    family = FAMILIES[patch.architecture]
    names = (*changes, *sorted(companions(changes, family)))
    shapes = {name: checkpoint.entry(name).shape for name in names}
    ranks, factors = _factorise(changes, shapes, rank)
    errors = {
        name: largest_error(factors[name], ranks.alpha / ranks.of[name], change)
        for name, change in changes.items()
    }
    tensors = _tensors(factors, shapes, ranks.alpha, family)
    _refuse_outcome(patch, ranks, tensors, limit_bytes if rank is None else None)
    with atomic_file(path, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, _metadata(patch, ranks, errors, tensors)))
    return LoraReport(
        path=path, size_bytes=path.stat().st_size, alpha=ranks.alpha, modules=len(factors), errors=errors
    )


def _changes(patch: Patch, checkpoint: Checkpoint, *, exact: bool) -> dict[str, Tensor]:
    """Per tensor the half-precision change as a matrix.

    Raises:
        PatchError: when ``exact`` is asked for and some new values are out of its reach.
    """
    changes, faults = {}, []
    for name in patch.changes:
        change, missed = patch.added(name, checkpoint.read(name))
        changes[name] = change.flatten(start_dim=1)
        if missed and exact:
            faults.append(
                f"{missed} new values of {name!r} cannot be reached by adding a half-precision change. Ship "
                "the patched checkpoint, or ask for a bounded rank and take the stated error."
            )
    raise_all(PatchError, faults)
    return changes


def _factorise(
    changes: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], rank: int | None
) -> tuple[Ranks, dict[str, Factors]]:
    """Factors of every change, and zeros for the other modules, at ranks that go with one alpha."""
    bare = {name: _zeros(shape) for name, shape in shapes.items()}
    bare |= {name: truncate(change, rank) if rank else select(change) for name, change in changes.items()}
    ranks = choose_ranks(
        {name: factors.up.shape[1] for name, factors in bare.items()},
        {name: sum(_matrix_shape(shape)) for name, shape in shapes.items()},
    )
    return ranks, {name: pad(factors, ranks.of[name], ranks.alpha) for name, factors in bare.items()}


def _refuse_arguments(patch: Patch, path: Path, rank: int | None) -> None:
    family = FAMILIES.get(patch.architecture)
    if family is None:
        raise PatchError(
            f"the patch is for a {patch.architecture}; LoRA files exist for {', '.join(FAMILIES)}. Ship the "
            "patched checkpoint instead."
        )
    faults = [
        f"{name!r} cannot go into a LoRA: {reason}. Ship the patched checkpoint instead."
        for name, change in patch.changes.items()
        if (reason := unexportable(name, change.shape, family))
    ]
    if rank is not None and rank < 1:
        faults.append(
            f"the rank is {rank}; a whole number from 1 was expected, or none for the exact change."
        )
    if any(word in path.name for word in _MISLEADING):
        faults.append(
            f"{path.name} would be skipped by diffusers; avoid {', '.join(_MISLEADING)} in the name."
        )
    raise_all(PatchError, faults)


def _refuse_outcome(
    patch: Patch, ranks: Ranks, tensors: Mapping[str, Tensor], limit_bytes: int | None
) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if limit_bytes is not None and size > limit_bytes:
        raise PatchError(
            f"the exact LoRA would take {size / 1e6:.0f} MB; the limit is {limit_bytes / 1e6:.0f} MB. Raise "
            "the limit, or ask for a bounded rank and take the stated error."
        )
    raise_all(
        PatchError,
        [
            f"the change of {name!r} reaches {change.largest:.3g}, too large for a LoRA in half precision. "
            "Ship the patched checkpoint instead."
            for name, change in patch.changes.items()
            if change.largest * max(1.0, ranks.of[name] / ranks.alpha) > torch.finfo(torch.float16).max
        ],
    )


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _tensors(
    factors: Mapping[str, Factors], shapes: Mapping[str, tuple[int, ...]], alpha: int, family: Family
) -> dict[str, Tensor]:
    """Three tensors per module; kernels of a convolution go to the down factor."""
    tensors = {}
    for name, pair in factors.items():
        key, shape, rank = module_key(name, family), shapes[name], pair.up.shape[1]
        ones = (1,) * (len(shape) - 2)
        tensors[f"{key}.lora_up.weight"] = pair.up.reshape(shape[0], rank, *ones)
        tensors[f"{key}.lora_down.weight"] = pair.down.reshape(rank, *shape[1:])
        tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
    return tensors


def _zeros(shape: tuple[int, ...]) -> Factors:
    rows, columns = _matrix_shape(shape)
    return Factors(
        up=torch.zeros(rows, 0, dtype=torch.float16), down=torch.zeros(0, columns, dtype=torch.float16)
    )


def _metadata(
    patch: Patch, ranks: Ranks, errors: Mapping[str, float], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Kohya's minimum, ModelSpec's, and ours: which patch this is, and how exactly."""
    family = FAMILIES[patch.architecture]
    exactness = {
        "patch": patch_digest(patch),
        "exact": not any(errors.values()),
        "tensors": {
            name: {"module": module_key(name, family), "rank": ranks.of[name], "largest_error": error}
            for name, error in errors.items()
        },
    }
    title = str(patch.provenance.get("title", "patch"))
    common = lora_metadata(family, title, ranks.alpha, ranks.of.values(), tensors)
    return common | {"sdpatch.lora": dump(exactness)}
