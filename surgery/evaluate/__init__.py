"""What an edit did, in numbers with intervals."""

from surgery.evaluate.changes import Change, Probe
from surgery.evaluate.effect import ChangeEffect, EditEffect, ProbeEffect, measure_edit
from surgery.evaluate.pictures import Cache, Sampling
from surgery.evaluate.sample_size import (
    SampleSize,
    Spread,
    advice,
    design_effect,
    measured_spread,
    sample_size,
    smallest_loss,
)
from surgery.evaluate.significance import holm, p_value
from surgery.evaluate.statistics import difference, ratio, share
from surgery.evaluate.table import as_dict, as_text

__all__ = [
    "Cache",
    "Change",
    "ChangeEffect",
    "EditEffect",
    "Probe",
    "ProbeEffect",
    "SampleSize",
    "Sampling",
    "Spread",
    "advice",
    "as_dict",
    "as_text",
    "design_effect",
    "difference",
    "holm",
    "measure_edit",
    "measured_spread",
    "p_value",
    "ratio",
    "sample_size",
    "share",
    "smallest_loss",
]
