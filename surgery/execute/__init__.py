"""Running plans: from a recipe and a base to a patch, resumable, nothing half-written."""

from surgery.execute.folder import RunFolder, claim_folder, locked_folder, refuse_taken
from surgery.execute.runner import Computed, check_edits, compute_patch, plan_recipe

__all__ = [
    "Computed",
    "RunFolder",
    "check_edits",
    "claim_folder",
    "compute_patch",
    "locked_folder",
    "plan_recipe",
    "refuse_taken",
]
