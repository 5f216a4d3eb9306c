"""The program ``surgery``: a thin skin over the library's own functions."""

from surgery.cli.program import main

__all__ = ["main"]
