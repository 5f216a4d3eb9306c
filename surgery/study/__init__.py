"""Whole tasks, from a checkpoint on disk to something to look at."""

from surgery.study.guided import guided_sheet
from surgery.study.run import Run, run_recipe
from surgery.study.samples import sample_sheet, write_sheet

__all__ = ["Run", "guided_sheet", "run_recipe", "sample_sheet", "write_sheet"]
