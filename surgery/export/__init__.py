"""Patches in forms that other programs read, what their loaders make of them, and proofs by the real ones."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.export.job import EXACT_LIMIT_BYTES as EXACT_LIMIT_BYTES
    from surgery.export.job import Knobs as Knobs
    from surgery.export.prove import Proof as Proof
    from surgery.export.prove import prove_file as prove_file
    from surgery.export.report import ExportReport as ExportReport
    from surgery.export.targets import TARGETS as TARGETS
    from surgery.export.targets import export_patch as export_patch

_HOME = {
    "EXACT_LIMIT_BYTES": "job",
    "ExportReport": "report",
    "Knobs": "job",
    "Proof": "prove",
    "TARGETS": "targets",
    "export_patch": "targets",
    "prove_file": "prove",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - names of the lazy table


def __getattr__(name: str) -> object:
    """Load a public name on first use: only proofs need the model libraries."""
    if name not in _HOME:
        raise AttributeError(f"module 'surgery.export' has no attribute {name!r}")
    return getattr(import_module(f"surgery.export.{_HOME[name]}"), name)
