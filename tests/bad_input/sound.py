"""A small base, a patch of it, and what comes of them."""

from pathlib import Path

from surgery.checkpoint import convert_checkpoint, open_checkpoint
from surgery.patch import apply_patch, save_patch
from tests.bad_input.case import Sound
from tests.support.folders import small_weights, write_folder
from tests.support.patches import NAMES, random_patch


def make_sound(folder: Path) -> Sound:
    """All of it in a folder that exists."""
    sound = Sound(
        base=write_folder(folder / "base", small_weights()),
        single=folder / "single.safetensors",
        patch=folder / "patch.safetensors",
        edited=folder / "edited",
        undo=folder / "undo.safetensors",
    )
    convert_checkpoint(open_checkpoint(sound.base), sound.single)
    patch = random_patch(sound.base, NAMES)
    save_patch(patch, sound.patch)
    apply_patch(patch, sound.base, sound.edited, undo=sound.undo)
    return sound
