"""Patches: the file, applying and reverting, verifying, composing, and from a difference."""

from surgery.patch.apply import ApplyReport, apply_patch
from surgery.patch.compose import Overlap, compose_patches, overlaps, take_out
from surgery.patch.describe import describe_patch
from surgery.patch.diff import Difference, diff_checkpoints
from surgery.patch.file import is_patch, load_patch, patch_digest, save_patch
from surgery.patch.model import Change, Patch, make_patch
from surgery.patch.revert import revert_patch
from surgery.patch.runtime import applied
from surgery.patch.terms import Term
from surgery.patch.thin import thinned
from surgery.patch.undo import is_undo, read_undo
from surgery.patch.verify import VerifyReport, verify_patch

__all__ = [
    "ApplyReport",
    "Change",
    "Difference",
    "Overlap",
    "Patch",
    "Term",
    "VerifyReport",
    "applied",
    "apply_patch",
    "compose_patches",
    "describe_patch",
    "diff_checkpoints",
    "is_patch",
    "is_undo",
    "load_patch",
    "make_patch",
    "overlaps",
    "patch_digest",
    "read_undo",
    "revert_patch",
    "save_patch",
    "take_out",
    "thinned",
    "verify_patch",
]
