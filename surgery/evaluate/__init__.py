"""What an edit did, in numbers with intervals."""

from surgery.evaluate.balance import Balance, BalanceEffect, DebiasEffect, GroupEffect, measure_balance
from surgery.evaluate.balance_table import debias_dict, debias_text
from surgery.evaluate.changes import Change, Probe, Section
from surgery.evaluate.effect import ChangeEffect, EditEffect, ProbeEffect, measure_edit, measure_sections
from surgery.evaluate.groups import OTHER, UNDECIDED, Wanted, counted, group_faults, sorted_into
from surgery.evaluate.headlines import headlines
from surgery.evaluate.likeness import frechet_distance
from surgery.evaluate.material import Edited, Material
from surgery.evaluate.pictures import Cache, Painter, Sampling
from surgery.evaluate.probe_table import probes_dict, probes_text
from surgery.evaluate.probes import Probed, ProbeResult, probe_edit
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
from surgery.evaluate.suites import SUITES, sections_of, suite_fault
from surgery.evaluate.table import as_dict, as_text, evaluation_text

__all__ = [
    "OTHER",
    "SUITES",
    "UNDECIDED",
    "Balance",
    "BalanceEffect",
    "Cache",
    "Change",
    "ChangeEffect",
    "DebiasEffect",
    "EditEffect",
    "Edited",
    "GroupEffect",
    "Material",
    "Painter",
    "Probe",
    "ProbeEffect",
    "ProbeResult",
    "Probed",
    "SampleSize",
    "Sampling",
    "Section",
    "Spread",
    "Wanted",
    "advice",
    "as_dict",
    "as_text",
    "counted",
    "debias_dict",
    "debias_text",
    "design_effect",
    "difference",
    "evaluation_text",
    "frechet_distance",
    "group_faults",
    "headlines",
    "holm",
    "measure_balance",
    "measure_edit",
    "measure_sections",
    "measured_spread",
    "p_value",
    "probe_edit",
    "probes_dict",
    "probes_text",
    "ratio",
    "sample_size",
    "sections_of",
    "share",
    "smallest_loss",
    "sorted_into",
    "suite_fault",
]
