"""Single files and pickles that are none, or hold what they may not."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from surgery.checkpoint.pipeline_files import FILES_KEY
from tests.bad_input.case import Case, Place
from tests.support.pickles import Code
from tests.support.singles import SD1_TEXT, SD2_TEXT, UNET, VAE, sd1_tensors, sd2_tensors

Tensors = Mapping[str, Tensor]

KEY = f"{SD1_TEXT}text_model.encoder.layers.0.mlp.fc2.bias"

TENSOR_FAULTS: Sequence[tuple[str, str, Callable[[], Tensors], str]] = [
    ("no Stable Diffusion", "one tensor", lambda: {"a": torch.zeros(1)}, "holds no Stable Diffusion"),
    ("no Stable Diffusion", "none", dict, "holds no Stable Diffusion"),
    (
        "no Stable Diffusion",
        "a LoRA",
        lambda: {"lora_unet_x.lora_up.weight": torch.zeros(1)},
        "holds no Stable",
    ),
    (
        "no Stable Diffusion",
        "a component",
        lambda: {"conv_in.weight": torch.zeros(1)},
        "holds no Stable Diffusion",
    ),
    (
        "doubled tensor",
        "with and without a prefix",
        lambda: {**sd1_tensors(), KEY.replace("text_model.", ""): torch.zeros(3)},
        "is the same tensor as",
    ),
    (
        "two models in one file",
        "text encoders",
        lambda: {**sd1_tensors(), **sd2_tensors()},
        "holds the text_encoder twice",
    ),
    (
        "absurd number",
        "of blocks of the U-Net",
        lambda: {f"{UNET}input_blocks.9999999999.0.x": torch.zeros(1)},
        "counts to 9999999999",
    ),
    (
        "absurd number",
        "of blocks of the VAE",
        lambda: {f"{VAE}decoder.up.123456.x": torch.zeros(1)},
        "counts to 123456",
    ),
    (
        "absurd number",
        "of blocks of a text encoder",
        lambda: {f"{SD2_TEXT}transformer.resblocks.{'9' * 400}.x": torch.zeros(1)},
        "counts to 9",
    ),
    (
        "fused tensor that does not part",
        "of four rows",
        lambda: {f"{SD2_TEXT}transformer.resblocks.0.attn.in_proj_bias": torch.zeros(4)},
        "expected query, key and value",
    ),
    (
        "fused tensor that does not part",
        "a scalar",
        lambda: {f"{SD2_TEXT}transformer.resblocks.0.attn.in_proj_bias": torch.zeros(())},
        "expected query, key and value",
    ),
    (
        "transposed tensor that is no matrix",
        "a row",
        lambda: {"conditioner.embedders.1.model.text_projection": torch.zeros(4)},
        "a matrix was expected",
    ),
    (
        "convolution of another size",
        "of the VAE's attention",
        lambda: {f"{VAE}encoder.mid.attn_1.q.weight": torch.zeros(2, 2, 3, 3)},
        "convolution of 1×1 was expected",
    ),
    ("unknown widths", "without a folder like it", sd1_tensors, "has other widths .*--like"),
]


def _tensors(make: Callable[[], Tensors], place: Place) -> Sequence[object]:
    save_file(dict(make()), place.root / "x.safetensors")
    return "convert", place.root / "x.safetensors", "-o", place.out


OUTSIDE, TABLE = "names files outside of a pipeline's folders", "is no table of texts"
INDEX = {"model_index.json": '{"unet":["a","b"],"vae":["a","b"],"text_encoder":["a","b"]}'}
FILES: Sequence[tuple[str, str, str, str]] = [
    ("path out of the folder", "upwards", json.dumps({**INDEX, "../x.json": ""}), OUTSIDE),
    ("path out of the folder", "from a component", json.dumps({**INDEX, "unet/../../x": ""}), OUTSIDE),
    ("path out of the folder", "a hidden file", json.dumps({**INDEX, ".bashrc": ""}), OUTSIDE),
    ("path out of the folder", "another component", json.dumps({**INDEX, "hooks/pre.txt": ""}), OUTSIDE),
    ("path out of the folder", "a program", json.dumps({**INDEX, "setup.py": ""}), OUTSIDE),
    ("path out of the folder", "with backslashes", json.dumps({**INDEX, "unet/..\\x": ""}), OUTSIDE),
    (
        "path out of the folder",
        "a pickle",
        json.dumps({**INDEX, "unet/diffusion_pytorch_model.bin": ""}),
        OUTSIDE,
    ),
    ("path out of the folder", "weights", json.dumps({**INDEX, "unet/x.safetensors": ""}), OUTSIDE),
    ("absolute path", "in metadata", json.dumps({**INDEX, "/etc/passwd": ""}), OUTSIDE),
    ("absolute path", "in metadata, of Windows", json.dumps({**INDEX, "C:\\x.json": ""}), OUTSIDE),
    (
        "control characters in a file's name",
        "in metadata",
        json.dumps({**INDEX, "unet/\x1b[2J": ""}),
        OUTSIDE,
    ),
    ("pipeline files that are none", "words", "words", "is no JSON"),
    ("pipeline files that are none", "a list", "[]", TABLE),
    ("pipeline files that are none", "numbers", json.dumps({"model_index.json": 1}), TABLE),
    ("pipeline files that are none", "nothing", "{}", TABLE),
    (
        "pipeline files that are none",
        "half of a pair",
        '{"model_index.json": "\\ud800"}',
        "is no text|is no JSON",
    ),
    ("pipeline files that are none", "no index", json.dumps({"README.md": ""}), "has no model_index.json"),
    (
        "pipeline files that are none",
        "an index of words",
        json.dumps({"model_index.json": "words"}),
        "is no JSON",
    ),
    (
        "pipeline files that are none",
        "an index of a list",
        json.dumps({"model_index.json": "[]"}),
        "is no table",
    ),
    (
        "pipeline files that are none",
        "an empty index",
        json.dumps({"model_index.json": "{}"}),
        "which the configurations do not",
    ),
    ("component of a false kind", "in metadata", json.dumps({"model_index.json": '{"unet": 5}'}), "do not"),
    ("nested JSON", "in metadata", "[" * 100_000, "nested too deeply"),
    (
        "doubled key",
        "in metadata",
        '{"model_index.json":"{}","model_index.json":"{}"}',
        "names 'model_index.json' twice",
    ),
    (
        "markup in metadata",
        "in an index",
        json.dumps({"model_index.json": "<script>alert(1)</script>"}),
        "is no JSON",
    ),
]


def _files(text: str, place: Place) -> Sequence[object]:
    save_file(sd1_tensors(), place.root / "x.safetensors", metadata={FILES_KEY: text})
    return "convert", place.root / "x.safetensors", "-o", place.out


def _pickle(
    name: str, value: Callable[[Place], object], options: Sequence[str], place: Place
) -> Sequence[object]:
    made = value(place)
    path = place.root / name
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        torch.save(made, path)
    return "convert", path, "-o", place.out, *options


def _code(place: Place) -> object:
    return {"state_dict": {"a": torch.zeros(1), "b": Code(place.mark)}}


ALLOW = ("--allow-pickle",)
PICKLES: Sequence[tuple[str, str, str, Callable[[Place], object], Sequence[str], str]] = [
    (
        "pickle",
        "of a checkpoint",
        "x.ckpt",
        lambda place: sd1_tensors(),
        (),
        "is a pickle, which can run code",
    ),
    ("pickle", "of a component", "x.bin", lambda place: sd1_tensors(), (), "is a pickle, which can run code"),
    ("pickle", "under another name", "x.safetensors", lambda place: sd1_tensors(), (), "like a zip archive"),
    ("pickle with code", "not allowed", "x.ckpt", _code, (), "is a pickle, which can run code"),
    ("pickle with code", "allowed", "x.ckpt", _code, ALLOW, "asks for .*Nothing in it was run"),
    ("pickle with code", "under another name", "x.safetensors", _code, (), "like a zip archive"),
    (
        "pickle with code",
        "bare",
        "x.ckpt",
        lambda place: b"cos\nsystem\n(S'touch x'\ntR.",
        ALLOW,
        "is no zip archive",
    ),
    ("pickle of no tensors", "a list", "x.pt", lambda place: [1, 2], ALLOW, "holds no table of tensors"),
    ("pickle of no tensors", "empty", "x.pt", lambda place: {}, ALLOW, "holds no table of tensors"),
    ("pickle of no tensors", "not a pickle", "x.pt", lambda place: b"words", ALLOW, "is no zip archive"),
    ("pickle of no tensors", "nothing", "x.pt", lambda place: b"", ALLOW, "is no zip archive"),
    (
        "absurd shape in a pickle",
        "",
        "x.pt",
        lambda place: {"a": torch.zeros(1).expand(10**5, 10**5)},
        ALLOW,
        "less is stored",
    ),
    (
        "control characters in a name",
        "in a pickle",
        "x.pt",
        lambda place: {"\x1b[2J": torch.zeros(1)},
        ALLOW,
        r"\\x1b",
    ),
    (
        "name that is no text",
        "in a pickle",
        "x.pt",
        lambda place: {7: torch.zeros(1)},
        ALLOW,
        "tensor 7 has no printable",
    ),
    ("safetensors for a pickle", "", "x.safetensors", lambda place: b"", ALLOW, "is no pickle by its name"),
]


def single_cases() -> Iterator[Case]:
    """Faults of single files, of what travels in them, and of pickles."""
    for fault, name, make, says in TENSOR_FAULTS:
        yield Case(fault, name, partial(_tensors, make), says)
    for fault, name, text, says in FILES:
        yield Case(fault, name, partial(_files, text), says)
    for fault, name, file, value, options, says in PICKLES:
        yield Case(fault, name, partial(_pickle, file, value, options), says)


def like_file(place: Place) -> Path:
    """A single file of unknown widths."""
    path = place.root / "x.safetensors"
    save_file(sd1_tensors(), path)
    return path
