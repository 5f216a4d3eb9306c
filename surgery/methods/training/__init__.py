"""Training as methods share it: what is trained, the loop, its state on disk, and several processes."""

from surgery.methods.training.leaves import Leaves, delta_of, factors_of, weights_alone
from surgery.methods.training.loop import Check, Company, Objective, Task, refuse_half, run_updates
from surgery.methods.training.settings import LoopSettings, Precision, deciding, loop_faults
from surgery.methods.training.state import State

__all__ = [
    "Check",
    "Company",
    "Leaves",
    "LoopSettings",
    "Objective",
    "Precision",
    "State",
    "Task",
    "deciding",
    "delta_of",
    "factors_of",
    "loop_faults",
    "refuse_half",
    "run_updates",
    "weights_alone",
]
