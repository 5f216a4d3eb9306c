"""New safetensors files are read by the library, and are the same bytes for the same content."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from surgery.checkpoint.header import DTYPES, read_header
from surgery.checkpoint.serialise import Lazy, safetensors_chunks

TENSORS = {
    "b": torch.arange(3, dtype=torch.float16),
    "a": torch.tensor(1.5),
    "long": torch.tensor([[1, 2]]),
    "byte": torch.tensor([7], dtype=torch.uint8),
    "none": torch.zeros(0, 4),
    "view": torch.arange(6.0).reshape(2, 3).T,
}


def written(**metadata: str) -> bytes:
    return b"".join(bytes(chunk) for chunk in safetensors_chunks(TENSORS, metadata))


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written(format="pt", word="ünï"))
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[key], TENSORS[key]) for key in TENSORS)
    with safe_open(path, "pt") as handle:
        assert handle.metadata() == {"format": "pt", "word": "ünï"}


def test_our_own_check_finds_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written())
    assert read_header(path)[1] == []


def test_order_of_tensors_and_metadata_does_not_change_the_bytes() -> None:
    backwards = dict(reversed(TENSORS.items()))
    chunks = safetensors_chunks(backwards, {"b": "2", "a": "1"})
    assert b"".join(bytes(chunk) for chunk in chunks) == written(a="1", b="2")


def test_every_tensor_starts_at_a_multiple_of_its_element_size() -> None:
    raw = written(odd="x")
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    for key, entry in json.loads(raw[8 : 8 + length]).items():
        if key != "__metadata__":
            assert entry["data_offsets"][0] % DTYPES[entry["dtype"]].itemsize == 0


@pytest.mark.parametrize("key", TENSORS)
def test_a_lazy_tensor_is_written_like_a_ready_one(key: str) -> None:
    ready = TENSORS[key]
    lazy = Lazy(dtype=ready.dtype, shape=tuple(ready.shape), make=lambda: ready)
    chunks = safetensors_chunks(TENSORS | {key: lazy}, {})
    assert b"".join(bytes(chunk) for chunk in chunks) == written()
