"""Checkpoints of full size, made of random numbers: exact there and back, how fast, and in how much memory.

The embedded checkpoint goes the same ways, but for what is timed.

Each step that is measured runs in a process of its own that has imported torch and nothing else of weight.
Its memory is what the process holds that is no file's (RssAnon), looked at every few milliseconds. Before a
cold reading the system is asked to drop what it keeps of the file; the warm one follows at once. A step and
what it is held against take turns, and medians of the rounds are compared, since disks have moods. At most
three copies lie on the disk at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from surgery.checkpoint import convert_checkpoint, open_checkpoint
from surgery.checkpoint.atomic import Bytes, atomic_file, write_bytes
from surgery.checkpoint.digest import byte_digests, tensor_bytes
from surgery.checkpoint.families import Family, family_files
from surgery.checkpoint.ldm import Place, places_of_names
from surgery.checkpoint.pipeline_files import FILES_KEY
from surgery.checkpoint.serialise import Copied, safetensors_chunks
from surgery.delta import Delta, LowRank
from surgery.names import canonical
from surgery.patch import (
    Term,
    apply_patch,
    diff_checkpoints,
    load_patch,
    make_patch,
    revert_patch,
    save_patch,
    verify_patch,
)
from surgery.shelf import checkpoint_path
from tests.support.measure import peak_memory
from tests.support.older import older_python

VOCABULARY: Final = {
    "vocab.json": json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}),
    "merges.txt": "#version: 0.2\n",
}
ROOT: Final = Path(__file__).resolve().parents[2]
MEMORY: Final = 600_000_000  # bytes that no step but an export may exceed
ROUNDS: Final = 3
EMBEDDED: Final = "pocket-sd"
LORA_LIMIT: Final = 2_000_000_000  # bytes; the exact LoRA of every key and value of XL takes 1.2 GB
BLOCK: Final = 1 << 20  # random numbers made at a time

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is made: a family, and the type its weights are stored in."""

    family: Family
    dtype: torch.dtype


def _family(name: str) -> Family:
    pictures = 1024 if "xl" in name else 512
    return Family(name=name, pictures=pictures, prediction="epsilon", inputs=4)


SIZES: Final[Mapping[str, Size]] = {
    "sd15-fp16": Size(family=_family("stable-diffusion-v1"), dtype=torch.float16),
    "sd15-fp32": Size(family=_family("stable-diffusion-v1"), dtype=torch.float32),
    "sdxl-fp16": Size(family=_family("stable-diffusion-xl-v1-base"), dtype=torch.float16),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step took: seconds on the clock and of the processor, bytes of memory, and what it found."""

    elapsed_s: float
    processor_s: float
    memory_bytes: int
    found: Any


def all_sizes(options: argparse.Namespace) -> bool:
    """``full_size`` of every size that is asked for."""
    held = {size: full_size(size, options.scratch) for size in options.sizes}
    return all(held.values())


def full_size(size: str, scratch: Path, *, narrow: bool = False) -> bool:
    """Make, convert, patch and take out again; print what was measured, and whether all of it held.

    Args:
        size: One of `SIZES`, or ``pocket-sd``.
        scratch: A folder with room for three copies; what is made there is removed.
        narrow: A fraction of the width, and all in this process: the same code, for tests.
    """
    folder = scratch / f"full-size-{size}"
    folder.mkdir(parents=True)
    run = measured_here if narrow else measured
    try:
        if size == EMBEDDED:
            return _embedded(folder, run)
        return _campaign(SIZES[size], folder, narrow, run)
    finally:
        shutil.rmtree(folder)


Run = Callable[..., Cost]


def _campaign(size: Size, folder: Path, narrow: bool, run: Run) -> bool:
    single = folder / "base.safetensors"
    files = family_files(size.family, VOCABULARY)
    files = narrowed(files) if narrow else files
    shapes = shapes_of(files)
    write_random(single, shapes, files, size.dtype)
    print(f"{size.family.name}, {size.dtype}: {single.stat().st_size / 1e9:.2f} GB")
    table = Table(run, bounded=not narrow)
    _hashed(table, single)
    _audited(table, single, shapes, files, size.dtype)
    _converted(table, single, folder)
    patch = _patched(table, single, folder)
    _loaded(table, single, patch, folder)
    return table.done()


def _embedded(folder: Path, run: Run) -> bool:
    """What must be exact, on the embedded checkpoint as a single file; it is too small to be timed."""
    single = folder / "base.safetensors"
    convert_checkpoint(open_checkpoint(checkpoint_path(EMBEDDED)), single)
    print(f"{EMBEDDED}: {single.stat().st_size / 1e9:.2f} GB")
    table = Table(run, bounded=False)
    _converted(table, single, folder)
    _loaded(table, single, _patched(table, single, folder), folder)
    return table.done()


def _hashed(table: Table, single: Path) -> None:
    """How fast a file is read, hashed and fingerprinted."""
    steps = ("sha256", "bytes", "bytes and value16")
    table.time(*(Timed(name=step, step=step, paths=[single]) for step in steps))
    table.bound("bytes", "sha256", 1.15)
    table.bound("bytes and value16", "sha256", 1.7)


def _audited(
    table: Table, single: Path, shapes: Shapes, files: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Two models that differ in every weight: read plainly, and looked at."""
    other = single.with_name("other.safetensors")
    write_random(other, shapes, files, dtype, shift=0.5)
    both = [single, other]
    table.time(
        Timed(name="read both", step="read", paths=both),
        Timed(name="audit, all different", step="audit", paths=both),
    )
    table.bound("audit, all different", "read both", 1.3)
    told = table.found("audit, all different")
    table.true(f"audit: all {len(shapes)} weights changed", told == len(shapes))
    remove(other)


def _converted(table: Table, single: Path, folder: Path) -> None:
    other, back = folder / "folder", folder / "back.safetensors"
    table.one("to folder", table.run("convert", single, other))
    table.one("to single", table.run("convert", other, back))
    table.check("single, folder, single: the same bytes", table.run("same", single, back))
    remove(back)
    patch, edited, undo = folder / "patch", folder / "edited", folder / "undo"
    table.one("make patch of the folder", table.run("patch", other, patch))
    table.one("apply to the folder", table.run("apply", patch, other, edited, undo))
    remove(other)
    table.one("revert the folder", table.run("revert", patch, edited, other, undo))
    remove(edited)
    table.one("to single", table.run("convert", other, back))
    table.check("folder, apply, revert, single: the same bytes", table.run("same", single, back))
    for path in (other, back, patch, undo):
        remove(path)


def _patched(table: Table, single: Path, folder: Path) -> Path:
    """Applied, told apart from the base, and taken out; the patch's file stays."""
    patch, edited = folder / "patch.safetensors", folder / "edited.safetensors"
    undo, back, found = folder / "undo.safetensors", folder / "back.safetensors", folder / "diff.safetensors"
    table.one("make patch", table.run("patch", single, patch))
    print(f"the patch takes {patch.stat().st_size / single.stat().st_size:.2%} of the bytes")
    table.time(
        Timed(name="copy", step="copy", paths=[single, edited], made=edited),
        Timed(name="apply", step="apply", paths=[patch, single, edited], made=edited),
    )
    table.bound("apply", "copy", 1.3)
    table.one("apply, with an undo file", table.run("apply", patch, single, edited, undo))
    table.one("verify", table.run("verify", patch, edited))
    table.one("diff", table.run("diff", single, edited, found))
    table.one("apply the diff", table.run("apply", found, single, back))
    table.check("diff, apply: the edited bytes", table.run("same", edited, back))
    remove(back)
    table.one("revert", table.run("revert", patch, edited, back, undo))
    table.check("apply, revert: the same bytes", table.run("same", single, back))
    for path in (edited, undo, back, found):
        remove(path)
    return patch


def _loaded(table: Table, single: Path, patch: Path, folder: Path) -> None:
    """The patch as a LoRA that stock diffusers of both generations fuse, against what the patch makes."""
    lora = folder / "lora.safetensors"
    exported = table.run("export", patch, single, lora)
    table.one("export as a LoRA", exported, bounded=False)
    print(f"the LoRA takes {lora.stat().st_size / 1e6:.0f} MB")
    table.true("the LoRA is exact", exported.found == 0.0)
    for name in ("prove", "prove, older"):
        cost = table.run(name, lora, single, patch)
        print(f"{name}: {cost.elapsed_s:.1f} s", flush=True)
        table.check(f"{name}: diffusers fuses it to every value of the merged checkpoint at fp16", cost)
    remove(lora)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A step that is timed with and without the system's copies of its files; ``made`` goes in between."""

    name: str
    step: str
    paths: Sequence[Path]
    made: Path | None = None


class Table:
    """Prints costs as they come, and remembers whether all that must hold did."""

    def __init__(self, run: Run, *, bounded: bool) -> None:
        self.run, self.good, self.bounded = run, True, bounded
        self.costs: dict[tuple[str, str], list[Cost]] = {}
        print(f"{'':28}{'s':>8}{'processor':>11}{'memory MB':>11}")

    def one(self, name: str, cost: Cost, *, bounded: bool = True) -> None:
        """One line; more memory than allowed is a fault."""
        much = bounded and cost.memory_bytes > MEMORY
        self.good = self.good and not much
        taken = f"{cost.memory_bytes / 1e6:11.0f}{'  TOO MUCH' if much else ''}"
        print(f"{name:28}{cost.elapsed_s:8.1f}{cost.processor_s:11.1f}{taken}", flush=True)

    def time(self, *steps: Timed) -> None:
        """Several steps in turns, each time cold and then warm."""
        for _ in range(ROUNDS if self.bounded else 1):
            for timed in steps:
                for word in ("cold", "warm"):
                    if word == "cold":
                        for path in timed.paths:
                            drop_cache(path)
                    cost = self.run(timed.step, *timed.paths)
                    self.costs.setdefault((timed.name, word), []).append(cost)
                    self.one(f"{timed.name}, {word}", cost)
                    if timed.made is not None:
                        remove(timed.made)

    def median(self, name: str, word: str, unit: str) -> float:
        """Of the rounds, cold or warm, in seconds."""
        return statistics.median(float(getattr(cost, unit)) for cost in self.costs[name, word])

    def found(self, name: str) -> Any:
        """What a step that was timed found last."""
        return self.costs[name, "warm"][-1].found

    def bound(self, name: str, floor: str, most: float) -> None:
        """What a step may take of the plain one's time, both without the system's copies; warm beside it."""

        def ratio(word: str, unit: str = "elapsed_s") -> float:
            return self.median(name, word, unit) / max(self.median(floor, word, unit), 1e-9)

        held = ratio("cold") <= most or not self.bounded  # small files are all overhead
        self.good = self.good and held
        parts = f"{ratio('cold'):.2f} cold, {ratio('warm'):.2f} warm"
        processor = f"{ratio('warm', 'processor_s'):.2f} of the processor, warm"
        asked = f"at most {most:g} cold" if self.bounded else "too small to be held to a bound"
        verdict = "" if held else "  TOO MUCH"
        print(f"{name} over {floor}: {parts}, {processor}; {asked}{verdict}", flush=True)

    def check(self, what: str, cost: Cost) -> None:
        """What a step must have found."""
        self.true(what, bool(cost.found))

    def true(self, what: str, held: bool) -> None:
        """What must be true."""
        self.good = self.good and held
        print(f"{what}: {'yes' if held else 'NO'}", flush=True)

    def done(self) -> bool:
        """Whether everything held."""
        return self.good


# what is made


def narrowed(files: Mapping[str, str]) -> dict[str, str]:
    """The configurations with a fraction of the width, and of the blocks that are all alike."""
    changes: dict[str, dict[str, Any]] = {
        "unet/config.json": {"cross_attention_dim": 64, "norm_num_groups": 8, "attention_head_dim": 4},
        "vae/config.json": {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 8},
        "text_encoder/config.json": {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 99},
        "text_encoder_2/config.json": {"hidden_size": 40, "intermediate_size": 64, "vocab_size": 99},
    }
    made = dict(files)
    for path, change in changes.items():
        if path in files:
            table = json.loads(files[path])
            if "block_out_channels" in table and "block_out_channels" not in change:
                change = {**change, "block_out_channels": [n // 40 for n in table["block_out_channels"]]}
            if "num_attention_heads" in table:
                heads = {"num_attention_heads": 2, "num_hidden_layers": 2}
                change = {**change, **heads, "projection_dim": change["hidden_size"]}
            if "projection_class_embeddings_input_dim" in table:
                change = {**change, "projection_class_embeddings_input_dim": 40 + 6 * 256}
                change["transformer_layers_per_block"] = 1
            made[path] = json.dumps(table | change)
    return made


def shapes_of(files: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes that the libraries build from configurations, by canonical name."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kinds: dict[str, Callable[[dict[str, Any]], torch.nn.Module]] = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda table: CLIPTextModel(CLIPTextConfig(**table)),
        "text_encoder_2": lambda table: CLIPTextModelWithProjection(CLIPTextConfig(**table)),
    }
    shapes = {}
    for component, make in kinds.items():
        if f"{component}/config.json" in files:
            with torch.device("meta"):
                model = make(json.loads(files[f"{component}/config.json"]))
            for path, parameter in model.named_parameters():
                shapes[canonical(component, path)] = tuple(parameter.shape)
    return shapes


def write_random(
    path: Path, shapes: Shapes, files: Mapping[str, str], dtype: torch.dtype, shift: float = 0.0
) -> None:
    """A single file of random weights, a block at a time; another ``shift`` gives other ones everywhere."""
    places = places_of_names(shapes)
    tensors: dict[str, Copied] = {}
    for name, place in places.items():
        shape = stored_shape(shapes[name], place)
        made = partial(random_blocks, len(tensors), torch.Size(shape).numel(), dtype, shift)
        tensors[place.key] = Copied(dtype=dtype, shape=shape, chunks=made)
    texts = json.dumps(dict(files), ensure_ascii=False, sort_keys=True)
    metadata = {"format": "pt", FILES_KEY: texts}
    with atomic_file(path) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, metadata))


def stored_shape(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    """The shape of a tensor in the file."""
    whole = (shape[0] * place.parts, *shape[1:])
    if place.transposed:
        return whole[::-1]
    return (*whole, 1, 1) if place.pixel else whole


def random_blocks(seed: int, elements: int, dtype: torch.dtype, shift: float = 0.0) -> Iterator[Bytes]:
    """Numbers about as large as weights; each block is one block of random numbers, times its own factor."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(min(BLOCK, elements), generator=generator)
    for number, start in enumerate(range(0, elements, BLOCK)):
        factor = 0.02 * (1 + shift) * (1 + (seed % 997) / 1000 + number / 100_000)
        yield tensor_bytes((block[: elements - start] * factor).to(dtype))


# what is measured


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _patch(base: Path, out: Path) -> int:
    """A change of rank 4 of every key and value of the cross-attention."""
    checkpoint = open_checkpoint(base)
    generator = torch.Generator().manual_seed(0)
    forms = {}
    for name, shape in checkpoint.shapes.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            left = 0.01 * torch.randn(shape[0], 4, generator=generator)
            forms[name] = LowRank(left, torch.randn(4, shape[1], generator=generator))
    save_patch(make_patch([Term(delta=Delta(forms), source="random")], checkpoint), out)
    return len(forms)


def _copy(source: Path, out: Path) -> None:
    """What reading and writing alone takes, as far as the disk."""
    with source.open("rb", buffering=0) as read, out.open("wb", buffering=0) as written:
        shutil.copyfileobj(read, written, 1 << 20)
        os.fsync(written.fileno())


def _read(*paths: Path) -> int:
    """Every byte of some files, and nothing done with it."""
    total, block = 0, bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                total += count
    return total


def _audit(base: Path, edited: Path) -> int:
    from surgery.audit import AuditOptions, audit_checkpoints

    record = audit_checkpoints(base, edited, AuditOptions(spectra=False))
    return sum(row.state == "changed" for row in record.tensors)


def _diff(base: Path, edited: Path, out: Path) -> None:
    save_patch(diff_checkpoints(base, edited).patch, out)


def _export(patch: Path, base: Path, out: Path) -> float:
    from surgery.export import Knobs, export_patch

    knobs = Knobs(limit_bytes=LORA_LIMIT)
    return max(export_patch(load_patch(patch), base, out, to="universal-lora", knobs=knobs).errors.values())


def _prove(lora: Path, base: Path, patch: Path) -> bool:
    from surgery.export import prove_file

    return prove_file(lora, base, patch).holds


def _prove_older(lora: Path, base: Path, patch: Path) -> bool:
    """The same in the environment of the older libraries."""
    command = ["prove", str(lora), "--base", str(base), "--patch", str(patch)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [older_python(), "-m", "surgery", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode == 0


def _same(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and _sha256(first) == _sha256(second)


STEPS: Final[Mapping[str, Callable[..., object]]] = {
    "sha256": _sha256,
    "bytes": lambda path: len(byte_digests(open_checkpoint(path).tensors)),
    "bytes and value16": lambda path: len(open_checkpoint(path).fingerprint().tensors),
    "convert": lambda path, out: convert_checkpoint(open_checkpoint(path), out).tensors,
    "patch": _patch,
    "copy": _copy,
    "apply": lambda patch, base, out, undo=None: apply_patch(load_patch(patch), base, out, undo=undo).exact,
    "verify": lambda patch, edited: verify_patch(load_patch(patch), edited).word,
    "revert": lambda patch, edited, out, undo: revert_patch(load_patch(patch), edited, out, undo=undo),
    "same": _same,
    "read": _read,
    "audit": _audit,
    "diff": _diff,
    "export": _export,
    "prove": _prove,
    "prove, older": _prove_older,
}


def measured_here(step: str, *paths: Path) -> Cost:
    """A step in this process, with what it takes."""
    with peak_memory() as memory:
        started, processor = time.perf_counter(), time.process_time()
        found = STEPS[step](*paths)
        elapsed_s, processor_s = time.perf_counter() - started, time.process_time() - processor
    return Cost(elapsed_s=elapsed_s, processor_s=processor_s, memory_bytes=memory.count, found=found)


def measured(step: str, *paths: Path) -> Cost:
    """A step in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), step, *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def drop_cache(path: Path) -> None:
    """Ask the system to forget what it keeps of the files in memory."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        with suppress(OSError), file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


if __name__ == "__main__":
    cost = measured_here(sys.argv[1], *map(Path, sys.argv[2:]))
    sys.stdout.write(json.dumps({name: getattr(cost, name) for name in cost.__dataclass_fields__}) + "\n")
