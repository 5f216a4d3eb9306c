"""Files and arguments of the verbs about other programs, and of the audit, that make no sense."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.bad_input.case import Case, Place, safetensors_bytes
from tests.bad_input.words import put

UP, DOWN = torch.zeros(4, 2), torch.zeros(2, 3)
TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PAIR: Mapping[str, Tensor] = {f"{TO_K}.lora_up.weight": UP, f"{TO_K}.lora_down.weight": DOWN}

WORDS: Sequence[tuple[str, bytes, str]] = [
    ("nothing", b"", "holds 0 phrases"),
    ("blank lines", b" \n\n\t\n", "holds 0 phrases"),
    ("a picture", b"\x89PNG\r\n\x1a\n\x00\xff", "one phrase a line was expected"),
    ("too many", b"\n".join(b"%d" % n for n in range(100_001)), "holds 100001 phrases"),
]

LORAS: Sequence[tuple[str, Mapping[str, Tensor], str]] = [
    (
        "of whole numbers",
        {**PAIR, f"{TO_K}.lora_up.weight": UP.int()},
        "floating-point numbers were expected",
    ),
    ("with many alphas", {**PAIR, f"{TO_K}.alpha": torch.zeros(3)}, "one number was expected"),
    ("with a vector", {**PAIR, f"{TO_K}.lora_up.weight": torch.zeros(8)}, "a matrix or kernels"),
    ("with nothing in it", {f"{TO_K}.lora_up.weight": torch.zeros(0, 2)}, "a matrix or kernels"),
    ("under names that act on terminals", {"\x1b[2J.weight": UP}, "control characters"),
    ("with markup for names", {"<script>.weight": UP}, "LoRA"),
]


def _words(content: bytes, option: str, place: Place) -> Sequence[object]:
    (place.root / "list.txt").write_bytes(content)
    return "audit", place.sound.base, place.sound.edited, option, place.root / "list.txt"


def _pipe(place: Place) -> Sequence[object]:
    os.mkfifo(place.root / "list.txt")
    return "audit", place.sound.base, place.sound.edited, "--words", place.root / "list.txt"


def _page_in_the_way(place: Place) -> Sequence[object]:
    place.out.write_text("mine")
    return "audit", place.sound.base, place.sound.edited, "--html", place.out


def _lora(tensors: Mapping[str, Tensor], place: Place) -> Sequence[object]:
    save_file(dict(tensors), place.root / "lora.safetensors")
    return "simulate", "comfyui", place.root / "lora.safetensors", "--base", place.sound.base


def _torn(verb: Sequence[object], place: Place) -> Sequence[object]:
    whole = safetensors_bytes(
        {f"{TO_K}.lora_up.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}
    )
    (place.root / "lora.safetensors").write_bytes(whole)
    return *verb, place.root / "lora.safetensors", "--base", place.sound.base, "--patch", place.sound.patch


ARGUMENTS: Sequence[tuple[str, str, Callable[[Place], Sequence[object]], str, int]] = [
    ("missing argument", "of audit", put("audit"), "Missing argument", 2),
    ("missing argument", "of simulate", put("simulate", "comfyui"), "Missing argument", 2),
    ("missing argument", "of prove", put("prove"), "Missing argument", 2),
    ("missing argument", "the target", put("export", "PATCH", "-o", "OUT"), "Missing option", 2),
    ("path to nothing", "to audit", put("audit", "BASE", "ROOT/gone"), "gone", 1),
    (
        "path to nothing",
        "as words",
        put("audit", "BASE", "EDITED", "--words", "gone"),
        "No such file|gone",
        1,
    ),
    ("path to nothing", "expected", put("audit", "BASE", "EDITED", "--expect", "gone"), "No such file", 1),
    ("path to nothing", "to simulate", put("simulate", "comfyui", "ROOT/gone"), "No such file|gone", 1),
    ("path to nothing", "to export", put("export", "gone", "--to", "comfy", "-o", "OUT"), "No such file", 1),
    (
        "path to nothing",
        "to prove",
        put("prove", "ROOT/gone", "--patch", "PATCH", "--base", "BASE"),
        "is no file",
        1,
    ),
    ("no patch", "to audit alone", put("audit", "BASE"), "is no patch", 2),
    ("no patch", "expected", put("audit", "BASE", "EDITED", "--expect", "SINGLE"), "patch", 1),
    ("no patch", "to export", put("export", "SINGLE", "--to", "comfy", "-o", "OUT"), "patch", 1),
    ("unknown loader", "to simulate", put("simulate", "\x1b[2J", "PATCH"), r"no loader .*\\x1b", 1),
    ("unknown loader", "misspelt", put("simulate", "ComfyUi", "PATCH"), "Did you mean 'comfyui'", 1),
    (
        "unknown loader",
        "to prove",
        put("prove", "PATCH", "--with", "comfyui", "--base", "BASE"),
        "cannot be asked for a proof",
        1,
    ),
    (
        "unknown target",
        "",
        put("export", "PATCH", "--to", "lora", "--base", "BASE", "-o", "OUT"),
        "no target",
        1,
    ),
    (
        "option for another target",
        "a rank",
        put("export", "PATCH", "--to", "comfy", "--base", "BASE", "-o", "OUT", "--rank", "4"),
        "takes no --rank",
        1,
    ),
    (
        "value of a false kind",
        "a limit",
        put("export", "PATCH", "--to", "universal-lora", "--base", "BASE", "-o", "OUT", "--limit", "0"),
        "not in the range",
        2,
    ),
    (
        "value of a false kind",
        "a word for a variant",
        put("export", "PATCH", "--to", "variant", "--base", "BASE", "-o", "OUT", "--variant", "../x"),
        "cannot name a variant",
        1,
    ),
    (
        "value of a false kind",
        "a version",
        put("export", "PATCH", "--to", "peft", "--base", "BASE", "-o", "OUT", "--transformers", "x"),
        "is no version",
        1,
    ),
    ("LoRA that is none", "a checkpoint", put("simulate", "comfyui", "SINGLE", "--base", "BASE"), "LoRA", 1),
    ("LoRA that is none", "a folder", put("simulate", "comfyui", "BASE"), "folder|no file|directory", 1),
    ("output in the way", "a page", _page_in_the_way, "exists already", 1),
    (
        "output in the way",
        "a page in a place that is none",
        put("audit", "BASE", "EDITED", "--html", "/proc/none/a.html"),
        "cannot|No such",
        1,
    ),
    (
        "output in the way",
        "an export in the base",
        put("export", "PATCH", "--to", "variant", "--base", "BASE", "-o", "BASE/x"),
        "inside each other",
        1,
    ),
    ("a pipe in the place of a file", "words", _pipe, "one phrase a line|no file|pipe", 1),
    ("truncated file", "to simulate", partial(_torn, ("simulate", "comfyui")), "lora.safetensors", 1),
]


def other_cases() -> Iterator[Case]:
    """Faults of what the audit and the exports are given."""
    for option in ("--words", "--captions"):
        for name, content, says in WORDS:
            yield Case(
                "list of words that is none", f"{name}, {option}", partial(_words, content, option), says
            )
    yield Case("captions for no words", "", partial(_words, b"a cat", "--captions"), "--words")
    for name, tensors, says in LORAS:
        yield Case("LoRA that is none", name, partial(_lora, tensors), says)
    for fault, name, make, says, code in ARGUMENTS:
        yield Case(fault, f"{name} (others)", make, says, code)
