"""The program ``surgery``: a thin skin over the library's own functions."""

from surgery.cli.program import call, main

__all__ = ["call", "main"]
