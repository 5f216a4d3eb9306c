"""What the real diffusers makes of a file: load it, fuse it, and hash every weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from surgery.checkpoint.components import load_pipeline
from surgery.checkpoint.digest import tensor_digest
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.errors import PatchError, nearest, printable
from surgery.names import canonical
from surgery.patch.file import load_patch
from surgery.patch.match import match_base
from surgery.patch.model import Patch
from surgery.record import JSON

PROVERS: Final = ("diffusers",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a real loader held after it loaded and fused a file.

    Attributes:
        loader: The library and its version.
        tensors: Per tensor that the patch changes, whether it has the values that the patch makes, in half
            precision.
        strays: Tensors that the patch leaves alone, and that came out changed.
        refused: What the loader said when it did not take the file; empty when it did.
    """

    loader: str
    file: Path
    tensors: Mapping[str, bool]
    strays: tuple[str, ...] = ()
    refused: str = ""

    @property
    def holds(self) -> bool:
        """Whether the loader holds the patched model, no more and no less."""
        return not self.refused and not self.strays and all(self.tensors.values())

    def as_json(self) -> dict[str, JSON]:
        """The proof as plain data for ``--json``."""
        return {
            "loader": self.loader,
            "file": str(self.file),
            "holds": self.holds,
            "refused": self.refused,
            "tensors": dict(self.tensors),
            "strays": list(self.strays),
        }


def prove_file(
    file: Path, base: Path, patch: Path, *, loader: str = "diffusers", dtype: torch.dtype = torch.float16
) -> Proof:
    """Load ``file`` into ``base`` with the real loader and hold every weight against the patch's record.

    Args:
        file: A LoRA file.
        base: The checkpoint that the patch was made for, SD 1.x, 2.x or XL.
        patch: What the file should do.
        loader: The library.
        dtype: The precision that the pipeline runs in.

    Raises:
        PatchError: for a loader that cannot be asked, a missing file, or another base.
    """
    if loader not in PROVERS:
        guess = nearest(loader, PROVERS)
        hint = f"Did you mean {guess!r}?" if guess else "surgery simulate knows the rules of more loaders."
        raise PatchError(f"{loader!r} cannot be asked for a proof; there is {', '.join(PROVERS)}. {hint}")
    if not file.is_file():
        raise PatchError(f"{file} is no file; a LoRA file was expected. Is the path right?")
    edit, checkpoint = load_patch(patch), open_checkpoint(base)
    match_base(edit, checkpoint)
    pipeline = load_pipeline(base, dtype=dtype)
    name = f"diffusers {version('diffusers')}, PEFT {version('peft')}"
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    except Exception as error:  # whatever the library raises is its answer
        said = printable(f"{type(error).__name__}: {error}".strip()).splitlines()[0]
        return Proof(loader=name, file=file, tensors=dict.fromkeys(edit.changes, False), refused=said)
    return _compared(name, file, edit, checkpoint, pipeline, dtype)


def _compared(
    name: str, file: Path, patch: Patch, checkpoint: Checkpoint, pipeline: Any, dtype: torch.dtype
) -> Proof:
    """Every weight of the fused pipeline against the patch, or against the base."""
    tensors, strays = dict.fromkeys(patch.changes, False), []
    for component in checkpoint.weights:
        for path, parameter in getattr(pipeline, component).named_parameters():
            tensor = canonical(component, path)
            held = parameter.detach()
            if tensor in patch.changes:
                found = tensor_digest(tensor, held).value16
                tensors[tensor] = patch.changes[tensor].is_outcome(found, held.dtype)
            elif not torch.equal(held, checkpoint.read(tensor).to(dtype)):
                strays.append(tensor)
    return Proof(loader=name, file=file, tensors=tensors, strays=tuple(strays))
