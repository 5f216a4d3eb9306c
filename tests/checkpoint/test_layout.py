"""Folders are opened from headers, in every way that libraries write them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoint import open_checkpoint
from surgery.errors import CheckpointError
from tests.support.folders import FC2_NAME, PROJ_IN, TO_K_NAME, small_weights, weight_file, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


def shard(folder: Path, component: str, parts: int) -> Path:
    """Split a component's file into shards with an index, as the libraries do; the index comes back."""
    file = weight_file(folder, component)
    tensors = load_file(file)
    keys = sorted(tensors)
    shard_of: dict[str, str] = {}
    for part in range(parts):
        name = f"{file.stem}-{part + 1:05}-of-{parts:05}.safetensors"
        chosen = keys[part::parts]
        save_file({key: tensors[key] for key in chosen}, file.with_name(name), metadata={"format": "pt"})
        shard_of |= dict.fromkeys(chosen, name)
    file.unlink()
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return index


def test_tensors_go_by_canonical_names_and_buffers_are_left_out(folder: Path) -> None:
    names = set(open_checkpoint(folder).tensors)
    assert names == {
        FC2_NAME,
        "text_encoder/text_model.encoder.layers.0.mlp.fc2.bias",
        TO_K_NAME,
        "unet/down_blocks.0.resnets.0.conv1.weight",
        f"unet/{PROJ_IN}",
        "vae/decoder.conv_in.weight",
    }


def test_a_tensor_is_read_as_stored(folder: Path) -> None:
    expected = small_weights()["unet"]["down_blocks.0.resnets.0.conv1.weight"]
    assert torch.equal(open_checkpoint(folder).read("unet/down_blocks.0.resnets.0.conv1.weight"), expected)


def test_text_keys_without_the_prefix_have_the_same_names(tmp_path: Path, folder: Path) -> None:
    weights = small_weights()
    weights["text_encoder"] = {
        key.removeprefix("text_model."): value for key, value in weights["text_encoder"].items()
    }
    new = write_folder(tmp_path / "new", weights)
    assert open_checkpoint(new).tensors.keys() == open_checkpoint(folder).tensors.keys()


def test_old_names_of_the_vae_attention_are_read_as_the_new_ones(tmp_path: Path) -> None:
    weights = small_weights()
    attention = "encoder.mid_block.attentions.0"
    for old in ("query", "key", "value", "proj_attn", "group_norm"):
        weights["vae"][f"{attention}.{old}.weight"] = torch.ones(1)
    names = open_checkpoint(write_folder(tmp_path / "old", weights)).tensors
    for new in ("to_q", "to_k", "to_v", "to_out.0", "group_norm"):
        assert f"vae/{attention}.{new}.weight" in names


def test_a_name_that_is_not_there_gives_the_nearest(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=f"Did you mean '{FC2_NAME}'"):
        open_checkpoint(folder).read(FC2_NAME.replace("fc2", "fc3"))


@pytest.mark.parametrize("parts", [1, 2])
def test_shards_are_read_through_their_index(folder: Path, parts: int) -> None:
    whole = open_checkpoint(folder)
    shard(folder, "unet", parts)
    sharded = open_checkpoint(folder)
    assert sharded.tensors.keys() == whole.tensors.keys()
    assert torch.equal(sharded.read(TO_K_NAME), small_weights()["unet"][TO_K_NAME.removeprefix("unet/")])


def test_a_missing_shard_and_one_outside_the_folder_are_refused(folder: Path) -> None:
    index = shard(folder, "unet", 2)
    table = json.loads(index.read_text())
    first, second, _ = sorted(table["weight_map"])
    table["weight_map"] |= {first: "gone.safetensors", second: "../text_encoder/model.safetensors"}
    index.write_text(json.dumps(table))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "'gone.safetensors'" in str(caught.value)
    assert "'../text_encoder/model.safetensors'" in str(caught.value)


def test_an_index_that_disagrees_with_its_shards_is_refused(folder: Path) -> None:
    index = shard(folder, "unet", 2)
    table = json.loads(index.read_text())
    table["weight_map"]["extra.weight"] = next(iter(table["weight_map"].values()))
    index.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=r"'extra.weight' is not where the index"):
        open_checkpoint(folder)


def test_the_plain_file_is_taken_before_its_variants(folder: Path) -> None:
    plain = weight_file(folder, "unet")
    variant = plain.with_name("diffusion_pytorch_model.fp16.safetensors")
    variant.write_bytes(plain.read_bytes())
    opened = open_checkpoint(folder)
    assert opened.tensors[TO_K_NAME].file == plain
    assert opened.weights["unet"].surplus == (variant,)


def test_the_only_variant_is_taken_where_there_is_no_plain_file(folder: Path) -> None:
    plain = weight_file(folder, "unet")
    variant = plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    opened = open_checkpoint(folder)
    assert opened.tensors[TO_K_NAME].file == variant
    assert opened.weights["unet"].variant == "fp16"


def test_two_variants_without_a_plain_file_are_ambiguous(folder: Path) -> None:
    plain = weight_file(folder, "unet")
    for variant in ("fp16", "ema"):
        plain.with_name(f"diffusion_pytorch_model.{variant}.safetensors").write_bytes(plain.read_bytes())
    plain.unlink()
    with pytest.raises(CheckpointError, match="variants ema, fp16 and no plain file"):
        open_checkpoint(folder)


def test_pickles_are_refused_before_they_are_opened(folder: Path, tmp_path: Path) -> None:
    weight_file(folder, "unet").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle \(diffusion_pytorch_model.bin\).*--allow-pickle"):
        open_checkpoint(folder)
    (tmp_path / "model.ckpt").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        open_checkpoint(tmp_path / "model.ckpt")


def test_other_things_are_no_checkpoint(tmp_path: Path) -> None:
    single = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, single)
    with pytest.raises(CheckpointError, match="holds no Stable Diffusion"):
        open_checkpoint(single)
    with pytest.raises(CheckpointError, match=r"no model_index.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "model_index.json").write_text("[")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(tmp_path)
    (tmp_path / "model_index.json").write_text('{"unet": [null, null]}')
    with pytest.raises(CheckpointError, match="names none of"):
        open_checkpoint(tmp_path)


def test_faults_of_all_components_are_reported_together(folder: Path) -> None:
    text, unet = weight_file(folder, "text_encoder"), weight_file(folder, "unet")
    text.write_bytes(text.read_bytes()[:-1])
    unet.unlink()
    (folder / "vae").rename(folder / "vea")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert len(caught.value.faults) == 3
    assert "cut off" in str(caught.value)
    assert "holds no weights" in str(caught.value)
    assert "vae is missing" in str(caught.value)


def test_one_tensor_under_both_spellings_is_refused(tmp_path: Path) -> None:
    weights = small_weights()
    key = "encoder.layers.0.mlp.fc2.bias"
    weights["text_encoder"][key] = weights["text_encoder"][f"text_model.{key}"].clone()
    with pytest.raises(CheckpointError, match="is the same tensor as"):
        open_checkpoint(write_folder(tmp_path / "twice", weights))


@pytest.mark.parametrize(
    ("change", "architecture"),
    [
        ({}, "stable-diffusion-v1"),
        ({PROJ_IN: torch.zeros(2, 2)}, "stable-diffusion-v2"),
        ({"add_embedding.linear_1.weight": torch.zeros(2, 2)}, "stable-diffusion-xl-v1-base"),
    ],
)
def test_the_architecture_is_told_from_shapes(
    tmp_path: Path, change: dict[str, torch.Tensor], architecture: str
) -> None:
    weights = small_weights()
    weights["unet"] |= change
    assert open_checkpoint(write_folder(tmp_path / "x", weights)).architecture == architecture


def test_the_tiny_pipeline_has_the_tensors_of_sd_1(tiny_pipeline: Path) -> None:
    opened = open_checkpoint(tiny_pipeline)
    assert opened.architecture == "stable-diffusion-v1"
    counts = {
        component: sum(name.startswith(f"{component}/") for name in opened.tensors)
        for component in ("text_encoder", "unet")
    }
    assert counts == {"text_encoder": 196, "unet": 686}  # SD 1.5: 197 with its position_ids buffer, and 686


def test_metadata_that_old_transformers_refuse_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = weight_file(folder, "text_encoder")
    save_file(load_file(file), file, metadata={"made": "by hand"})
    open_checkpoint(folder)
    assert "metadata without format=pt" in caplog.text
