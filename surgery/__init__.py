"""Edit Stable Diffusion checkpoints offline and ship the edit as a small patch.

Names are loaded when they are first used, so that ``import surgery`` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from surgery.checkpoint import open_checkpoint as open_checkpoint
    from surgery.patch import applied as applied
    from surgery.patch import apply_patch as apply_patch
    from surgery.patch import load_patch as load_patch
    from surgery.patch import revert_patch as revert_patch
    from surgery.patch import verify_patch as verify_patch
    from surgery.recipe import load_recipe as load_recipe
    from surgery.study.run import run_recipe as run_recipe

__version__ = "0.1.0"

_HOME = {
    "applied": "surgery.patch",
    "apply_patch": "surgery.patch",
    "load_patch": "surgery.patch",
    "load_recipe": "surgery.recipe",
    "open_checkpoint": "surgery.checkpoint",
    "revert_patch": "surgery.patch",
    "run_recipe": "surgery.study.run",
    "verify_patch": "surgery.patch",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - names of the lazy table


def __getattr__(name: str) -> object:
    """Load a public name from its room on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'surgery' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted(__all__)
