"""Headers are believed only where every number in them holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from surgery.checkpoint.header import read_header
from surgery.checkpoint.reader import read_tensor
from surgery.errors import CheckpointError


def good_file(path: Path) -> Path:
    tensors = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4).half()}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with its header changed and its data kept."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return path


def faults_of(path: Path) -> str:
    header, faults = read_header(path)
    assert header is None
    assert all(fault.startswith(str(path)) for fault in faults)
    return "\n".join(faults)


def test_a_sound_file_gives_its_tensors_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header, faults = read_header(good_file(tmp_path / "x.safetensors"))
    assert faults == []
    assert header is not None
    assert header.metadata == {"format": "pt"}
    read = {entry.key: read_tensor(entry) for entry in header.entries}
    assert list(read) == ["a", "b"]
    assert torch.equal(read["a"], torch.arange(6, dtype=torch.float32).reshape(2, 3))
    assert torch.equal(read["b"], torch.ones(4).half())


def test_a_tensor_without_elements_is_read(tmp_path: Path) -> None:
    save_file({"none": torch.zeros(0, 3), "scalar": torch.tensor(7)}, tmp_path / "x")
    header, _ = read_header(tmp_path / "x")
    assert header is not None
    read = {entry.key: read_tensor(entry) for entry in header.entries}
    assert read["none"].shape == (0, 3)
    assert read["scalar"] == 7


@pytest.mark.parametrize("length", [0, 3, 8, 40])
def test_a_truncated_file_is_cut_off(tmp_path: Path, length: int) -> None:
    path = good_file(tmp_path / "x")
    path.write_bytes(path.read_bytes()[:length])
    assert "the file ends after" in faults_of(path)


def test_missing_data_is_noticed_from_the_file_size(tmp_path: Path) -> None:
    path = good_file(tmp_path / "x")
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut off" in faults_of(path)


def test_data_behind_the_last_tensor_is_noticed(tmp_path: Path) -> None:
    path = good_file(tmp_path / "x")
    path.write_bytes(path.read_bytes() + b"12")
    assert "2 bytes follow the last tensor" in faults_of(path)


def test_a_header_longer_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as handle:
        handle.write((25_000_001).to_bytes(8, "little"))
        handle.truncate(25_000_100)  # a hole: takes no room on the disk
    assert "more than the 25000000 allowed" in faults_of(path)


@pytest.mark.parametrize("text", [b"[]", b"nonsense", b"\xff\xfe", b'{"a": 1'])
def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert "its header is no" in faults_of(path)


def test_a_doubled_name_is_refused(tmp_path: Path) -> None:
    entry = '{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    text = f'{{"twice":{entry},"twice":{entry}}}'.encode()
    path = tmp_path / "x"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"1")
    assert "names 'twice' twice" in faults_of(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F12"}, "'a' has the type 'F12'"),
        ({"shape": [2, -3]}, "'a' has the shape"),
        ({"shape": [2, 4]}, "'a' takes bytes 0 to 24; its type and shape need 32"),
        ({"shape": "six"}, "'a' is described by"),
        ({"data_offsets": [24, 0]}, "'a' takes bytes 24 to 0"),
        ({"data_offsets": [-24, 0]}, "'a' takes bytes -24 to 0"),
        ({"data_offsets": [8, 32]}, "'a' leaves a hole after the header"),
    ],
)
def test_a_false_description_names_the_tensor(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = rewrite(good_file(tmp_path / "x"), lambda table: table["a"].update(change))
    assert message in faults_of(path)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    path = rewrite(good_file(tmp_path / "x"), lambda table: table["b"].update(data_offsets=[16, 24]))
    assert "'b' overlaps tensor 'a'" in faults_of(path)


def test_all_false_descriptions_are_reported_at_once(tmp_path: Path) -> None:
    def spoil(table: dict[str, Any]) -> None:
        table["a"]["dtype"] = "F12"
        table["b"]["shape"] = [5]
        table["__metadata__"] = {"format": 1}

    report = faults_of(rewrite(good_file(tmp_path / "x"), spoil))
    assert report.count("\n") == 2
    assert "'a'" in report and "'b'" in report and "__metadata__" in report


def test_a_file_that_shrinks_after_its_header_was_read_is_an_error(tmp_path: Path) -> None:
    path = good_file(tmp_path / "x")
    header, _ = read_header(path)
    assert header is not None
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="is not what it was when its header was read"):
        read_tensor(header.entries[-1])


@settings(max_examples=200)
@given(place=st.integers(0, 199), byte=st.integers(0, 255), cut=st.integers(0, 200))
def test_any_damage_is_a_fault_or_harmless_but_never_another_exception(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, cut: int
) -> None:
    path = good_file(tmp_path_factory.mktemp("fuzz") / "x")
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] = byte
    path.write_bytes(raw[: max(0, len(raw) - cut)] if cut % 4 == 0 else raw)
    header, faults = read_header(path)
    assert (header is None) == bool(faults)
    for entry in header.entries if header else ():
        assert read_tensor(entry).shape == entry.shape


@given(text=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_json_in_place_of_a_tensor_is_a_fault(
    tmp_path_factory: pytest.TempPathFactory, text: object
) -> None:
    path = rewrite(good_file(tmp_path_factory.mktemp("fuzz") / "x"), lambda table: table.update(a=text))
    assert "'a' is described by" in faults_of(path)
