"""Running plans: from a recipe and a base to a patch, resumable, nothing half-written."""

from surgery.execute.folder import RunFolder, claim_folder, locked_folder
from surgery.execute.runner import Computed, compute_patch, plan_recipe

__all__ = ["Computed", "RunFolder", "claim_folder", "compute_patch", "locked_folder", "plan_recipe"]
