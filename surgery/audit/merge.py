"""Whether a change is a step towards a second model: ΔW = share · (W₂ - W), the same share everywhere."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery.audit.sides import CheckpointPair
from surgery.checkpoint.layout import Checkpoint
from surgery.report.audit_record import TensorRow


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeFit:
    """How the change lies to the second model.

    Attributes:
        share: Median over tensors of the share that fits best; 0.3 is three tenths of the second model.
        lowest: The smallest of them.
        highest: The largest.
        explained: Share of the squared change of all tensors that each one's own share explains, 0 to 1.
        tensors: How many were compared.
    """

    share: float
    lowest: float
    highest: float
    explained: float
    tensors: int


def fit_merge(sides: CheckpointPair, other: Checkpoint, rows: Sequence[TensorRow]) -> MergeFit | None:
    """The fit over all changed tensors that the second model has too; None where there is none.

    Each is read once from all three checkpoints, in blocks.
    """
    towards = CheckpointPair(base=sides.base, edited=other)
    shares, explained, total = [], 0.0, 0.0
    for row in rows:
        entry = other.tensors.get(row.name)
        if row.state != "changed" or entry is None or entry.shape != row.shape:
            continue
        step = direction = product = 0.0
        for ours, theirs in zip(sides.blocks(row.name), towards.blocks(row.name), strict=True):
            change = (ours.after.double() - ours.before.double()).nan_to_num(0.0, 0.0, 0.0)
            way = (theirs.after.double() - theirs.before.double()).nan_to_num(0.0, 0.0, 0.0)
            step += float(change.square().sum())
            direction += float(way.square().sum())
            product += float(torch.sum(change * way))
        total += step
        if direction > 0:
            shares.append(product / direction)
            explained += product**2 / direction
    if not shares or not math.isfinite(total):
        return None
    return MergeFit(
        share=statistics.median(shares),
        lowest=min(shares),
        highest=max(shares),
        explained=explained / total if total else 0.0,
        tensors=len(shares),
    )
