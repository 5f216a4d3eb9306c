"""Edit Stable Diffusion checkpoints offline and ship the edit as a small patch.

Names are loaded when they are first used, so that ``import surgery`` stays light.
"""

from typing import TYPE_CHECKING

from surgery.lazy import lazy

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
    "applied": "patch",
    "apply_patch": "patch",
    "load_patch": "patch",
    "load_recipe": "recipe",
    "open_checkpoint": "checkpoint",
    "revert_patch": "patch",
    "run_recipe": "study.run",
    "verify_patch": "patch",
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604 - names of the lazy table

__getattr__ = lazy(__name__, _HOME)


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted(__all__)
