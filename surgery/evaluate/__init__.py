"""What an edit did, in numbers with intervals."""

from surgery.evaluate.changes import Change, Probe
from surgery.evaluate.effect import ChangeEffect, EditEffect, ProbeEffect, measure_edit
from surgery.evaluate.pictures import Cache, Sampling
from surgery.evaluate.statistics import difference, ratio, share
from surgery.evaluate.table import as_dict, as_text

__all__ = [
    "Cache",
    "Change",
    "ChangeEffect",
    "EditEffect",
    "Probe",
    "ProbeEffect",
    "Sampling",
    "as_dict",
    "as_text",
    "difference",
    "measure_edit",
    "ratio",
    "share",
]
