"""Patches in forms that other programs read, what their loaders make of them, and proofs by the real ones."""

from typing import TYPE_CHECKING

from surgery.lazy import lazy

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

__getattr__ = lazy(__name__, _HOME)  # only proofs need the model libraries
