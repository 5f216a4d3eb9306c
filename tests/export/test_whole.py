"""A patch as weights: a merged checkpoint, and a variant beside a folder's files."""

from pathlib import Path

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.errors import PatchError, SurgeryError
from surgery.export import Knobs, export_patch
from surgery.patch import apply_patch
from tests.support.folders import FC2_NAME, contents, small_weights, write_folder
from tests.support.patches import random_patch

BIAS, VAE = "text_encoder/text_model.encoder.layers.0.mlp.fc2.bias", "vae/decoder.conv_in.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


def test_a_merged_checkpoint_in_the_other_layout_holds_the_patched_weights(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    patch = random_patch(tiny_pipeline, ["unet/conv_in.weight", "vae/decoder.conv_in.weight"])
    out = tmp_path / "merged.safetensors"
    report = export_patch(patch, tiny_pipeline, out, to="checkpoint", knobs=Knobs(layout="single"))
    apply_patch(patch, tiny_pipeline, tmp_path / "edited")
    single, folder = open_checkpoint(out), open_checkpoint(tmp_path / "edited")
    assert single.layout == "single"
    for name in folder.tensors:
        assert torch.equal(single.read(name), folder.read(name)), name
    assert report.exact
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited", "merged.safetensors"]


def test_every_kind_of_tensor_goes_into_a_checkpoint(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME, BIAS, VAE], dense=True)
    report = export_patch(patch, base, tmp_path / "merged", to="checkpoint")
    apply_patch(patch, base, tmp_path / "edited")
    assert contents(tmp_path / "merged") == contents(tmp_path / "edited")
    assert report.left_out == {}


def test_a_variant_has_whole_files_of_the_touched_components_alone(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME, BIAS], dense=True)
    export_patch(patch, base, tmp_path / "out", to="variant", knobs=Knobs(variant="no-cats"))
    assert list(contents(tmp_path / "out")) == ["text_encoder/model.no-cats.safetensors"]
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "out" / "text_encoder" / "model.no-cats.safetensors")
    for name in open_checkpoint(base).tensors:
        if name.startswith("text_encoder/"):
            weight = open_checkpoint(base).read(name)
            after = patch.edited(name, weight) if name in patch.changes else weight
            assert torch.equal(stored[name.removeprefix("text_encoder/")], after)


@pytest.mark.parametrize("word", ["", "a b", "../x", "fp16.safetensors", "model-00001-of-00002", "ü"])
def test_what_cannot_be_in_a_file_name_is_no_variant(base: Path, tmp_path: Path, word: str) -> None:
    with pytest.raises(PatchError, match="cannot name a variant"):
        export_patch(random_patch(base), base, tmp_path / "out", to="variant", knobs=Knobs(variant=word))


def test_the_base_is_not_written_into(base: Path, tmp_path: Path) -> None:
    before = contents(base)
    for target in ("variant", "checkpoint", "peft"):
        with pytest.raises(SurgeryError):
            export_patch(random_patch(base), base, base, to=target, overwrite=True)
    assert contents(base) == before


def test_a_folder_of_other_things_is_not_replaced(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for target in ("variant", "peft"):
        with pytest.raises(SurgeryError, match=r"thesis\.txt"):
            export_patch(random_patch(base, [VAE]), base, tmp_path / "out", to=target, overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
