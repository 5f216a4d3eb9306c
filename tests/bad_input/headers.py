"""Safetensors files that are none, in every role: checkpoint, component, patch, undo file."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.bad_input.case import Case, Place, safetensors_bytes

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]},
}
DATA = bytes(32)

Write = Callable[[Path], object]


def content(raw: bytes) -> Write:
    return lambda path: path.write_bytes(raw)


def with_a(**change: Any) -> Write:
    """The good file with its first tensor described otherwise."""
    table = {**GOOD, "a": {**GOOD["a"], **change}}
    return content(safetensors_bytes(table, DATA))


def named(key: str) -> Write:
    return content(safetensors_bytes({key: GOOD["a"], "b": GOOD["b"]}, DATA))


def holding(size: int, raw: bytes) -> Write:
    """A file that begins so and goes on with a hole, which takes no room on the disk."""

    def write(path: Path) -> None:
        with path.open("wb") as handle:
            handle.write(raw)
            handle.truncate(size)

    return write


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("bomb", bytes(10_000_000))


def many(count: int) -> bytes:
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return safetensors_bytes("{" + ",".join(f'"{number}":{entry}' for number in range(count)) + "}")


GOOD_BYTES = safetensors_bytes(GOOD, DATA)
HEADER = len(GOOD_BYTES) - len(DATA)
LARGE = safetensors_bytes('{"a":{"dtype":"U8","shape":[1000,10000000],"data_offsets":[0,10000000000]}}')
CUT, JSON_FAULT = "the file ends after", "its header is no JSON"

FAULTS: Sequence[tuple[str, str, Write, str]] = [
    ("cut off", "nothing in it", content(b""), CUT),
    ("cut off", "in the length", content(GOOD_BYTES[:3]), CUT),
    ("cut off", "after the length", content(GOOD_BYTES[:8]), CUT),
    ("cut off", "in the header", content(GOOD_BYTES[: HEADER - 9]), CUT),
    ("cut off", "before the data", content(GOOD_BYTES[:HEADER]), "cut off, it ends after"),
    ("cut off", "one byte early", content(GOOD_BYTES[:-1]), "cut off, it ends after"),
    ("bytes too many", "two", content(GOOD_BYTES + b"12"), "2 bytes follow the last tensor"),
    ("bytes too many", "no tensor at all", content(safetensors_bytes("{}", DATA)), "32 bytes follow"),
    ("giant header", "of 2^64 bytes", content(b"\xff" * 8 + b"{}"), "should take 18446744073709551615 bytes"),
    ("giant header", "of 2^63 bytes", content((2**63).to_bytes(8, "little") + b"{}"), CUT),
    (
        "giant header",
        "of 30 MB, which are there",
        holding(30_000_008, (30_000_000).to_bytes(8, "little")),
        "takes 30000000 bytes, more than the 25000000 allowed",
    ),
    ("header that is no JSON", "words", content(safetensors_bytes("nonsense")), JSON_FAULT),
    ("header that is no JSON", "not closed", content(safetensors_bytes('{"a": 1')), JSON_FAULT),
    ("header that is no JSON", "single quotes", content(safetensors_bytes("{'a': 1}")), JSON_FAULT),
    ("header that is no JSON", "zeros", content(safetensors_bytes(bytes(16))), JSON_FAULT),
    ("header of another kind", "a list", content(safetensors_bytes("[]")), "is no JSON object"),
    ("header of another kind", "null", content(safetensors_bytes("null")), "is no JSON object"),
    ("header of another kind", "a number", content(safetensors_bytes("7")), "is no JSON object"),
    ("header in another encoding", "Latin 1", content(safetensors_bytes(b'{"\xfc":1}')), "is no UTF-8 text"),
    ("header in another encoding", "UTF-16", content(safetensors_bytes("{}".encode("utf-16"))), "no UTF-8"),
    ("byte order mark", "in the header", content(safetensors_bytes(b"\xef\xbb\xbf{}")), JSON_FAULT),
    ("nested JSON", "lists", content(safetensors_bytes("[" * 100_000)), "nested too deeply"),
    ("nested JSON", "tables", content(safetensors_bytes('{"a":' * 100_000)), "nested too deeply"),
    ("too many things", "tensors", content(many(100_001)), "names 100001 tensors"),
    ("too many things", "numbers", content(safetensors_bytes('{"a":[' + "0," * 1_000_000 + "0]}")), "lists"),
    (
        "doubled key",
        "a tensor",
        content(safetensors_bytes('{"a":%s,"a":%s}' % ((json.dumps(GOOD["a"]),) * 2), DATA[:24])),
        "names 'a' twice",
    ),
    (
        "doubled key",
        "its type",
        content(safetensors_bytes('{"a":{"dtype":"F16","dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}')),
        "names 'dtype' twice",
    ),
    (
        "doubled key",
        "metadata",
        content(safetensors_bytes('{"__metadata__":{"a":"1","a":"2"}}')),
        "names 'a' twice",
    ),
    ("overlapping tensors", "by half", with_a(data_offsets=[8, 32]), "overlaps|leaves a hole"),
    (
        "overlapping tensors",
        "the same bytes",
        content(safetensors_bytes({"a": GOOD["a"], "b": GOOD["a"]}, DATA[:24])),
        "'b' overlaps tensor 'a'",
    ),
    (
        "hole",
        "before the first",
        with_a(shape=[1, 3], data_offsets=[12, 24]),
        "leaves a hole after the header",
    ),
    ("hole", "between two", with_a(shape=[1, 3], data_offsets=[0, 12]), "leaves a hole after tensor 'a'"),
    ("negative number", "an offset", with_a(data_offsets=[-24, 0]), "takes bytes -24 to 0"),
    ("negative number", "both offsets", with_a(data_offsets=[-48, -24]), "takes bytes -48 to -24"),
    ("negative number", "a size", with_a(shape=[-2, -3]), r"has the shape \[-2, -3\]"),
    ("reversed offsets", "", with_a(data_offsets=[24, 0]), "takes bytes 24 to 0"),
    (
        "number of another kind",
        "offsets with a point",
        with_a(data_offsets=[0.0, 24.0]),
        "takes bytes 0.0 to",
    ),
    ("number of another kind", "sizes with a point", with_a(shape=[2.0, 3.0]), r"has the shape \[2.0, 3.0\]"),
    ("number of another kind", "truth values", with_a(shape=[True, 6]), r"has the shape \[True, 6\]"),
    (
        "number of another kind",
        "an offset that is true",
        with_a(data_offsets=[False, 24]),
        "bytes False to 24",
    ),
    ("number of another kind", "texts", with_a(shape=["2", "3"]), "has the shape"),
    ("number of another kind", "null", with_a(data_offsets=[None, 24]), "takes bytes None to 24"),
    ("no number", "NaN", with_a(data_offsets=[float("nan"), 24]), "takes bytes nan to 24"),
    ("no number", "infinity", with_a(shape=[float("inf"), 3]), r"has the shape \[inf, 3\]"),
    ("absurd number", "a size of 10^30", with_a(shape=[10**30]), "has the shape"),
    ("absurd number", "a size of 4,000 digits", with_a(shape=[10**3999]), "has the shape"),
    (
        "absurd number",
        "a size of 5,000 digits",
        content(safetensors_bytes('{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,0]}}' % ("9" * 5000))),
        "Exceeds the limit",
    ),
    (
        "absurd number",
        "an offset of 10^30",
        with_a(data_offsets=[0, 10**30]),
        "its type and shape need 24 bytes",
    ),
    ("overflowing product", "of 2^93", with_a(shape=[2**31] * 3), "its type and shape need"),
    ("overflowing product", "that is 24 modulo 2^64", with_a(shape=[2**31, 2**31, 24]), "shape need"),
    ("overflowing product", "that a zero hides", with_a(shape=[2**31, 2**31, 0]), "need 0 bytes"),
    ("shape with too many axes", "of 17", with_a(shape=[1] * 16 + [6]), "up to 16 whole numbers"),
    ("shape with too many axes", "of 100,000", with_a(shape=[1] * 100_000), "up to 16 whole numbers"),
    ("shape that does not fit", "too large", with_a(shape=[2, 4]), "its type and shape need 32"),
    ("shape that does not fit", "a text", with_a(shape="six"), "is described by"),
    (
        "tensor larger than any",
        "of 10 GB, a hole",
        holding(len(LARGE) + 10**10, LARGE),
        "no Stable Diffusion has",
    ),
    ("unknown type", "F12", with_a(dtype="F12"), "has the type 'F12'; expected one of BOOL"),
    ("unknown type", "torch's word", with_a(dtype="float32"), "has the type 'float32'"),
    ("unknown type", "nothing", with_a(dtype=""), "has the type ''"),
    ("unknown type", "a number", with_a(dtype=5), "is described by"),
    ("unknown type", "another size", with_a(dtype="F64"), "its type and shape need 48"),
    ("tensor without a description", "null", content(safetensors_bytes({"a": None})), "is described by None"),
    ("tensor without a description", "a list", content(safetensors_bytes({"a": [1]})), r"described by \[1\]"),
    ("tensor without a description", "empty", content(safetensors_bytes({"a": {}})), "is described by {}"),
    (
        "tensor without a description",
        "no offsets",
        content(safetensors_bytes({"a": {"dtype": "F32", "shape": [1]}})),
        "dtype, shape and data_offsets were expected",
    ),
    ("tensor without a description", "three offsets", with_a(data_offsets=[0, 12, 24]), "is described by"),
    ("control characters in a name", "an escape", named("\x1b[2J\x1b[31mowned"), r"'\\x1b\[2J"),
    ("control characters in a name", "a bell and a null", named("a\x07\x00"), r"\\x07\\x00"),
    ("control characters in a name", "lines", named("a\nb\r\nsurgery: all is well"), r"a\\nb"),
    ("control characters in a name", "of the second set", named("a\x9b31m"), r"a\\x9b31m"),
    ("control characters in a name", "text that runs backwards", named("a\u202eb"), r"a\\u202eb"),
    ("control characters in a name", "half of a pair", named("a\ud800"), r"a\\ud800|UTF-8"),
    ("name without letters", "", named(""), "has a name of 0 letters"),
    ("name without end", "of 5,000 letters", named("x" * 5000), "has a name of 5000 letters"),
    (
        "metadata that is no table of texts",
        "a list",
        content(safetensors_bytes({"__metadata__": []})),
        "__metadata__",
    ),
    (
        "metadata that is no table of texts",
        "a number in it",
        content(safetensors_bytes({"__metadata__": {"a": 1}})),
        "__meta",
    ),
    (
        "metadata that is no table of texts",
        "null",
        content(safetensors_bytes({"__metadata__": None})),
        "__metadata__",
    ),
    ("another kind of file", "a zip archive", archive, "begins like a zip archive"),
    (
        "another kind of file",
        "a pickle",
        lambda path: torch.save({"a": torch.zeros(2)}, path),
        "begins like a zip",
    ),
    ("another kind of file", "an old pickle", content(b"\x80\x02}q\x00."), "begins like a pickle"),
    (
        "another kind of file",
        "a page",
        content(b"<!DOCTYPE html><html>not found</html>"),
        "a page of a web site",
    ),
    ("another kind of file", "a text", content(b'{"model": "is elsewhere"}'), "begins like a text"),
    (
        "another kind of file",
        "a pointer",
        content(b"version https://git-lfs.github.com/spec/v1\noid x"),
        "Git LFS",
    ),
    ("a folder in the place of a file", "", lambda path: path.mkdir(), "is a folder|has no model_index"),
    ("a pipe in the place of a file", "", os.mkfifo, "is no regular file|has no model_index"),
    (
        "a link that leads nowhere",
        "",
        lambda path: path.symlink_to("nowhere"),
        "No such file|no checkpoint",
    ),
    ("links in a circle", "", lambda path: path.symlink_to(path.name), "symbolic links|no checkpoint"),
    (
        "a device in the place of a file",
        "",
        lambda path: path.symlink_to("/dev/zero"),
        "no regular file|no model_",
    ),
    ("no file at all", "", lambda path: None, "No such file|no checkpoint"),
]


def _as_checkpoint(write: Write, place: Place) -> Sequence[object]:
    write(place.root / "x.safetensors")
    return "inspect", place.root / "x.safetensors"


def _as_component(write: Write, place: Place) -> Sequence[object]:
    folder = Path(shutil.copytree(place.sound.base, place.root / "folder"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    write(file)
    return "convert", folder, "-o", place.out


def _as_patch(write: Write, place: Place) -> Sequence[object]:
    write(place.root / "x.safetensors")
    return "apply", place.root / "x.safetensors", place.sound.base, "-o", place.out


def _as_undo(write: Write, place: Place) -> Sequence[object]:
    write(place.root / "x.safetensors")
    undo = ("--undo", place.root / "x.safetensors")
    return "revert", place.sound.patch, place.sound.edited, "-o", place.out, *undo


ROLES = {"checkpoint": _as_checkpoint, "component": _as_component, "patch": _as_patch, "undo": _as_undo}


def header_cases() -> Iterator[Case]:
    """Every fault in every role."""
    for fault, name, write, says in FAULTS:
        for role, make in ROLES.items():
            if role == "component" and fault in ("no file at all", "a folder in the place of a file"):
                says = f"{says}|holds no weights|is a folder"
            yield Case(fault, f"{name or 'plainly'} ({role})", partial(make, write), says)
