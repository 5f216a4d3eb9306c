"""Every form that checkpoints come in: opened, patched in place, converted, and what is lost is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surgery.checkpoint import Checkpoint, convert_checkpoint, open_checkpoint, write_checkpoint
from surgery.checkpoint.ldm import averaged_key
from surgery.errors import CheckpointError, PatchError
from surgery.patch import apply_patch
from tests.checkpoint.test_layout import shard
from tests.support.folders import TO_K_NAME, contents, small_weights, weight_file, write_folder
from tests.support.patches import random_patch
from tests.support.singles import (
    SD1_TEXT,
    SD2_TEXT,
    UNET,
    Random,
    averaged,
    open_clip_block,
    sd1_tensors,
    sd2_tensors,
    write_single,
)

CONV_IN = "unet/conv_in.weight"
FC2_BIAS = "text_encoder/text_model.encoder.layers.0.mlp.fc2.bias"
TO_K_KEY = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def like(tmp_path: Path) -> Path:
    """A folder with the configurations of some small model."""
    return write_folder(tmp_path / "like", small_weights())


def doubled(checkpoint: Checkpoint, name: str, out: Path) -> Path:
    """A copy in which one tensor is twice as large."""
    write_checkpoint(checkpoint, out, {name: lambda: checkpoint.read(name) * 2})
    return out


# text encoders


@pytest.mark.parametrize("prefix", [SD1_TEXT, "conditioner.embedders.0.transformer."])
def test_text_keys_of_single_files_are_read_with_and_without_their_prefix(
    tmp_path: Path, prefix: str
) -> None:
    tensors = {
        key.replace(SD1_TEXT, prefix): value for key, value in sd1_tensors().items() if "text_model" in key
    }
    bare = {key.replace("text_model.", ""): value for key, value in tensors.items()}
    first = open_checkpoint(write_single(tmp_path / "full.safetensors", tensors))
    second = open_checkpoint(write_single(tmp_path / "bare.safetensors", bare))
    assert set(first.tensors) == {FC2_BIAS, FC2_BIAS.replace("bias", "weight")}
    assert first.fingerprint() == second.fingerprint()
    out = doubled(second, FC2_BIAS, tmp_path / "out.safetensors")
    assert load_file(out).keys() == bare.keys()


def test_a_text_encoder_under_both_spellings_is_refused(tmp_path: Path) -> None:
    tensors = sd1_tensors()
    key = f"{SD1_TEXT}text_model.encoder.layers.0.mlp.fc2.bias"
    tensors[key.replace("text_model.", "")] = tensors[key].clone()
    with pytest.raises(CheckpointError, match="is the same tensor as"):
        open_checkpoint(write_single(tmp_path / "x.safetensors", tensors))


def test_two_text_encoders_in_one_place_are_refused(tmp_path: Path) -> None:
    tensors = {**sd1_tensors(), **sd2_tensors()}
    with pytest.raises(CheckpointError, match="holds the text_encoder twice"):
        open_checkpoint(write_single(tmp_path / "x.safetensors", tensors))


def test_the_only_encoder_of_newer_files_is_sd2s_or_the_refiners_by_its_length(tmp_path: Path) -> None:
    prefix, random = "conditioner.embedders.0.model.", Random()
    found = {}
    for blocks in (24, 32):
        tensors: dict[str, Tensor] = {}
        for number in range(blocks):
            tensors |= open_clip_block(f"{prefix}transformer.resblocks.{number}.", random)
        tensors[f"{prefix}text_projection"] = random(4, 6)
        tensors[f"{UNET}label_emb.0.0.weight"] = random(2, 2)
        found[blocks] = open_checkpoint(write_single(tmp_path / f"{blocks}.safetensors", tensors))
    assert {name.split("/")[0] for name in found[24].tensors} == {"text_encoder", "unet"}
    assert {name.split("/")[0] for name in found[32].tensors} == {"text_encoder_2", "unet"}
    assert found[32].architecture == "stable-diffusion-xl-v1-refiner"
    assert found[32].shapes["text_encoder_2/text_projection.weight"] == (6, 4)
    assert not any("layers.23" in name for name in found[24].tensors)


# SD 2.x


def test_a_patched_file_of_sd2_keeps_the_block_that_no_pipeline_uses(tmp_path: Path) -> None:
    base = write_single(tmp_path / "base.safetensors", sd2_tensors(), {"format": "pt"})
    name = "text_encoder/text_model.encoder.layers.22.self_attn.v_proj.weight"
    edited = load_file(doubled(open_checkpoint(base), name, tmp_path / "out.safetensors"))
    before = load_file(base)
    changed = f"{SD2_TEXT}transformer.resblocks.22.attn.in_proj_weight"
    assert edited.keys() == before.keys()
    assert [key for key in before if not torch.equal(before[key], edited[key])] == [changed]
    assert torch.equal(edited[changed][8:], before[changed][8:] * 2)
    assert torch.equal(edited[changed][:8], before[changed][:8])


def test_a_folder_of_sd2_lacks_that_block_and_says_so(tmp_path: Path, like: Path) -> None:
    base = open_checkpoint(write_single(tmp_path / "base.safetensors", sd2_tensors()))
    done = convert_checkpoint(base, tmp_path / "folder", like=like)
    assert done.left_out == (
        "the last block and the projection of the text encoder, which SD 2.x does not use (13 tensors)",
        "the temperature and the mask of the text encoder's training (1 tensor)",
    )
    back = convert_checkpoint(open_checkpoint(tmp_path / "folder"), tmp_path / "back.safetensors")
    assert [text.partition(":")[0] for text in back.left_out] == [
        "the last block and the projection of the text encoder, which SD 2.x does not use"
    ]


@pytest.mark.parametrize("make", [sd1_tensors, sd2_tensors], ids=["sd1", "sd2"])
def test_a_folder_becomes_the_single_file_it_came_from_to_the_byte(
    tmp_path: Path, like: Path, make: Callable[[], dict[str, Tensor]]
) -> None:
    single = write_single(tmp_path / "single.safetensors", make(), {"format": "pt", "made": "elsewhere"})
    convert_checkpoint(open_checkpoint(single), tmp_path / "folder", like=like)
    folder = open_checkpoint(tmp_path / "folder")
    convert_checkpoint(folder, tmp_path / "back.safetensors", like=single)
    assert (tmp_path / "back.safetensors").read_bytes() == single.read_bytes()


def test_a_folder_of_another_model_does_not_go_into_a_single_file(tmp_path: Path, like: Path) -> None:
    single = write_single(tmp_path / "single.safetensors", sd1_tensors())
    with pytest.raises(CheckpointError, match="both must be of one model"):
        convert_checkpoint(open_checkpoint(like), tmp_path / "out.safetensors", like=single)
    cast = {key: value.bfloat16() for key, value in sd1_tensors().items()}
    convert_checkpoint(open_checkpoint(single), tmp_path / "folder", like=like)
    other = write_single(tmp_path / "cast.safetensors", cast)
    with pytest.raises(CheckpointError, match=r"torch\.float16 .* torch\.bfloat16"):
        convert_checkpoint(open_checkpoint(tmp_path / "folder"), tmp_path / "out.safetensors", like=other)
    with pytest.raises(CheckpointError, match="is a folder; to write a single file"):
        convert_checkpoint(open_checkpoint(tmp_path / "folder"), tmp_path / "out.safetensors", like=like)


# averaged copies


@pytest.fixture
def with_average(tmp_path: Path) -> Path:
    tensors = sd1_tensors()
    return write_single(tmp_path / "ema.safetensors", tensors | averaged(tensors), {"made": "elsewhere"})


def test_an_averaged_copy_is_read_beside_the_weights_and_kept_to_the_byte(
    with_average: Path, tmp_path: Path
) -> None:
    opened = open_checkpoint(with_average)
    unet = {name for name in opened.tensors if name.startswith("unet/")}
    assert opened.averaged.keys() == unet
    plain, average = opened.tensors[TO_K_NAME], opened.averaged[TO_K_NAME]
    assert average.key == averaged_key(plain.key)
    assert average.dtype == torch.float32
    assert opened.weights["unet"].surplus == (with_average,)
    assert opened.weights["text_encoder"].surplus == ()
    edited = load_file(doubled(opened, FC2_BIAS, tmp_path / "out.safetensors"))
    before = load_file(with_average)
    assert all(torch.equal(edited[key], before[key]) for key in before if key.startswith("model_ema."))


def test_an_averaged_copy_is_dropped_from_a_folder_and_that_is_said(
    with_average: Path, tmp_path: Path, like: Path
) -> None:
    done = convert_checkpoint(open_checkpoint(with_average), tmp_path / "folder", like=like)
    assert "the averaged copy of the U-Net (6 tensors)" in done.left_out
    folder = open_checkpoint(tmp_path / "folder")
    assert torch.equal(folder.read(TO_K_NAME), load_file(with_average)[TO_K_KEY])


def test_an_averaged_copy_takes_the_place_of_the_unet_when_asked(
    with_average: Path, tmp_path: Path, like: Path
) -> None:
    opened = open_checkpoint(with_average)
    convert_checkpoint(opened, tmp_path / "folder", like=like, averaged="take")
    convert_checkpoint(opened, tmp_path / "pruned.safetensors", to="single", averaged="take")
    expected = load_file(with_average)[averaged_key(TO_K_KEY)]
    for out in ("folder", "pruned.safetensors"):
        written = open_checkpoint(tmp_path / out)
        assert torch.equal(written.read(TO_K_NAME), expected)
        assert written.tensors[FC2_BIAS].dtype == torch.float16
    assert not any(key.startswith("model_ema") for key in load_file(tmp_path / "pruned.safetensors"))


def test_a_single_file_without_its_averaged_copy_is_otherwise_the_same(
    with_average: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pruned.safetensors"
    done = convert_checkpoint(open_checkpoint(with_average), out, to="single", averaged="drop")
    assert done.left_out == ("the averaged copy of the U-Net (6 tensors)",)
    before, after = load_file(with_average), load_file(out)
    assert {key for key in before if key not in after} == {
        key for key in before if key.startswith("model_ema.")
    }
    assert all(torch.equal(after[key], before[key]) for key in after)
    assert open_checkpoint(out).headers[out].metadata == {"made": "elsewhere", "format": "pt"}


@pytest.mark.parametrize("choice", ["drop", "take"])
def test_an_averaged_copy_that_is_not_there_cannot_be_asked_for(
    tmp_path: Path, choice: str, like: Path
) -> None:
    single = open_checkpoint(write_single(tmp_path / "x.safetensors", sd1_tensors()))
    with pytest.raises(CheckpointError, match="carries no averaged copy"):
        convert_checkpoint(single, tmp_path / "out", like=like, averaged=choice)  # type: ignore[arg-type]  # one of two words


def test_half_an_averaged_copy_is_not_taken(tmp_path: Path, like: Path) -> None:
    tensors = sd1_tensors()
    copy = averaged(tensors)
    del copy[averaged_key(TO_K_KEY)]
    base = open_checkpoint(write_single(tmp_path / "x.safetensors", tensors | copy))
    with pytest.raises(CheckpointError, match=r"lacks 1 of 4 tensors .*attn2\.to_k"):
        convert_checkpoint(base, tmp_path / "out", like=like, averaged="take")


def test_a_file_with_the_average_of_other_weights_is_no_pattern_for_a_folder(
    with_average: Path, tmp_path: Path, like: Path
) -> None:
    convert_checkpoint(open_checkpoint(with_average), tmp_path / "folder", like=like)
    folder = open_checkpoint(tmp_path / "folder")
    convert_checkpoint(folder, tmp_path / "same.safetensors", like=with_average)
    assert (tmp_path / "same.safetensors").read_bytes() == with_average.read_bytes()
    edited = open_checkpoint(doubled(folder, TO_K_NAME, tmp_path / "edited"))
    with pytest.raises(CheckpointError, match="--averaged drop first"):
        convert_checkpoint(edited, tmp_path / "out.safetensors", like=with_average)


# what else is in a file


def test_foreign_tensors_are_lost_only_when_asked(tmp_path: Path, like: Path) -> None:
    tensors = {**sd1_tensors(), "control_model.input_hint_block.0.weight": torch.zeros(2)}
    base = open_checkpoint(write_single(tmp_path / "x.safetensors", tensors))
    with pytest.raises(CheckpointError, match=r"'control_model\.input_hint_block\.0\.weight'.*--partial"):
        convert_checkpoint(base, tmp_path / "out", like=like)
    done = convert_checkpoint(base, tmp_path / "out", like=like, partial=True)
    assert done.left_out[-1] == "tensors that are no part of a Stable Diffusion (1 tensor)"


def test_buffers_are_no_weights_whatever_their_type(tmp_path: Path, like: Path) -> None:
    tensors = sd1_tensors()
    key = f"{SD1_TEXT}text_model.embeddings.position_ids"
    tensors[key] = tensors[key].float() + 0.01  # as some old merges have it
    base = open_checkpoint(write_single(tmp_path / "x.safetensors", tensors))
    assert not any("position_ids" in name for name in base.tensors)
    done = convert_checkpoint(base, tmp_path / "out", like=like)
    assert done.left_out == ("the numbers of the positions (1 tensor)", "the noise schedule (1 tensor)")
    edited = load_file(doubled(base, FC2_BIAS, tmp_path / "edited.safetensors"))
    assert torch.equal(edited[key], tensors[key])


def test_an_inpainting_unet_reads_nine_channels_in_both_layouts(tmp_path: Path, like: Path) -> None:
    tensors = sd1_tensors()
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.randn(2, 9, 3, 3).half()
    base = write_single(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    convert_checkpoint(open_checkpoint(base), tmp_path / "folder", like=like)
    folder = open_checkpoint(tmp_path / "folder")
    assert folder.shapes[CONV_IN] == (2, 9, 3, 3)
    convert_checkpoint(folder, tmp_path / "back.safetensors", like=base)
    assert (tmp_path / "back.safetensors").read_bytes() == base.read_bytes()


def test_types_may_differ_from_tensor_to_tensor(tmp_path: Path, like: Path) -> None:
    types = (torch.float16, torch.float32, torch.bfloat16)
    tensors = {
        key: value.to(types[place % 3]) if value.is_floating_point() else value
        for place, (key, value) in enumerate(sd1_tensors().items())
    }
    base = write_single(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    convert_checkpoint(open_checkpoint(base), tmp_path / "folder", like=like)
    folder = open_checkpoint(tmp_path / "folder")
    assert {entry.dtype for entry in folder.tensors.values()} == set(types)
    assert folder.fingerprint() == open_checkpoint(base).fingerprint()
    convert_checkpoint(folder, tmp_path / "back.safetensors", like=base)
    assert (tmp_path / "back.safetensors").read_bytes() == base.read_bytes()


def test_a_query_of_another_type_than_its_key_is_refused(tmp_path: Path, like: Path) -> None:
    convert_checkpoint(
        open_checkpoint(write_single(tmp_path / "x.safetensors", sd2_tensors())),
        tmp_path / "folder",
        like=like,
    )
    file = weight_file(tmp_path / "folder", "text_encoder")
    tensors = load_file(file)
    tensors["text_model.encoder.layers.0.self_attn.q_proj.weight"] = torch.zeros(4, 4)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="Cast the text encoder to one type first"):
        convert_checkpoint(open_checkpoint(tmp_path / "folder"), tmp_path / "out.safetensors")


def test_a_single_file_without_a_part_that_the_pipeline_names_is_refused(tmp_path: Path, like: Path) -> None:
    tensors = {key: value for key, value in sd1_tensors().items() if not key.startswith("first_stage")}
    base = open_checkpoint(write_single(tmp_path / "x.safetensors", tensors))
    with pytest.raises(CheckpointError, match="holds no vae, which the configurations name"):
        convert_checkpoint(base, tmp_path / "out", like=like)


# folders


def test_a_variant_is_taken_where_a_component_has_it(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", small_weights(torch.float32))
    half = small_weights()["unet"]
    variant = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file(half, variant, metadata={"format": "pt"})
    plain, taken = open_checkpoint(folder), open_checkpoint(folder, variant="fp16")
    assert plain.tensors[TO_K_NAME].dtype == torch.float32
    assert taken.tensors[TO_K_NAME].file == variant
    assert taken.tensors[FC2_BIAS].dtype == torch.float32  # no variant there: the plain file, as libraries do
    assert taken.weights["unet"].surplus == (weight_file(folder, "unet"),)
    convert_checkpoint(taken, tmp_path / "half.safetensors")
    assert open_checkpoint(tmp_path / "half.safetensors").tensors[TO_K_NAME].dtype == torch.float16


@pytest.mark.parametrize("asked", [None, "fp16"])
def test_a_folder_of_several_variants_becomes_one_that_patches_apply_to(
    tmp_path: Path, asked: str | None
) -> None:
    folder = write_folder(tmp_path / "base", small_weights(torch.float32))
    plain = weight_file(folder, "unet")
    half = plain.with_name("diffusion_pytorch_model.fp16.safetensors")
    save_file(small_weights()["unet"], half, metadata={"format": "pt"})
    pickled = plain.with_suffix(".bin")
    pickled.write_bytes(b"old")
    index = plain.with_name("diffusion_pytorch_model.safetensors.index.ema.json")
    index.write_text('{"weight_map": {"x": "gone.safetensors"}}')
    pickled_index = plain.with_name("diffusion_pytorch_model.bin.index.json")
    pickled_index.write_text("{}")
    lora = plain.with_name("pytorch_lora_weights.safetensors")
    lora.write_bytes(b"something else")
    taken = open_checkpoint(folder, variant=asked)
    with pytest.raises(PatchError, match="convert FOLDER --to folder"):
        apply_patch(random_patch(folder, [TO_K_NAME]), folder, tmp_path / "out")
    done = convert_checkpoint(taken, tmp_path / "one", to="folder")
    kept, gone = (half, plain) if asked else (plain, half)
    copies = sorted((gone, pickled, index, pickled_index))
    assert done.left_out == tuple(str(file.relative_to(folder)) for file in copies)
    assert {file.name for file in (tmp_path / "one" / "unet").iterdir()} == {
        "config.json",
        kept.name,
        lora.name,
    }
    assert (tmp_path / "one" / "unet" / kept.name).read_bytes() == kept.read_bytes()
    with pytest.raises(CheckpointError, match="each component's weights once"):
        convert_checkpoint(open_checkpoint(tmp_path / "one"), tmp_path / "two", to="folder")
    with pytest.raises(CheckpointError, match="--like means nothing"):
        convert_checkpoint(taken, tmp_path / "two", to="folder", like=tmp_path / "one")
    assert apply_patch(random_patch(tmp_path / "one", [TO_K_NAME]), tmp_path / "one", tmp_path / "out").exact


@pytest.mark.parametrize(("asked", "said"), [("fp61", "Did you mean 'fp16'"), ("ema", "It has fp16")])
def test_a_variant_that_is_not_there_is_refused(tmp_path: Path, asked: str, said: str) -> None:
    folder = write_folder(tmp_path / "base", small_weights())
    plain = weight_file(folder, "unet")
    plain.with_name("diffusion_pytorch_model.fp16.safetensors").write_bytes(plain.read_bytes())
    with pytest.raises(CheckpointError, match=f"has no variant '{asked}'.*{said}"):
        open_checkpoint(folder, variant=asked)
    with pytest.raises(CheckpointError, match="only folders have variants"):
        open_checkpoint(write_single(tmp_path / "x.safetensors", sd1_tensors()), variant="fp16")


def test_a_folder_of_shards_of_a_variant_is_patched_and_converted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", small_weights())
    index = shard(folder, "unet", 2)
    table = json.loads(index.read_text())
    for name in set(table["weight_map"].values()):
        (folder / "unet" / name).rename(folder / "unet" / name.replace("model-", "model.fp16-"))
    table["weight_map"] = {
        key: name.replace("model-", "model.fp16-") for key, name in table["weight_map"].items()
    }
    index.unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(table))
    opened = open_checkpoint(folder)
    assert opened.weights["unet"].variant == "fp16"
    out = open_checkpoint(doubled(opened, TO_K_NAME, tmp_path / "out"))
    assert torch.equal(out.read(TO_K_NAME), opened.read(TO_K_NAME) * 2)
    assert contents(tmp_path / "out").keys() == contents(folder).keys()
    convert_checkpoint(opened, tmp_path / "x.safetensors")
    assert open_checkpoint(tmp_path / "x.safetensors").fingerprint() == opened.fingerprint()


def test_a_component_that_cannot_travel_is_said_and_taken_out_of_the_index(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "base", small_weights())
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "Checker"], "feature_extractor": ["transformers", "X"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    done = convert_checkpoint(open_checkpoint(folder), tmp_path / "x.safetensors")
    assert done.left_out == ("the component 'safety_checker' of the folder",)
    single = open_checkpoint(tmp_path / "x.safetensors")
    assert single.notes == open_checkpoint(folder).notes == {"title": "A model", "license": "mit"}
    convert_checkpoint(single, tmp_path / "back")
    found = json.loads((tmp_path / "back" / "model_index.json").read_text())
    assert found["safety_checker"] == [None, None]
    assert found["requires_safety_checker"] is False
    assert found["feature_extractor"] == ["transformers", "X"]
    after, before = contents(tmp_path / "back"), contents(folder)
    assert after.keys() == before.keys()
    assert after["README.md"] == before["README.md"]
