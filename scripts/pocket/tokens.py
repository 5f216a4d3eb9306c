"""Stage 3a: a tokenizer in CLIP's format and order, its merges learnt from our own captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def byte_letters() -> list[str]:
    """The 256 letters of byte-level BPE in CLIP's order: printable bytes first, then the shifted ones."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [256 + n for n in range(256 - len(printable))]
    letters = [chr(b) for b in printable] + [chr(n) for n in shifted]
    if set(letters) != set(ByteLevel.alphabet()):
        raise SystemExit("the byte alphabet of the tokenizers library has changed")
    return letters


def learn_merges(captions: Iterator[str], count: int) -> list[tuple[str, str]]:
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512 + count,
        end_of_word_suffix="</w>",
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [(a, b) for a, b in (m if isinstance(m, list) else m.split(" ") for m in merges)]


def save(merges: list[tuple[str, str]], out: Path) -> None:
    """The four files of a CLIP tokenizer, as both transformers 4 and 5 read them."""
    out.mkdir(parents=True, exist_ok=True)
    letters = byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [a + b for a, b in merges if a + b not in set(words)]
    words += [BEGIN, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    if len(vocabulary) != len(words):
        raise SystemExit("two merges make the same token")
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def read(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
