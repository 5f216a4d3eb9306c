"""The written format: a stranger's reader agrees with ours to the bit, and golden files keep their bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, Dense, Form, LowRank, Operator, Places, Replace, Rescale, Sparse
from surgery.patch import Patch, Term, apply_patch, load_patch, make_patch, patch_digest, save_patch
from surgery.record import file_digest
from tests.support import stranger
from tests.support.folders import CONV as CONV_PATH
from tests.support.folders import CONV_NAME, FC2, FC2_NAME, PROJ_IN, TO_K, TO_K_NAME, write_folder

GOLDEN = Path(__file__).parent / "golden"
FLAT, GAPS, BITS, FULL = (f"unet/{name}.weight" for name in ("flat", "csr", "bits", "full"))
OLDER = "operations-with-csr"


def numbers(*shape: int, seed: int = 1) -> Tensor:
    """Numbers between −1 and 1 from a formula, so that no generator of random numbers can change them."""
    count = int(np.prod(shape))
    return ((torch.arange(count) * 7919 * seed % 2003) / 1001.5 - 1).reshape(shape).float()


def base_at(folder: Path, name: str = "operations") -> Path:
    """A pretended SD 1.x for the golden files; the older ones were made on a smaller weight."""
    weights = {
        "text_encoder": {f"text_model.{FC2}": numbers(6, 5).half()},
        "unet": {
            TO_K: numbers(4, 6, seed=2).half(),
            CONV_PATH: numbers(3, 2, 3, 3, seed=3).half(),
            PROJ_IN: numbers(2, 2, 1, 1, seed=4).half(),
            "flat.weight": numbers(20, 9000 if name == "operations" else 9, seed=5),
            "csr.weight": numbers(8, 18, seed=6).repeat(1, 500).half(),
            "bits.weight": numbers(9, 11, seed=7).half(),
            "full.weight": numbers(4, 4, seed=8).half(),
        },
    }
    weights["text_encoder"][f"text_model.{FC2}"][0, 0] = -0.0
    return write_folder(folder, weights)


def elements(shape: tuple[int, ...], index: list[int] | Tensor) -> Places:
    return Places("elements", shape, torch.as_tensor(index, dtype=torch.int64))


def every_operation() -> list[Term]:
    rows = Places("rows", (3, 2, 3, 3), torch.tensor([0, 2]))
    columns = Places("columns", (4, 4), torch.tensor([1]))
    forms: list[dict[str, Form]] = [
        {
            FC2_NAME: LowRank(numbers(6, 3, seed=9), numbers(3, 5, seed=10)),
            TO_K_NAME: Operator(numbers(6, 2, seed=11), numbers(2, 6, seed=12)),
            CONV_NAME: Replace(rows, numbers(2, 2, 3, 3, seed=13).half()),
            FLAT: Rescale(elements((20, 9000), [89_999, 179_999]), torch.tensor([0.0, 1.25])),
            GAPS: Sparse(elements((8, 9000), torch.arange(0, 72_000, 36)), numbers(2000, seed=14).half()),
            BITS: Replace(elements((9, 11), list(range(0, 99, 2))), numbers(50, seed=15).half()),
            FULL: Replace(columns, numbers(4, 1, seed=16).half(), numbers(4, 4, seed=8).half()[:, 1:2]),
        },
        {
            FC2_NAME: Dense(numbers(6, 5, seed=17).half()),
            CONV_NAME: Sparse(elements((3, 2, 3, 3), [20]), torch.ones(1)),
        },
    ]
    return [
        Term(delta=Delta(delta), strength=strength, source=source)
        for delta, strength, source in zip(forms, (1.0, 0.5), ("one", "two"), strict=True)
    ]


def low_ranks() -> list[Term]:
    first: dict[str, Form] = {
        FC2_NAME: LowRank(numbers(6, 2, seed=18), numbers(2, 5, seed=19)),
        CONV_NAME: LowRank(numbers(3, 1, seed=20), numbers(1, 18, seed=21)),
    }
    second: dict[str, Form] = {FC2_NAME: LowRank(numbers(6, 1, seed=22), numbers(1, 5, seed=23))}
    return [Term(delta=Delta(first), source="one"), Term(delta=Delta(second), source="two")]


TERMS = {"operations": every_operation, "lora": low_ranks}
each_file = pytest.mark.parametrize("name", TERMS)
each_readable = pytest.mark.parametrize("name", [*TERMS, OLDER])


def made(name: str, base: Path) -> Patch:
    return make_patch(TERMS[name](), open_checkpoint(base), {"versions": {}, "title": name})


@each_file
def test_golden_files_are_written_to_the_byte(name: str, tmp_path: Path) -> None:
    save_patch(made(name, base_at(tmp_path / "base", name)), tmp_path / "patch")
    assert (tmp_path / "patch").read_bytes() == (GOLDEN / f"{name}.safetensors").read_bytes()


@each_readable
@pytest.mark.parametrize("strength", [1.0, 0.25, -1.0])
def test_a_stranger_applies_golden_files_to_the_bit(name: str, strength: float, tmp_path: Path) -> None:
    file, base = GOLDEN / f"{name}.safetensors", base_at(tmp_path / "base", name)
    checkpoint = open_checkpoint(base)
    weights = {tensor: checkpoint.read(tensor).numpy() for tensor in checkpoint.tensors}
    theirs = stranger.apply(file, weights, strength)
    apply_patch(load_patch(file), base, tmp_path / "edited", strength=strength)
    ours = open_checkpoint(tmp_path / "edited")
    assert theirs.keys() == load_patch(file).changes.keys()
    for tensor, values in theirs.items():
        assert ours.read(tensor).numpy().tobytes() == values.tobytes(), tensor


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_of_masks_that_overlap_the_strongest_counts_for_a_stranger_too(
    strength: float, tmp_path: Path
) -> None:
    base = base_at(tmp_path / "base")
    checkpoint, shape = open_checkpoint(base), (20, 9000)
    parts = [([3, 5, 9], 0.5), ([5, 9, 11], 0.0), ([9, 12], 0.25)]
    terms = [
        Term(delta=Delta({FLAT: Rescale(elements(shape, index), torch.tensor(factor))}), source=str(factor))
        for index, factor in parts
    ]
    save_patch(make_patch(terms, checkpoint), tmp_path / "patch")
    save_patch(make_patch(terms[::-1], checkpoint), tmp_path / "turned")
    assert (tmp_path / "patch").read_bytes() == (tmp_path / "turned").read_bytes()
    before = checkpoint.read(FLAT)
    theirs = stranger.apply(tmp_path / "patch", {FLAT: before.numpy()}, strength)[FLAT]
    apply_patch(load_patch(tmp_path / "patch"), base, tmp_path / "edited", strength=strength)
    ours = open_checkpoint(tmp_path / "edited").read(FLAT)
    assert ours.numpy().tobytes() == theirs.tobytes()
    if strength == 1:
        left = (ours / before).flatten()
        assert [float(left[place]) for place in (3, 5, 9, 11, 12, 13)] == [0.5, 0.0, 0.0, 0.0, 0.25, 1.0]


@each_readable
def test_a_stranger_finds_the_digests_of_golden_files(name: str, tmp_path: Path) -> None:
    metadata, tensors, types = stranger.read(GOLDEN / f"{name}.safetensors")
    assert stranger.content(metadata, tensors, types) == metadata["sdpatch.content"]
    checkpoint = open_checkpoint(base_at(tmp_path / "base", name))
    weights = {tensor: checkpoint.read(tensor).numpy() for tensor in checkpoint.tensors}
    after = stranger.apply(GOLDEN / f"{name}.safetensors", weights)
    for tensor, change in json.loads(metadata["sdpatch.manifest"])["changes"].items():
        assert stranger.digests(tensor, weights[tensor]) == change["before"]
        assert stranger.digests(tensor, after[tensor]) == change["after"]


def test_the_golden_operations_use_every_operation_and_index() -> None:
    manifest = json.loads(stranger.read(GOLDEN / "operations.safetensors")[0]["sdpatch.manifest"])
    forms = [form for term in manifest["terms"] for form in term["forms"].values()]
    assert {form["op"].split("_")[0] for form in forms} == {"add", "operator", "set", "scale"}
    assert {form["index"] for form in forms} == {"", "list", "flat", "gaps", "bits"}


def test_a_file_that_we_would_write_otherwise_keeps_its_own_digest() -> None:
    file = GOLDEN / f"{OLDER}.safetensors"
    assert patch_digest(load_patch(file)) == file_digest(file)
