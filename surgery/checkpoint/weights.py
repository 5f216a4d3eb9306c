"""Which files of a component folder hold its weights: one file, or shards, in one variant."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from surgery.checkpoint.keymap import WEIGHT_STEMS
from surgery.checkpoint.texts import read_json
from surgery.errors import brief, nearest

PICKLES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth"})
WEIGHT_SUFFIXES: Final = PICKLES | {".safetensors", ".msgpack", ".h5", ".onnx"}

_OTHER_STEMS: Final = ("pytorch_model", "flax_model", "tf_model", "diffusion_flax_model")
"""How copies of a component's weights for other libraries begin."""

_ONE_MODEL: Final = "model"
"""How the weight file of a folder begins that is no pipeline's: transformers' name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSet:
    """The weight files of one component.

    Attributes:
        variant: ``fp16`` for ``model.fp16.safetensors``; None for the plain name.
        files: The one file, or the shards in the order of the index.
        shard_of: Key to file of a sharded set, as the index says; empty without shards.
        index: Of a sharded set.
        surplus: Files that hold the same weights in another encoding, and stay as they are.
    """

    variant: str | None
    files: tuple[Path, ...]
    shard_of: Mapping[str, Path] = field(default_factory=dict)
    index: Path | None = None
    surplus: tuple[Path, ...] = ()


def find_weights(
    folder: Path, component: str, variant: str | None = None
) -> tuple[WeightSet | None, list[str]]:
    """The weights that libraries load from a component folder, and every fault on the way.

    Args:
        folder: The component's.
        component: Its name; any other for the folder of a model that is in no pipeline.
        variant: Which one to take, where the folder has it, as libraries do. Without one the plain name is
            taken where it exists, else the only variant.
    """
    if not folder.is_dir():
        return None, [f"{folder} is missing, but model_index.json names it. Fetch the whole folder again."]
    heads = _heads(folder, WEIGHT_STEMS.get(component, _ONE_MODEL))
    if not heads:
        return None, [_no_weights(folder)]
    taken = variant if variant in heads else None
    if taken is None and None not in heads:
        if len(heads) > 1:
            variants = ", ".join(sorted(str(name) for name in heads))
            return None, [
                f"{folder} holds the variants {variants} and no plain file; name one (surgery convert FOLDER "
                "--to folder --variant NAME -o NEW leaves the others out), or keep one of them."
            ]
        [taken] = heads
    if len(heads[taken]) > 1:
        return None, [f"{folder} holds both a whole weight file and shards of it; keep one of them."]
    files, shard_of, faults = _open_head(heads[taken][0])
    surplus = (
        file
        for file in sorted(folder.iterdir())
        if file.suffix in WEIGHT_SUFFIXES and file not in files and _is_copy(file, component)
    )
    index = heads[taken][0] if shard_of else None
    return (
        WeightSet(variant=taken, files=files, shard_of=shard_of, index=index, surplus=tuple(surplus)),
        faults,
    )


def variant_faults(folder: Path, components: Mapping[str, WeightSet], variant: str | None) -> list[str]:
    """A variant that no component has."""
    if variant is None or any(weights.variant == variant for weights in components.values()):
        return []
    known = {
        name
        for component in components
        for name in _heads(folder / component, WEIGHT_STEMS[component])
        if name is not None
    }
    guess = nearest(variant, known)
    hint = f"Did you mean {guess!r}?" if guess else f"It has {', '.join(sorted(known)) or 'no variant'}."
    return [f"{folder} has no variant {variant!r} of any component. {hint}"]


def second_copies(folder: Path, components: Mapping[str, WeightSet]) -> list[Path]:
    """The files of a folder that hold a component's weights again, and what leads to their shards.

    Files of other names, such as a LoRA beside the weights, are something else.
    """
    copies: list[Path] = []
    for component, weights in components.items():
        leading = {
            file
            for file in (folder / component).iterdir()
            if ".index." in file.name and file != weights.index and _is_copy(file, component)
        }
        copies += sorted({*weights.surplus, *leading})
    return copies


def _is_copy(file: Path, component: str) -> bool:
    """Whether a file is called as a component's weights are, in this or another library's way."""
    stems = (WEIGHT_STEMS.get(component, _ONE_MODEL), *_OTHER_STEMS)
    return re.match(rf"(?:{'|'.join(stems)})[.-]", file.name) is not None


def _heads(folder: Path, stem: str) -> dict[str | None, list[Path]]:
    """Per variant, the weight file or the index that leads to the shards."""
    shard = r"-\d{5}-of-\d{5}"
    name = re.compile(
        rf"{stem}(?:\.(?P<single>(?!.*{shard})[^.]+))?\.safetensors"
        rf"|{stem}\.safetensors\.index(?:\.(?P<sharded>[^.]+))?\.json"
    )
    heads: dict[str | None, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        match = name.fullmatch(file.name)
        if match:
            heads.setdefault(match["single"] or match["sharded"], []).append(file)
    return heads


def _open_head(head: Path) -> tuple[tuple[Path, ...], dict[str, Path], list[str]]:
    """Files, the index's table and faults, for a weight file or an index."""
    if head.suffix == ".safetensors":
        return (head,), {}, []
    expected = "an index with a table 'weight_map' from keys to file names was expected. Fetch it again."
    try:
        table = read_json(head)
    except ValueError as error:
        return (), {}, [f"{head} {error}; {expected}"]
    match table:
        case {"weight_map": dict(names)} if names and all(isinstance(name, str) for name in names.values()):
            pass
        case _:
            return (), {}, [f"{head} has no such table; {expected}"]
    faults = [
        f"{head} names the shard {brief(name)}, which is not beside it. Fetch it again."
        for name in sorted(set(names.values()))
        if not _is_beside(head, name)
    ]
    if faults:
        return (), {}, faults
    shard_of = {key: head.parent / name for key, name in names.items()}
    return tuple(sorted(set(shard_of.values()))), shard_of, []


def _is_beside(head: Path, name: str) -> bool:
    """Whether an index may name this file: one in its own folder, and nowhere else on the disk."""
    plain = Path(name).name == name and name.isprintable() and not set(name) & set("/\\:")
    try:
        return plain and name.endswith(".safetensors") and (head.parent / name).is_file()
    except OSError:  # a name longer than the file system takes
        return False


def _no_weights(folder: Path) -> str:
    found = sorted(file.name for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if any(Path(name).suffix in PICKLES for name in found):
        return (
            f"{folder} holds its weights as a pickle ({', '.join(found)}); safetensors were expected, "
            "since a pickle can run code. Take the safetensors of the same model, or write them from the "
            "pickle's tensors alone: surgery convert FILE --allow-pickle -o FILE.safetensors"
        )
    return f"{folder} holds no weights (*.safetensors expected, found {found}). Fetch the folder again."
