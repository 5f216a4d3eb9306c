"""Models come out of a folder whole, or not at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoint import components, convert_checkpoint, open_checkpoint
from surgery.diffusion import sample
from surgery.errors import CheckpointError
from surgery.names import canonical


@pytest.fixture
def copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))


def edit_text_keys(folder: Path, rename: dict[str, str | None]) -> None:
    """Rename keys of the text encoder's file by their beginning; None drops them."""
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {}
    for key, value in load_file(file).items():
        old = next((begin for begin in rename if key.startswith(begin)), None)
        new = key if old is None else rename[old]
        if new is not None:
            tensors[key if old is None else new + key.removeprefix(old)] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_weight_of_the_pipeline_is_the_stored_one(tiny_pipeline: Path, dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(tiny_pipeline)
    pipeline = components.load_pipeline(tiny_pipeline, dtype=dtype)
    for component in ("text_encoder", "unet", "vae"):
        model = getattr(pipeline, component)
        assert not model.training
        for path, parameter in model.named_parameters():
            prefix = "text_model." if component == "text_encoder" and "text_model" not in path else ""
            assert torch.equal(parameter, checkpoint.read(f"{component}/{prefix}{path}").to(dtype))
            assert not parameter.requires_grad


def test_the_pipeline_draws(tiny_pipeline: Path) -> None:
    pipeline = components.load_pipeline(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture = pipeline("a cat", num_inference_steps=2, output_type="np", generator=generator).images
    assert picture.shape == (1, 32, 32, 3)
    assert picture.std() > 0.01


def test_the_tokenizer_says_which_letters_a_token_came_from(tiny_pipeline: Path) -> None:
    tokenizer = components.load_tokenizer(tiny_pipeline)
    encoded = tokenizer("a photo of cat", return_offsets_mapping=True)
    assert encoded["offset_mapping"] == [(0, 0), (0, 1), (2, 7), (8, 10), (11, 14), (0, 0)]


def test_the_scheduler_is_the_one_the_folder_names(tiny_pipeline: Path) -> None:
    assert type(components.load_scheduler(tiny_pipeline)).__name__ == "DDIMScheduler"


def test_text_keys_without_the_prefix_load_the_same_numbers(tiny_pipeline: Path, copy: Path) -> None:
    edit_text_keys(copy, {"text_model.": ""})
    expected = components.load_text_encoder(tiny_pipeline).state_dict()
    found = components.load_text_encoder(copy).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_position_ids_of_old_files_are_no_surplus(copy: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(file) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(tensors, file, metadata={"format": "pt"})
    assert components.load_text_encoder(copy).config.num_hidden_layers == 12


def test_a_text_encoder_whose_keys_do_not_fit_is_refused(copy: Path) -> None:
    edit_text_keys(copy, {"text_model.": "other."})
    with pytest.raises(CheckpointError, match=r"no weight for 196 parameters.*text_model"):
        components.load_text_encoder(copy)


def test_a_single_missing_weight_is_refused(copy: Path) -> None:
    edit_text_keys(copy, {"text_model.final_layer_norm.bias": None})
    with pytest.raises(CheckpointError, match=r"no weight for 1 parameters \(the first is '.*norm.bias'"):
        components.load_text_encoder(copy)


def test_a_truncated_file_is_refused_with_what_is_wrong_with_it(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut off"):
        components.load_unet(copy)


def test_a_missing_weight_of_the_unet_is_refused(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no weight for 1 parameters \(the first is 'conv_in.bias'"):
        components.load_unet(copy)


def test_a_weight_without_a_place_is_refused(copy: Path) -> None:
    edit_text_keys(copy, {"text_model.encoder.layers.11": "text_model.encoder.layers.12"})
    with pytest.raises(CheckpointError) as caught:
        components.load_text_encoder(copy)
    assert "no weight for 16 parameters" in str(caught.value)
    assert "16 weights that its config.json has no place for" in str(caught.value)


def test_a_configuration_of_another_width_is_refused(copy: Path) -> None:
    file = copy / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [4, 8, 16]}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        components.load_vae(copy)


def test_the_only_variant_is_loaded(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert components.load_unet(copy).config.cross_attention_dim == 32


def test_a_pickle_is_not_loaded(copy: Path) -> None:
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="pickle"):
        components.load_unet(copy)


@pytest.mark.parametrize(
    ("file", "change", "load", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "load_pipeline", "holds a FluxPipeline"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "DDIMSchedulr"},
            "load_scheduler",
            "nearest: 'DDIMScheduler'",
        ),
    ],
)
def test_other_classes_are_refused_by_name(
    copy: Path, file: str, change: dict[str, str], load: str, message: str
) -> None:
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        getattr(components, load)(copy)


@pytest.mark.parametrize("part", ["tokenizer", "scheduler", "unet"])
def test_a_missing_part_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(CheckpointError, match=f"has no folder '{part}'"):
        getattr(components, f"load_{part}")(copy)


def test_the_models_of_a_single_file_are_those_of_its_folder(tiny_pipeline: Path, tmp_path: Path) -> None:
    single = tmp_path / "tiny.safetensors"
    convert_checkpoint(open_checkpoint(tiny_pipeline), single)
    file, folder = components.load_pipeline(single), components.load_pipeline(tiny_pipeline)
    for component in ("text_encoder", "unet", "vae"):
        found, expected = (getattr(models, component).state_dict() for models in (file, folder))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    pictures = [sample(models, ["a cat"], [0], steps=2) for models in (file, folder)]
    assert np.array_equal(pictures[0], pictures[1])


def test_a_single_file_without_a_weight_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    single = tmp_path / "tiny.safetensors"
    convert_checkpoint(open_checkpoint(tiny_pipeline), single)
    header = open_checkpoint(single).headers[single]
    tensors = load_file(single)
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, single, metadata=dict(header.metadata))
    with pytest.raises(CheckpointError, match=r"no weight for 1 parameters.*conv_out\.bias"):
        components.load_pipeline(single)


def test_an_sdxl_comes_whole_out_of_a_folder_and_out_of_a_single_file(tiny_xl: Path, tmp_path: Path) -> None:
    convert_checkpoint(open_checkpoint(tiny_xl), tmp_path / "xl.safetensors")
    stored = open_checkpoint(tiny_xl)
    for place in (tiny_xl, tmp_path / "xl.safetensors"):
        pipeline = components.load_pipeline(place)
        assert pipeline.tokenizer.pad_token != pipeline.tokenizer_2.pad_token
        for component in ("text_encoder", "text_encoder_2", "unet", "vae"):
            for path, parameter in getattr(pipeline, component).named_parameters():
                assert torch.equal(parameter, stored.read(canonical(component, path)).float())
