"""What an edit did, in numbers with intervals."""

from surgery.evaluate.balance import Balance, BalanceEffect, DebiasEffect, GroupEffect, measure_balance
from surgery.evaluate.balance_table import debias_dict, debias_text
from surgery.evaluate.changes import Change, Probe
from surgery.evaluate.effect import ChangeEffect, EditEffect, ProbeEffect, measure_edit
from surgery.evaluate.groups import OTHER, UNDECIDED, Wanted, counted, group_faults, sorted_into
from surgery.evaluate.pictures import Cache, Painter, Sampling
from surgery.evaluate.statistics import difference, ratio, share
from surgery.evaluate.table import as_dict, as_text

__all__ = [
    "OTHER",
    "UNDECIDED",
    "Balance",
    "BalanceEffect",
    "Cache",
    "Change",
    "ChangeEffect",
    "DebiasEffect",
    "EditEffect",
    "GroupEffect",
    "Painter",
    "Probe",
    "ProbeEffect",
    "Sampling",
    "Wanted",
    "as_dict",
    "as_text",
    "counted",
    "debias_dict",
    "debias_text",
    "difference",
    "group_faults",
    "measure_balance",
    "measure_edit",
    "ratio",
    "share",
    "sorted_into",
]
