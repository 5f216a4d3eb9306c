"""Where the shipped recipes and checkpoints lie; the one place that knows.

In a wheel they are ``surgery/_recipes`` and ``surgery/_checkpoints``; in a checkout and an editable install
they are ``recipes`` and ``checkpoints`` beside the package. Paths are used and not ``importlib.resources``,
which does not find data folders outside the package.
"""

from collections.abc import Sequence
from pathlib import Path

from surgery.errors import SurgeryError, nearest

_PACKAGE = Path(__file__).resolve().parent


def recipe_path(name_or_path: str | Path) -> Path:
    """The recipe file at a path, or of that name on the shelf (``quickstart``, ``erase/artists``).

    Raises:
        SurgeryError: when neither exists; the message names the nearest shelf name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise SurgeryError(f"{path} is a folder; a recipe is one YAML file. Name a file inside it.")
    shelved = _shelf("recipes") / f"{name_or_path}.yaml"
    if str(name_or_path) in recipe_names():
        return shelved
    raise SurgeryError(_missing("recipe", str(name_or_path), recipe_names()))


def checkpoint_path(name_or_path: str | Path) -> Path:
    """The checkpoint folder or file at a path, or of that name on the shelf (``pocket-sd``).

    Raises:
        SurgeryError: when neither exists; the message names the nearest shelf name.
    """
    path = Path(name_or_path)
    if path.exists():
        return path
    if str(name_or_path) in checkpoint_names():
        return _shelf("checkpoints") / str(name_or_path)
    raise SurgeryError(_missing("checkpoint", str(name_or_path), checkpoint_names()))


def recipe_names() -> list[str]:
    """Names of all shipped recipes, sorted: the path on the shelf without ``.yaml``."""
    root = _shelf("recipes")
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def checkpoint_names() -> list[str]:
    """Names of all shipped checkpoints and judges, sorted."""
    root = _shelf("checkpoints")
    if not root.is_dir():
        return []
    return sorted(folder.name for folder in root.iterdir() if _is_checkpoint(folder))


def _shelf(name: str) -> Path:
    packed = _PACKAGE / f"_{name}"
    return packed if packed.is_dir() else _PACKAGE.parent / name


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


def _missing(noun: str, name: str, known: Sequence[str]) -> str:
    guess = nearest(name, known)
    hint = f"Did you mean {guess!r}?" if guess else f"Shipped are: {', '.join(known) or 'none'}."
    return f"no {noun} {name!r}: expected a path that exists or the name of a shipped {noun}. {hint}"
