"""What opening a checkpoint finds, the same for both layouts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from surgery.checkpoint.header import Header, TensorEntry
from surgery.checkpoint.leftovers import Leftover
from surgery.checkpoint.weights import WeightSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Weights by canonical name, headers by file, which files were taken per component, and what is left.

    Attributes:
        averaged: Of a single file, the averaged copy of the U-Net's weights, by canonical name.
        leftovers: Of a single file, what is no weight of a pipeline.
    """

    tensors: Mapping[str, TensorEntry]
    headers: Mapping[Path, Header]
    weights: Mapping[str, WeightSet]
    averaged: Mapping[str, TensorEntry] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
