"""Runs a check in the libraries at hand, or in the older generation (diffusers 0.35, transformers 4.57).

A check is a function of `tests.support.checks` that takes and gives plain data.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Literal

from tests.support import checks
from tests.support.older import ROOT, older_python

Generation = Literal["current", "older"]


def run_check(generation: Generation, name: str, *arguments: str | Path) -> dict[str, Any]:
    """What a check of that name says in one of the two generations."""
    words = [str(argument) for argument in arguments]
    if generation == "current":
        result: dict[str, Any] = getattr(checks, name)(*words)
        return result
    command = [str(older_python()), "-m", "tests.support.checks", name, *words]
    paths = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, env={**os.environ, **paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed
