"""The second environment, with the older generation of model libraries."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def older_python() -> Path:
    """The interpreter of ``.venv-older``.

    Raises:
        FileNotFoundError: when ``scripts/test`` has not made it yet.
    """
    python = ROOT / ".venv-older" / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is not there; run scripts/test, which makes it")
    return python
