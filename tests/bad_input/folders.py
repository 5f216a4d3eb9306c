"""Diffusers folders that are none: indexes that lie, parts that are missing, names that lead elsewhere."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.bad_input.case import Case, Place

Change = Callable[[Path], object]

UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"


def index_bytes(raw: bytes) -> Change:
    return lambda folder: (folder / "model_index.json").write_bytes(raw)


def index_with(component: str, value: Any) -> Change:
    def change(folder: Path) -> None:
        table = json.loads((folder / "model_index.json").read_text()) | {component: value}
        (folder / "model_index.json").write_text(json.dumps(table))

    return change


def index_is(table: Any) -> Change:
    return index_bytes(json.dumps(table).encode())


def instead(name: str, put: Callable[[Path], object]) -> Change:
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        put(folder / name)

    return change


def shards(weight_map: Any, *, raw: bytes | None = None) -> Change:
    """An index of shards in the place of the whole file, which becomes the only shard."""

    def change(folder: Path) -> None:
        (folder / UNET).rename(folder / "unet" / "shard.safetensors")
        text = json.dumps({"weight_map": weight_map}).encode() if raw is None else raw
        (folder / INDEX).write_bytes(text)

    return change


def shard_named(name: str) -> Change:
    return shards({"down_blocks.0.resnets.0.conv1.weight": name})


def renamed(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def copied(old: str, new: str) -> Change:
    return lambda folder: shutil.copy(folder / old, folder / new)


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def keys_doubled(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    key = "text_model.encoder.layers.0.mlp.fc2.bias"
    save_file({**tensors, key.removeprefix("text_model."): tensors[key].clone()}, file)


def shard_twice(folder: Path) -> None:
    """Two shards with one tensor in both."""
    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    for name in ("one", "two"):
        save_file(tensors, folder / "unet" / f"{name}.safetensors")
    first, *others = tensors
    table = {first: "one.safetensors", **dict.fromkeys(others, "two.safetensors")}
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))


NO_TABLE = "has no such table; an index with a table 'weight_map'"
BESIDE = "which is not beside it"
ENTRY = "library and class were expected"

FAULTS: Sequence[tuple[str, str, Change, str]] = [
    ("model_index.json that is none", "empty", index_bytes(b""), "is no JSON"),
    ("model_index.json that is none", "not closed", index_bytes(b'{"unet": ['), "is no JSON"),
    ("model_index.json that is none", "a list", index_is([]), "is no table"),
    ("model_index.json that is none", "a number", index_is(7), "is no table"),
    ("model_index.json that is none", "11 MB", index_bytes(b" " * 11_000_000), "takes 11000000 bytes"),
    (
        "model_index.json that is none",
        "a pipe",
        instead("model_index.json", os.mkfifo),
        "no model_index.json",
    ),
    (
        "model_index.json that is none",
        "a folder",
        instead("model_index.json", Path.mkdir),
        "no model_index.json",
    ),
    (
        "model_index.json that is none",
        "gone",
        lambda f: (f / "model_index.json").unlink(),
        "no model_index.json",
    ),
    ("nested JSON", "in model_index.json", index_bytes(b"[" * 50_000), "nested too deeply"),
    ("doubled key", "in model_index.json", index_bytes(b'{"unet":[1],"unet":[2]}'), "names 'unet' twice"),
    ("byte order mark", "in model_index.json", index_bytes(b"\xef\xbb\xbf{}"), "is no JSON"),
    ("text in another encoding", "model_index.json", index_bytes("{}".encode("utf-16")), "is no UTF-8 text"),
    ("text in another encoding", "Latin 1", index_bytes(b'{"a": "\xe4"}'), "is no UTF-8 text"),
    ("component of a false kind", "a number", index_with("unet", 5), f"says 5 of 'unet'; {ENTRY}"),
    ("component of a false kind", "a text", index_with("unet", "x"), ENTRY),
    ("component of a false kind", "an empty list", index_with("unet", []), ENTRY),
    ("component of a false kind", "one word", index_with("unet", ["diffusers"]), ENTRY),
    ("component of a false kind", "numbers", index_with("unet", [1, 2]), ENTRY),
    ("component of a false kind", "a table", index_with("unet", {"0": "a"}), ENTRY),
    ("component of a false kind", "lists", index_with("unet", [["a"], "b"]), ENTRY),
    ("no component", "unknown ones", index_is({"transformer": ["a", "b"]}), "names none of text_encoder"),
    ("no component", "all null", index_is({"unet": [None, None]}), "names none of text_encoder"),
    ("missing component", "gone", lambda folder: shutil.rmtree(folder / "vae"), "vae is missing, but"),
    (
        "missing component",
        "a file",
        both(lambda f: shutil.rmtree(f / "vae"), lambda f: (f / "vae").touch()),
        "vae is mis",
    ),
    (
        "missing component",
        "a link that leads nowhere",
        both(lambda f: shutil.rmtree(f / "vae"), lambda f: (f / "vae").symlink_to("gone")),
        "vae is missing",
    ),
    (
        "missing component",
        "a link to itself",
        both(lambda f: shutil.rmtree(f / "vae"), lambda f: (f / "vae").symlink_to("vae")),
        "vae is missing",
    ),
    ("missing weights", "gone", lambda folder: (folder / UNET).unlink(), "unet holds no weights"),
    (
        "pickle in a folder",
        "the weights",
        renamed(UNET, UNET.replace("safetensors", "bin")),
        "holds its weights as a pickle",
    ),
    (
        "pickle in a folder",
        "under the name of safetensors",
        instead(UNET, lambda path: torch.save({"a": torch.zeros(1)}, path)),
        "begins like a zip archive",
    ),
    (
        "ambiguous weights",
        "two variants",
        both(
            copied(UNET, "unet/diffusion_pytorch_model.a.safetensors"),
            renamed(UNET, "unet/diffusion_pytorch_model.b.safetensors"),
        ),
        "variants a, b and no plain file",
    ),
    (
        "ambiguous weights",
        "whole and in shards",
        lambda folder: (folder / INDEX).write_text('{"weight_map": {}}'),
        "both a whole weight file and shards",
    ),
    (
        "control characters in a file's name",
        "of variants",
        both(
            copied(UNET, "unet/diffusion_pytorch_model.\x1b[2J.safetensors"),
            renamed(UNET, "unet/diffusion_pytorch_model.\x9b1m.safetensors"),
        ),
        r"variants \\x1b\[2J, \\x9b1m",
    ),
    ("path out of the folder", "upwards", shard_named("../vae/diffusion_pytorch_model.safetensors"), BESIDE),
    ("path out of the folder", "far upwards", shard_named("../../../../../../etc/passwd"), BESIDE),
    ("path out of the folder", "downwards", shard_named("a/b.safetensors"), BESIDE),
    ("path out of the folder", "through itself", shard_named("./shard.safetensors"), BESIDE),
    ("path out of the folder", "with backslashes", shard_named("..\\shard.safetensors"), BESIDE),
    ("path out of the folder", "the folder itself", shard_named("."), BESIDE),
    ("path out of the folder", "the one above", shard_named(".."), BESIDE),
    ("absolute path", "/etc/passwd", shard_named("/etc/passwd"), BESIDE),
    ("absolute path", "of Windows", shard_named("C:\\shard.safetensors"), BESIDE),
    ("absolute path", "of a stream", shard_named("shard.safetensors:x"), BESIDE),
    (
        "missing shard",
        "gone",
        shard_named("gone.safetensors"),
        f"names the shard 'gone.safetensors', {BESIDE}",
    ),
    ("missing shard", "no name", shard_named(""), BESIDE),
    ("missing shard", "another kind of file", shard_named("config.json"), BESIDE),
    (
        "missing shard",
        "a folder",
        both(shard_named("d.safetensors"), lambda f: (f / "unet/d.safetensors").mkdir()),
        BESIDE,
    ),
    (
        "missing shard",
        "a pipe",
        both(shard_named("p.safetensors"), lambda f: os.mkfifo(f / "unet/p.safetensors")),
        BESIDE,
    ),
    ("missing shard", "a name of 100,000 letters", shard_named("x" * 100_000 + ".safetensors"), BESIDE),
    (
        "control characters in a file's name",
        "of shards",
        shard_named("\x1b[2J\x00.safetensors"),
        r"'\\x1b\[2J\\x00",
    ),
    ("control characters in a file's name", "half of a pair", shard_named("\ud800.safetensors"), r"\\ud800"),
    ("index of shards that is none", "empty", shards(None, raw=b""), "is no JSON"),
    ("index of shards that is none", "a list", shards(None, raw=b"[]"), NO_TABLE),
    ("index of shards that is none", "no table", shards(None, raw=b"{}"), NO_TABLE),
    ("index of shards that is none", "a list in it", shards(["shard.safetensors"]), NO_TABLE),
    ("index of shards that is none", "nothing in it", shards({}), NO_TABLE),
    ("index of shards that is none", "numbers", shards({"a": 1}), NO_TABLE),
    ("index of shards that is none", "null", shards({"a": None}), NO_TABLE),
    (
        "nested JSON",
        "in the index of shards",
        shards(None, raw=b'{"weight_map":' * 50_000),
        "nested too deeply",
    ),
    (
        "doubled key",
        "in the index of shards",
        shards(None, raw=b'{"weight_map":{"a":"x","a":"y"}}'),
        "names 'a' twice",
    ),
    (
        "text in another encoding",
        "index of shards",
        shards(None, raw=b'{"weight_map":{"\xff":""}}'),
        "no UTF-8",
    ),
    (
        "index of shards that lies",
        "a key too many",
        shards({"gone": "shard.safetensors"}),
        "is not where the index",
    ),
    ("doubled tensor", "under two spellings", keys_doubled, "is the same tensor as"),
    ("doubled tensor", "in two shards", shard_twice, "is the same tensor as|is not where the index"),
]


def _opened(verb: Sequence[str], change: Change, place: Place) -> Sequence[object]:
    folder = Path(shutil.copytree(place.sound.base, place.root / "folder"))
    change(folder)
    arguments: Mapping[str, Sequence[object]] = {
        "inspect": (folder,),
        "apply": (place.sound.patch, folder, "-o", place.out),
    }
    return *verb, *arguments[verb[0]]


def _copied(put: Callable[[Path], object], place: Place) -> Sequence[object]:
    folder = Path(shutil.copytree(place.sound.base, place.root / "folder"))
    put(folder / "vae" / "note")
    return "apply", place.sound.patch, folder, "-o", place.out


def _travelling(name: str, put: Callable[[Path], object], place: Place) -> Sequence[object]:
    folder = Path(shutil.copytree(place.sound.base, place.root / "folder"))
    (folder / name).unlink(missing_ok=True)
    put(folder / name)
    return "convert", folder, "-o", place.out


def folder_cases() -> Iterator[Case]:
    """Every fault, each looked at by one verb that reads and one that writes."""
    for fault, name, change, says in FAULTS:
        for verb in ("inspect", "apply"):
            yield Case(fault, f"{name} ({verb})", partial(_opened, (verb,), change), says)
    for name, put, says in (
        ("a pipe", os.mkfifo, "is no regular file"),
        ("a link that leads nowhere", lambda path: path.symlink_to("gone"), "No such file"),
        ("a link to itself", lambda path: path.symlink_to("note"), "symbolic links"),
        ("a device", lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    ):
        yield Case("file that cannot be copied", name, partial(_copied, put), says)
    for name, path, put, says in (
        (
            "of 3 MB",
            "vae/config.json",
            lambda path: path.write_bytes(bytes(3_000_000)),
            "takes 3000000 bytes",
        ),
        (
            "that is no text",
            "vae/config.json",
            lambda path: path.write_bytes(b"\xff\xfe"),
            "is no UTF-8 text",
        ),
    ):
        yield Case("small file that cannot travel", name, partial(_travelling, path, put), says)
