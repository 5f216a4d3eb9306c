"""Patches: the file, applying and reverting, verifying, in a living pipeline, and as a LoRA."""

from surgery.patch.apply import ApplyReport, apply_patch
from surgery.patch.file import is_patch, load_patch, patch_digest, save_patch
from surgery.patch.lora import LoraReport, export_lora
from surgery.patch.model import Change, Patch, make_patch
from surgery.patch.revert import revert_patch
from surgery.patch.runtime import applied
from surgery.patch.terms import Term
from surgery.patch.verify import VerifyReport, verify_patch

__all__ = [
    "ApplyReport",
    "Change",
    "LoraReport",
    "Patch",
    "Term",
    "VerifyReport",
    "applied",
    "apply_patch",
    "export_lora",
    "is_patch",
    "load_patch",
    "make_patch",
    "patch_digest",
    "revert_patch",
    "save_patch",
    "verify_patch",
]
