"""Checkpoints on disk: layouts, key maps, lazy reading, digests, streaming writing, and their models."""

from typing import TYPE_CHECKING

from surgery.lazy import lazy

if TYPE_CHECKING:
    from surgery.checkpoint.convert import convert_checkpoint as convert_checkpoint
    from surgery.checkpoint.digest import Digest as Digest
    from surgery.checkpoint.digest import Fingerprint as Fingerprint
    from surgery.checkpoint.digest import component_roots as component_roots
    from surgery.checkpoint.digest import tensor_digest as tensor_digest
    from surgery.checkpoint.layout import Checkpoint as Checkpoint
    from surgery.checkpoint.layout import open_checkpoint as open_checkpoint
    from surgery.checkpoint.writer import write_checkpoint as write_checkpoint

_HOME = {
    "Checkpoint": "layout",
    "Digest": "digest",
    "Fingerprint": "digest",
    "component_roots": "digest",
    "convert_checkpoint": "convert",
    "open_checkpoint": "layout",
    "tensor_digest": "digest",
    "write_checkpoint": "writer",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - names of the lazy table

__getattr__ = lazy(__name__, _HOME)  # `surgery.checkpoint.atomic` needs no torch
