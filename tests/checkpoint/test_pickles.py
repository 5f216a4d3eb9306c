"""Pickles give their tensors only when asked, and nothing in them is ever run."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.header import open_header
from surgery.checkpoint.pickles import unpickle_checkpoint
from surgery.errors import CheckpointError, SurgeryError
from tests.support.pickles import Code, class_key_pickle
from tests.support.singles import averaged, sd1_tensors


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    half = sd1_tensors()
    return half | averaged(half)


def refusal(path: Path) -> str:
    """What is said of a pickle; nothing may stand under the output's name."""
    out = path.with_name("out.safetensors")
    before = sorted(path.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        unpickle_checkpoint(path, out)
    assert sorted(path.parent.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".CKPT"])
def test_tensors_come_out_under_their_keys_and_in_their_types(
    tmp_path: Path, tensors: dict[str, Tensor], suffix: str
) -> None:
    path, out = tmp_path / f"model{suffix}", tmp_path / "out.safetensors"
    torch.save(OrderedDict(tensors), path)
    done = unpickle_checkpoint(path, out)
    found = load_file(out)
    assert (done.tensors, done.left_out) == (len(tensors), ())
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[key], tensors[key]) and found[key].dtype == tensors[key].dtype for key in tensors
    )
    assert open_checkpoint(out).architecture == "stable-diffusion-v1"
    assert open_header(out, SurgeryError).metadata == {"format": "pt"}


def test_the_state_inside_a_training_checkpoint_is_taken(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"epoch": 3, "state_dict": {**tensors, "version": 2}, "optimizer_states": [{}]}, path)
    done = unpickle_checkpoint(path, tmp_path / "out.safetensors")
    assert done.tensors == len(tensors)
    assert done.left_out == ("3 entries that are no weights",)


def test_a_class_of_the_training_framework_is_named_and_never_looked_up(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    path = tmp_path / "sd-v1-4.ckpt"
    name = "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint"
    path.write_bytes(class_key_pickle(tensors, *name.split()))
    done = unpickle_checkpoint(path, tmp_path / "out.safetensors")
    assert done.tensors == len(tensors)


def test_parameters_views_and_shared_tensors_are_written_as_they_are(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    shared = {"a.weight": torch.nn.Parameter(weight), "b.weight": weight, "c.weight": weight.T}
    torch.save(shared, tmp_path / "x.pt")
    unpickle_checkpoint(tmp_path / "x.pt", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["a.weight"], weight)
    assert torch.equal(found["c.weight"], weight.T)


@pytest.mark.parametrize("force", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_code_in_a_pickle_is_not_run(
    tmp_path: Path, force: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if force:
        monkeypatch.setenv(force, "1")
    mark = tmp_path / "it ran"
    torch.save({"state_dict": {"a": torch.zeros(2), "b": Code(mark)}}, tmp_path / "evil.ckpt")
    assert "asks for" in (said := refusal(tmp_path / "evil.ckpt"))
    assert "Nothing in it was run" in said
    assert not mark.exists()
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        open_checkpoint(tmp_path / "evil.ckpt")
    assert not mark.exists()
    # the proof that it would have run
    with (tmp_path / "evil.ckpt").open("rb") as handle:
        torch.load(handle, weights_only=False)
    assert mark.exists()


def raw(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def legacy(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def packed(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def overlapping(path: Path) -> None:
    """Many names for one part, as in archives that unfold to petabytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("x/data/0", bytes(10_000))
        archive.filelist += 8 * [archive.getinfo("x/data/0")]


def no_table(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not torch's")


def no_tensors(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def stretched(path: Path) -> None:
    """One number that says it is a million."""
    torch.save({"a": torch.zeros(1).expand(1000, 1000)}, path)


def many_views(path: Path) -> None:
    weight = torch.zeros(10_000)
    torch.save({f"{number}": weight.view(-1) for number in range(100)}, path)


def sparse(path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, path)


def odd_keys(path: Path) -> None:
    torch.save({7: torch.zeros(1), "\x1b[2J": torch.zeros(1)}, path)


def cut_off(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (raw, "is no zip archive"),
        (legacy, "is no zip archive"),
        (cut_off, "is no zip archive"),
        (packed, "is packed, which torch does not do"),
        (overlapping, "has parts that lie over each other"),
        (no_table, "has 0 tables of contents"),
        (no_tensors, "holds no table of tensors"),
        (stretched, "tensor 'a' says it takes 4000000 bytes, and less is stored"),
        (many_views, "its tensors would take 4000000"),
        (sparse, "is a torch.sparse_coo tensor"),
        (odd_keys, "has no printable text of up to 1000 letters as its name"),
    ],
)
def test_a_false_pickle_is_refused(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    make(tmp_path / "x.ckpt")
    assert said in refusal(tmp_path / "x.ckpt")


def test_other_files_are_no_pickles(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert "is no pickle by its name" in refusal(tmp_path / "x.safetensors")
    assert "No such file" in refusal(tmp_path / "none.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.ckpt")


@pytest.mark.parametrize("place", range(0, 2000, 37))
def test_a_damaged_pickle_is_refused_or_read(tmp_path: Path, place: int) -> None:
    content = bytearray(saved({"state_dict": {"a": torch.arange(5.0), "b": torch.zeros(2, 2)}}))
    content[place % len(content)] ^= 0x5A
    (tmp_path / "x.ckpt").write_bytes(content)
    try:
        unpickle_checkpoint(tmp_path / "x.ckpt", tmp_path / "out.safetensors")
    except CheckpointError:
        assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
