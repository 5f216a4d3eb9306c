"""A patch as a LoRA file that diffusers, ComfyUI, A1111, Forge, InvokeAI and others load."""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.serialise import safetensors_chunks
from surgery.checkpoint.spool import Spool
from surgery.errors import PatchError, raise_all
from surgery.export.job import Job, modules_in
from surgery.export.report import ExportReport
from surgery.patch.factors import Factors, Ranks, choose_ranks, pad, select, truncate
from surgery.patch.kohya import Family, companions, lora_metadata, module_key, unexportable

Shapes = Mapping[str, tuple[int, ...]]

_MISLEADING: Final = ("optimizer", "scheduler", "checkpoint")  # names of files that diffusers skips


def export_universal(job: Job) -> ExportReport:
    """Write the patch as a LoRA under kohya's names; exact, or of a bounded rank.

    Raises:
        PatchError: listing every tensor that cannot travel as a LoRA; or when the exact file would be too
            large, or its name would hide it from diffusers.
        SurgeryError: when the file exists, or the disk refuses.
    """
    _refuse_arguments(job)
    family, knobs = job.family, job.knobs
    left_out = {
        name: reason
        for name, change in job.patch.changes.items()
        if (reason := unexportable(name, change.shape, family))
    }
    left_out |= job.unreachable(job.patch.changes.keys() - left_out.keys())
    names = job.kept(left_out)
    spool = Spool()  # exact factors of many layers are larger than their weights
    changes = {name: spool.keep(job.half_change(name).flatten(start_dim=1)) for name in names}
    everything = (*names, *sorted(companions(names, family)))
    shapes = {name: job.checkpoint.entry(name).shape for name in everything}
    ranks, factors = _factorise(changes, shapes, knobs.rank, spool)
    _refuse_overflow(job, ranks, names)
    tensors = _tensors(factors, shapes, ranks.alpha, family)
    _refuse_size(tensors, knobs.limit_bytes if knobs.rank is None else None)
    errors = {
        name: job.error_of(name, _product(factors[name], ranks.alpha / ranks.of[name], shapes[name]))
        for name in names
    }
    metadata = lora_metadata(family, job.title, ranks.alpha, ranks.of.values(), tensors)
    with atomic_file(job.out, overwrite=job.overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, metadata | job.record(errors, left_out)))
    return job.report(errors, left_out, modules_in(tensors))


def _factorise(
    changes: Mapping[str, Tensor], shapes: Shapes, rank: int | None, spool: Spool
) -> tuple[Ranks, dict[str, Factors]]:
    """Factors of every change, and zeros for the other modules, at ranks that go with one alpha."""

    def kept(factors: Factors) -> Factors:
        return Factors(up=spool.keep(factors.up), down=spool.keep(factors.down))

    bare = {name: _zeros(shape) for name, shape in shapes.items()}
    bare |= {
        name: kept(truncate(change, rank) if rank else select(change)) for name, change in changes.items()
    }
    ranks = choose_ranks(
        {name: factors.up.shape[1] for name, factors in bare.items()},
        {name: sum(_matrix_shape(shape)) for name, shape in shapes.items()},
    )
    return ranks, {name: kept(pad(factors, ranks.of[name], ranks.alpha)) for name, factors in bare.items()}


def _product(factors: Factors, scale: float, shape: tuple[int, ...]) -> Tensor:
    """What a loader adds, in float64: without a rounding where one factor is a selector."""
    return (scale * (factors.up.double() @ factors.down.double())).reshape(shape)


def _refuse_arguments(job: Job) -> None:
    rank, name = job.knobs.rank, job.out.name
    faults = []
    if rank is not None and rank < 1:
        faults.append(
            f"the rank is {rank}; a whole number from 1 was expected, or none for the exact change."
        )
    if any(word in name for word in _MISLEADING):
        faults.append(f"{name} would be skipped by diffusers; avoid {', '.join(_MISLEADING)} in the name.")
    raise_all(PatchError, faults)


def _refuse_size(tensors: Mapping[str, Tensor], limit_bytes: int | None) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if limit_bytes is not None and size > limit_bytes:
        raise PatchError(
            f"the exact LoRA would take {size / 1e6:.0f} MB; the limit is {limit_bytes / 1e6:.0f} MB. Ask "
            "for a bounded rank and take the stated error (--rank), or raise the limit."
        )


def _refuse_overflow(job: Job, ranks: Ranks, names: tuple[str, ...]) -> None:
    largest = {name: job.patch.changes[name].largest for name in names}
    raise_all(
        PatchError,
        [
            f"the change of {name!r} reaches {size:.3g}, too large for a LoRA in half precision. Ship the "
            "patched checkpoint instead (--to checkpoint)."
            for name, size in largest.items()
            if size * max(1.0, ranks.of[name] / ranks.alpha) > torch.finfo(torch.float16).max
        ],
    )


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _tensors(factors: Mapping[str, Factors], shapes: Shapes, alpha: int, family: Family) -> dict[str, Tensor]:
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
