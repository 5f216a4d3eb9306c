"""What is fuzzed: every reader of files that come from elsewhere, each given bytes of its own kind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from fuzzing.guard import Watch
from safetensors.torch import save_file
from torch import Tensor

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.header import DTYPES, open_header, read_header
from surgery.checkpoint.ldm import places_of_names
from surgery.checkpoint.notes import notes_of_folder
from surgery.checkpoint.pipeline_files import FILES_KEY, index_of, known_files
from surgery.checkpoint.reader import read_tensor
from surgery.errors import CheckpointError, SurgeryError, printable
from surgery.export.loaders.simulate import simulate_file
from surgery.export.loaders.table import rule_table
from surgery.methods.emcid import KeyStatistics, load_statistics, save_statistics
from surgery.methods.emcid.statistics_file import content_of
from surgery.patch import load_patch
from surgery.patch.undo import read_undo
from surgery.recipe import parse_any
from surgery.study.words import read_words
from tests.bad_input.case import safetensors_bytes
from tests.bad_input.patches import opened, sealed
from tests.bad_input.sound import make_sound
from tests.support.singles import averaged, sd1_tensors, sd2_tensors

Reading = Callable[[], object]
"""The reading itself, when the files that are read lie there."""

_TO_K: Final = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LORAS: Final = (
    {
        "lora_te_text_model_encoder_layers_0_mlp_fc2.lora_up.weight": ["F32", [8, 2]],
        "lora_te_text_model_encoder_layers_0_mlp_fc2.lora_down.weight": ["F32", [2, 8]],
        "lora_te_text_model_encoder_layers_0_mlp_fc2.alpha": ["F32", []],
        f"lora_unet_{_TO_K}.lora_up.weight": ["F32", [8, 2]],
        f"lora_unet_{_TO_K}.lora_down.weight": ["F32", [2, 768]],
        f"lora_unet_{_TO_K}.alpha": ["F32", []],
    },
    {
        f"lora_unet_{_TO_K}.diff": ["F16", [8, 768]],
        "lora_unet_down_blocks_0_resnets_0_conv1.diff_b": ["F16", [8]],
    },
    {"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.set_weight": ["BF16", [8, 768]]},
    {
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": ["F32", [2, 768]],
        "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight": ["F32", [8, 2]],
    },
)
"""Files that loaders take for LoRAs: types and shapes by key."""
LARGEST: Final = 1 << 20  # bytes of tensors that a reader is given
_TEXTS: Final = ("sdpatch.manifest", "sdpatch.base", "sdpatch.edit")


class Readers:
    """The readers, with the sound files they need in a folder of their own."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.watch = scratch, Watch()
        self.named = scratch / "named"
        for folder in (scratch / "sound", self.named):
            folder.mkdir()
        for picture in Path("recipes").rglob("*.png"):
            shutil.copy(picture, self.named)
        self.sound = make_sound(scratch / "sound")
        self.patch, self.patch_texts = opened(self.sound.patch)
        self.undo, self.undo_texts = opened(self.sound.undo)
        self.edited = open_checkpoint(self.sound.edited)
        self.file = scratch / "file"
        save_statistics({"text_encoder": _small_statistics()}, self.file)
        moments, self.statistics_texts = opened(self.file)
        # what was read may lie in the file's own pages, and the file is written anew for every reader
        self.moments = {key: moment.clone() for key, moment in moments.items()}
        self.table: list[Callable[[bytes], Reading]] = [
            self.header,
            self.raw_header,
            self.single,
            self.folder,
            self.pipeline,
            self.patch_file,
            self.undo_file,
            self.recipe,
            self.notes,
            self.lora,
            self.words,
            self.statistics,
        ]
        self._make_folder()

    def read(self, data: bytes) -> None:
        """Give the bytes to the reader that the first of them names.

        Raises:
            Exception: whatever the reader raises beside an error of ours.
            AssertionError: when it does more than read, says what is unsafe to print, or gives nonsense.
        """
        if not data:
            return
        reading = self.table[data[0] % len(self.table)](data[1:])
        try:
            with self.watch.reading():
                reading()
        except SurgeryError as error:
            said = str(error)
            assert said
            assert said == printable(said)

    def seeds(self) -> Iterator[bytes]:
        """Sound input for each reader."""
        small = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "b"}}
        yield self._seed(self.header, json.dumps(small))
        yield self._seed(self.raw_header, safetensors_bytes(small, bytes(8)))
        half = sd1_tensors()
        for tensors in (half, half | averaged(half), _short(sd2_tensors())):
            names = {tensor: name for name, tensor in DTYPES.items()}
            table = {key: [names[value.dtype], list(value.shape)] for key, value in tensors.items()}
            yield self._seed(self.single, json.dumps(table))
        index = (self.sound.base / "model_index.json").read_bytes()
        keys = [entry.key for entry in self._shard_entries]
        shards = {"weight_map": {key: f"{'ab'[place % 2]}.safetensors" for place, key in enumerate(keys)}}
        yield self._seed(self.folder, index + b"\0" + json.dumps(shards).encode())
        files = {"model_index.json": '{"unet": ["a", "b"]}', "unet/config.json": "{}", "README.md": ""}
        yield self._seed(self.pipeline, json.dumps(files))
        yield self._seed(self.patch_file, "\0".join(self.patch_texts[key] for key in _TEXTS))
        yield self._seed(self.undo_file, self.undo_texts["sdpatch.undo"])
        for recipe in sorted(Path("recipes").rglob("*.yaml")):
            yield self._seed(self.recipe, recipe.read_bytes()[:3000])
        yield from (self._seed(self.lora, json.dumps(table)) for table in LORAS)
        concept = {"name": "cat", "subgroup": "animal", "aliases": ["kitty"]}
        words = {
            "concepts": [concept],
            "templates": {"train": ["a {}"], "test": ["the {}"]},
            "styles": ["ink"],
        }
        yield self._seed(self.words, json.dumps(words))
        yield self._seed(self.statistics, self.statistics_texts["sdstatistics.encoders"])
        yield self._seed(self.notes, "---\nlicense: mit\ntitle: 'x'\n---\n# A title\n")

    def header(self, data: bytes) -> Reading:
        """A header whose length is right, and some data."""
        self.file.write_bytes(safetensors_bytes(data, bytes(64)))

        def reading() -> None:
            header, faults = read_header(self.file)
            assert (header is None) == bool(faults)
            for entry in header.entries if header else ():
                assert read_tensor(entry).shape == entry.shape

        return reading

    def raw_header(self, data: bytes) -> Reading:
        """A file as it is."""
        self.file.write_bytes(data)
        return lambda: read_header(self.file)

    def single(self, data: bytes) -> Reading:
        """Keys, types and shapes of a single file, laid out as they must be."""
        self._lay_out(self.file, table_of(data))

        def reading() -> None:
            checkpoint = open_checkpoint(self.file)
            for name in list(checkpoint.tensors)[:3]:
                assert checkpoint.read(name).shape == checkpoint.shapes[name]
            assert all(
                checkpoint.averaged[name].shape == checkpoint.shapes[name] for name in checkpoint.averaged
            )
            places_of_names(checkpoint.shapes)

        return reading

    def folder(self, data: bytes) -> Reading:
        """The two indexes of a folder."""
        index, _, shards = data.partition(b"\0")
        folder = self.scratch / "folder"
        (folder / "model_index.json").write_bytes(index)
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_bytes(shards)
        return lambda: open_checkpoint(folder)

    def pipeline(self, data: bytes) -> Reading:
        """The small files in a single file's metadata."""
        text = data.decode("utf-8", "replace")
        self.file.write_bytes(safetensors_bytes({"__metadata__": {FILES_KEY: text}}))

        def reading() -> None:
            files = known_files(self.file, open_header(self.file, CheckpointError))
            paths = [Path(name) for name in files]
            assert not any(path.is_absolute() or ".." in path.parts or len(path.parts) > 2 for path in paths)
            index_of(files, self.file)

        return reading

    def patch_file(self, data: bytes) -> Reading:
        """The texts of a patch, its digest made right."""
        parts = data.decode("utf-8", "replace").split("\0")
        sealed(self.file, self.patch, self.patch_texts | dict(zip(_TEXTS, parts, strict=False)))

        return lambda: load_patch(self.file)

    def undo_file(self, data: bytes) -> Reading:
        """The text of an undo file."""
        texts = {**self.undo_texts, "sdpatch.undo": data.decode("utf-8", "replace")}
        save_file(self.undo, self.file, metadata=texts)

        def reading() -> None:
            undo = read_undo(self.file)
            for name in undo.digests.keys() & self.edited.tensors.keys():
                undo.restore(name, self.edited.read(name))

        return reading

    def recipe(self, data: bytes) -> Reading:
        """A recipe's text, seen from a folder that has the files which ours name."""
        text = data.decode("utf-8", "replace")
        return lambda: parse_any(text, path=self.named / "recipe.yaml")

    def notes(self, data: bytes) -> Reading:
        """A folder's README."""
        (self.scratch / "README.md").write_bytes(data)

        def reading() -> None:
            found = notes_of_folder(self.scratch)
            assert all(text == printable(text) and len(text) <= 200 for text in found.values())

        return reading

    def lora(self, data: bytes) -> Reading:
        """Keys, types and shapes of a file that loaders take for a LoRA, each loader in turn."""
        self._lay_out(self.file, table_of(data))

        def reading() -> None:
            for name in rule_table().loaders:
                assert simulate_file(name, self.file).verdicts

        return reading

    def words(self, data: bytes) -> Reading:
        """Names and templates beside a checkpoint."""
        (self.scratch / "words.json").write_bytes(data)

        def reading() -> None:
            found = read_words(self.scratch, self.scratch / "words.json")
            found.others((), 3)
            assert all(isinstance(text, str) for text in (*found.concepts, *found.templates("test")))

        return reading

    def statistics(self, data: bytes) -> Reading:
        """The text of key statistics, its digest made right."""
        texts = {**self.statistics_texts, "sdstatistics.encoders": data.decode("utf-8", "replace")}
        texts["sdstatistics.content"] = content_of(texts, self.moments)
        save_file(self.moments, self.file, metadata=texts)
        return lambda: load_statistics(self.file)

    def _seed(self, reader: Callable[[bytes], Reading], content: str | bytes) -> bytes:
        text = content.encode() if isinstance(content, str) else content
        return bytes([self.table.index(reader)]) + text

    def _lay_out(self, path: Path, table: dict[str, tuple[str, list[int]]]) -> None:
        """A file of zeros with these tensors, each where it must be."""
        header, end = {}, 0
        for key, (dtype, shape) in table.items():
            start, end = end, end + prod(shape) * DTYPES[dtype].itemsize
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        path.write_bytes(safetensors_bytes(header, bytes(end)))

    def _make_folder(self) -> None:
        folder = self.scratch / "folder"
        for name in ("text_encoder", "vae"):
            (folder / name).mkdir(parents=True)
            for file in (self.sound.base / name).glob("*.safetensors"):
                (folder / name / file.name).write_bytes(file.read_bytes())
        (folder / "unet").mkdir()
        [whole] = (self.sound.base / "unet").glob("*.safetensors")
        self._shard_entries = open_header(whole, CheckpointError).entries
        for place, letter in enumerate("ab"):
            table = {entry.key: ("F16", list(entry.shape)) for entry in self._shard_entries[place::2]}
            self._lay_out(folder / "unet" / f"{letter}.safetensors", table)


def _small_statistics() -> KeyStatistics:
    """Of one layer that is four wide."""
    return KeyStatistics(
        moments={0: torch.ones(10)},
        token_count=8,
        word_count=4,
        caption_count=2,
        encoder_digest="0" * 64,
        corpus_digest="1" * 64,
    )


def _short(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without most blocks of the text encoder, which are all alike."""
    return {
        key: value for key, value in tensors.items() if not re.search(r"resblocks\.(\d|1\d|2[01])\.", key)
    }


def table_of(data: bytes) -> dict[str, tuple[str, list[int]]]:
    """Keys with types and shapes out of JSON, what is no such thing left out, up to a size."""
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    table: dict[str, tuple[str, list[int]]] = {}
    room = LARGEST
    for key, value in raw.items() if isinstance(raw, dict) else ():
        match value:
            case [str(dtype), list(shape)] if dtype in DTYPES and all(
                type(n) is int and n >= 0 for n in shape
            ):
                room -= prod(shape) * torch.empty(0, dtype=DTYPES[dtype]).element_size()
                if room < 0:
                    break
                table[key] = (dtype, shape)
            case _:
                continue
    return table
