"""The second environment, with the older generation of model libraries."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def older_python() -> Path:
    """The interpreter of ``.venv-older``, or the one that the variable SURGERY_OLDER_PYTHON names.

    Raises:
        FileNotFoundError: when ``scripts/test`` has not made it yet.
    """
    named = os.environ.get("SURGERY_OLDER_PYTHON")
    python = Path(named) if named else ROOT / ".venv-older" / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is not there; run scripts/test, which makes .venv-older")
    return python
