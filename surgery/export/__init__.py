"""Patches in forms that other programs read, what their loaders make of them, and proofs by the real ones."""

from surgery.export.job import Knobs
from surgery.export.report import ExportReport
from surgery.export.targets import TARGETS, export_patch

__all__ = ["TARGETS", "ExportReport", "Knobs", "export_patch"]
