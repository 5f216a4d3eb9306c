"""Patch and undo files that are whole as files, and lie: each value of their texts in turn, and tensors."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from surgery.checkpoint.header import DTYPE_NAMES
from tests.bad_input.case import Case, Place

JSONPath = tuple[str | int, ...]
Tensors = dict[str, Tensor]
Texts = dict[str, str]

NOT_ITSELF = (
    r"does not describe a patch|is not described as one|tensor '|term \d|belongs to no term|no undo file|"
    r"version|lacks the old values|belongs to the patch|would come back as|holds|needs|expected"
)


def opened(path: Path) -> tuple[Tensors, Texts]:
    """The tensors and the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118 - no mapping


def sealed(path: Path, tensors: Tensors, texts: Texts) -> Path:
    """A patch whose digest of its content is right, whatever the content."""
    digest = hashlib.sha256()
    for key in sorted(texts):
        if key.startswith("sdpatch.") and key != "sdpatch.content":
            digest.update(f"{key}\0{texts[key]}\0".encode())
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        shape = ",".join(str(size) for size in tensor.shape)
        digest.update(f"{key}\0{DTYPE_NAMES[tensor.dtype]}\0{shape}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    save_file(tensors, path, metadata={**texts, "sdpatch.content": digest.hexdigest()})
    return path


def paths_in(value: Any, here: JSONPath = ()) -> Iterator[JSONPath]:
    """Every place in a JSON value; of lists the first item, of tables of tensors the first name."""
    if here:
        yield here
    if isinstance(value, dict):
        for place, key in enumerate(value):
            if place == 0 or "/" not in key:
                yield from paths_in(value[key], (*here, key))
    elif isinstance(value, list) and value:
        yield from paths_in(value[0], (*here, 0))


def replaced(value: Any, path: JSONPath, by: Any) -> Any:
    """A copy with something else in one place; with nothing there when ``by`` is GONE."""
    made = copy.deepcopy(value)
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    if by is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = by
    return made


def believed(path: JSONPath, name: str) -> bool:
    """Whether a text is for people, or cannot be held against anything when the file is read."""
    match path[-1]:
        case "source":
            return name != "gone"
        case "changed" | "largest" | "norm":
            return name in ("a number", "a negative number", "infinity", "a huge number")
        case "op":
            return True
        case "carriers" | "roots":
            return name == "a table"
        case _:
            return path[0] == "roots" and name == "gone" and len(path) == 2


GONE: Any = object()
FALSE: Sequence[tuple[str, Any]] = [
    ("gone", GONE),
    ("null", None),
    ("a number", 7),
    ("a negative number", -1),
    ("infinity", float("inf")),
    ("a huge number", 10**400),
    ("a text", "x\x1b[2J"),
    ("a list", []),
    ("a table", {}),
    ("lists in lists", [[[[]]]]),
]


def _texts_changed(key: str, path: JSONPath, by: Any, place: Place) -> Sequence[object]:
    tensors, texts = opened(place.sound.patch)
    texts[key] = json.dumps(replaced(json.loads(texts[key]), path, by))
    return "apply", sealed(place.root / "patch", tensors, texts), place.sound.base, "-o", place.out


def _undo_changed(path: JSONPath, by: Any, place: Place) -> Sequence[object]:
    tensors, texts = opened(place.sound.undo)
    texts["sdpatch.undo"] = json.dumps(replaced(json.loads(texts["sdpatch.undo"]), path, by))
    undo = place.root / "undo"
    save_file(tensors, undo, metadata=texts)
    return "revert", place.sound.patch, place.sound.edited, "-o", place.out, "--undo", undo


def _patch(change: Callable[[Tensors, Texts], object], place: Place) -> Sequence[object]:
    tensors, texts = opened(place.sound.patch)
    change(tensors, texts)
    return "apply", sealed(place.root / "patch", tensors, texts), place.sound.base, "-o", place.out


def _undo(change: Callable[[Tensors, Texts], object], place: Place) -> Sequence[object]:
    tensors, texts = opened(place.sound.undo)
    change(tensors, texts)
    save_file(tensors, place.root / "undo", metadata=texts)
    undo = ("--undo", place.root / "undo")
    return "revert", place.sound.patch, place.sound.edited, "-o", place.out, *undo


def text(key: str, value: str) -> Callable[[Tensors, Texts], object]:
    return lambda tensors, texts: texts.update({key: value})


def without(key: str) -> Callable[[Tensors, Texts], object]:
    return lambda tensors, texts: texts.pop(key)


def each(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors, Texts], object]:
    return lambda tensors, texts: tensors.update({key: change(value) for key, value in tensors.items()})


def first_gone(tensors: Tensors, texts: Texts) -> None:
    del tensors[sorted(tensors)[0]]


def one_more(tensors: Tensors, texts: Texts) -> None:
    tensors["0/unet/foreign::left"] = torch.zeros(2)


# for a program that makes tables of lists, as Python's dict does
PAIRS = (
    '{"layout": "terms", "terms": [{"forms": [[1, 2]], "strength": 1, "source": ""}], '
    '"changes": {}, "carriers": {}}'
)
PATCH_FAULTS: Sequence[tuple[str, str, Callable[[Tensors, Texts], object], str]] = [
    (
        "patch of another version",
        "newer",
        text("sdpatch.version", "999"),
        "of version 999; this program knows those up to 1",
    ),
    (
        "patch of another version",
        "none",
        text("sdpatch.version", ""),
        "of version ''; expected '1'",
    ),
    ("patch of another version", "an escape", text("sdpatch.version", "\x1b[2J"), r"version '\\x1b\[2J'"),
    ("patch without a text", "the version", without("sdpatch.version"), "no patch of this program"),
    ("patch without a text", "the manifest", without("sdpatch.manifest"), "does not describe a patch"),
    ("patch without a text", "the base", without("sdpatch.base"), "does not describe a patch"),
    ("patch without a text", "the provenance", without("sdpatch.edit"), "does not describe a patch"),
    (
        "patch whose texts are no JSON",
        "words",
        text("sdpatch.manifest", "words"),
        "does not describe a patch",
    ),
    ("patch whose texts are no JSON", "a list", text("sdpatch.base", "[]"), "does not describe a patch"),
    (
        "patch whose texts are no JSON",
        "pairs for a table",
        text("sdpatch.manifest", PAIRS),
        "is not described",
    ),
    ("nested JSON", "in a patch", text("sdpatch.manifest", "[" * 100_000), "does not describe|nested"),
    ("patch with other tensors", "one is gone", first_gone, "missing"),
    ("patch with other tensors", "one too many", one_more, "belongs to no term"),
    (
        "patch with other tensors",
        "of whole numbers",
        each(lambda t: t.to(torch.int64)),
        "floating point|tensor '|type",
    ),
    (
        "patch with other tensors",
        "of another shape",
        each(lambda t: t.reshape(-1)[:1]),
        "shape|expected|tensor '",
    ),
    ("patch with other tensors", "flat", each(lambda t: t.reshape(-1)), "shape|expected|tensor '"),
    ("not a number", "in a patch", each(lambda t: torch.full_like(t, torch.nan)), "NaN or infinity|tensor '"),
    ("infinity", "in a patch", each(lambda t: torch.full_like(t, torch.inf)), "NaN or infinity|tensor '"),
]
UNDO_FAULTS: Sequence[tuple[str, str, Callable[[Tensors, Texts], object], str]] = [
    ("undo file without a text", "its own", without("sdpatch.undo"), "is no undo file of this program"),
    ("undo file whose text is no JSON", "", text("sdpatch.undo", "{"), "is no undo file of this program"),
    ("nested JSON", "in an undo file", text("sdpatch.undo", "[" * 100_000), "no undo file|nested"),
    ("undo file with other tensors", "one is gone", first_gone, "lacks|damaged"),
    ("undo file with other tensors", "of other values", each(lambda t: t + 1), "damaged|instead of|expected"),
    (
        "undo file with other tensors",
        "of another shape",
        each(lambda t: t[:1]),
        "damaged|instead of|shape|expected",
    ),
    (
        "undo file with other tensors",
        "of another type",
        each(lambda t: t.to(torch.float64)),
        "damaged|instead of|type",
    ),
    (
        "not a number",
        "in an undo file",
        each(lambda t: t * float("nan") if t.is_floating_point() else t),
        "damaged|inst",
    ),
]


def _damaged(place: Place) -> Sequence[object]:
    content = bytearray(place.sound.patch.read_bytes())
    content[-1] ^= 1
    (place.root / "patch").write_bytes(content)
    return "apply", place.root / "patch", place.sound.base, "-o", place.out


OTHERS: Sequence[tuple[str, str, Callable[[Place], Sequence[object]], str]] = [
    ("damaged patch", "one bit", _damaged, "is damaged, or was changed by hand"),
    (
        "another file for a patch",
        "a checkpoint",
        lambda p: ("verify", p.sound.single, p.sound.base),
        "no patch of this",
    ),
    (
        "another file for a patch",
        "an undo file",
        lambda p: ("verify", p.sound.undo, p.sound.base),
        "no patch of this",
    ),
    ("another file for a patch", "a folder", lambda p: ("verify", p.sound.base, p.sound.base), "is a folder"),
    (
        "another file for a checkpoint",
        "a patch",
        lambda p: ("convert", p.sound.patch, "-o", p.out),
        "no Stable Diffusion",
    ),
    (
        "another file for an undo file",
        "a patch",
        lambda p: ("revert", p.sound.patch, p.sound.edited, "-o", p.out, "--undo", p.sound.patch),
        "is no undo file",
    ),
    (
        "patch that is in already",
        "applied again",
        lambda p: ("apply", p.sound.patch, p.sound.edited, "-o", p.out),
        "has this patch already",
    ),
    (
        "patch that is not in",
        "taken out",
        lambda p: ("revert", p.sound.patch, p.sound.base, "-o", p.out, "--undo", p.sound.undo),
        "does not have the patch",
    ),
    (
        "patch composed with itself",
        "",
        lambda p: ("compose", p.sound.patch, p.sound.patch, "-o", p.out),
        "twice|same|once|already|change|both",
    ),
]


def patch_cases(patch: Path, undo: Path) -> Iterator[Case]:
    """Faults of patches and undo files; the texts of sound ones say which places there are."""
    _, texts = opened(patch)
    for key in ("sdpatch.manifest", "sdpatch.base"):
        for path in paths_in(json.loads(texts[key])):
            for name, by in FALSE:
                if believed(path, name):
                    continue
                where = "/".join(str(step) for step in path)
                make = partial(_texts_changed, key, path, by)
                yield Case("patch that lies", f"{name} in {key}/{where}", make, NOT_ITSELF)
    for path in paths_in(json.loads(opened(undo)[1]["sdpatch.undo"])):
        for name, by in FALSE:
            where = "/".join(str(step) for step in path)
            yield Case(
                "undo file that lies", f"{name} in {where}", partial(_undo_changed, path, by), NOT_ITSELF
            )
    for fault, name, change, says in PATCH_FAULTS:
        yield Case(fault, name, partial(_patch, change), says)
    for fault, name, change, says in UNDO_FAULTS:
        yield Case(fault, name, partial(_undo, change), says)
    for fault, name, other, says in OTHERS:
        yield Case(fault, name, other, says)
