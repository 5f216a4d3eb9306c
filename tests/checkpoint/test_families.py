"""Configurations of the published families fit their shapes; CLIP's vocabulary is found and made."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from surgery.checkpoint.families import Family, family_files, family_of
from surgery.checkpoint.vocabulary import byte_letters, find_vocabulary, vocabulary_of_merges
from surgery.errors import CheckpointError
from surgery.names import canonical

TOKENIZER = {"vocab.json": "{}", "merges.txt": "#version: 0.2\n"}
FAMILIES = {
    "stable-diffusion-v1": Family(name="stable-diffusion-v1", pictures=512, prediction="epsilon", inputs=4),
    "stable-diffusion-v1 inpainting": Family(
        name="stable-diffusion-v1", pictures=512, prediction="epsilon", inputs=9
    ),
    "stable-diffusion-v2 base": Family(
        name="stable-diffusion-v2", pictures=512, prediction="epsilon", inputs=4
    ),
    "stable-diffusion-v2": Family(
        name="stable-diffusion-v2", pictures=768, prediction="v_prediction", inputs=4
    ),
    "stable-diffusion-xl": Family(
        name="stable-diffusion-xl-v1-base", pictures=1024, prediction="epsilon", inputs=4
    ),
}
# tensors and weights of the published models, in millions of numbers
TENSORS = {
    "stable-diffusion-v1": (686, 859.5),
    "stable-diffusion-v2": (686, 865.9),
    "stable-diffusion-xl": (1680, 2567.5),
}


def shapes_of(files: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The shapes that the libraries build from the configurations."""

    def table(path: str) -> dict[str, object]:
        read: dict[str, object] = json.loads(files[path])
        return read

    with torch.device("meta"):
        models: dict[str, torch.nn.Module] = {
            "unet": UNet2DConditionModel.from_config(table("unet/config.json")),
            "vae": AutoencoderKL.from_config(table("vae/config.json")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**table("text_encoder/config.json"))),
        }
        if "text_encoder_2/config.json" in files:
            second = CLIPTextConfig(**table("text_encoder_2/config.json"))
            models["text_encoder_2"] = CLIPTextModelWithProjection(second)
    return {
        canonical(component, path): tuple(tensor.shape)
        for component, model in models.items()
        for path, tensor in model.named_parameters()
    }


@pytest.mark.parametrize("title", FAMILIES)
def test_a_family_is_told_from_the_shapes_that_its_configurations_make(title: str) -> None:
    family = FAMILIES[title]
    shapes = shapes_of(family_files(family, TOKENIZER))
    assert family_of(family.name, shapes, velocity=family.prediction == "v_prediction") == family


@pytest.mark.parametrize("title", TENSORS)
def test_the_unets_have_as_many_weights_as_the_published_ones(title: str) -> None:
    files = family_files(FAMILIES[title], TOKENIZER)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(files["unet/config.json"]))
    count, millions = TENSORS[title]
    assert len(unet.state_dict()) == count
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_other_widths_are_no_published_family() -> None:
    shapes: dict[str, tuple[int, ...]] = {"unet/conv_in.weight": (32, 4, 3, 3)}
    shapes["unet/down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"] = (64, 192)
    assert family_of("stable-diffusion-v1", shapes, velocity=False) is None


def merges(count: int) -> str:
    letters = byte_letters()
    pairs = [f"{letters[n // 256]} {letters[n % 256]}" for n in range(count)]
    return "\n".join(["#version: 0.2", *pairs, "left over"])


def test_the_256_letters_are_those_of_the_byte_level_vocabularies() -> None:
    letters = byte_letters()
    assert len(set(letters)) == 256
    assert letters[:3] == ["!", '"', "#"]
    assert letters[-1] == "\u0143"


def test_a_vocabulary_made_of_merges_is_one_that_transformers_reads(tmp_path: Path) -> None:
    made = vocabulary_of_merges(merges(48894))
    table = json.loads(made["vocab.json"])
    assert len(table) == 49408
    assert (table["!"], table["!</w>"], table["<|startoftext|>"], table["<|endoftext|>"]) == (
        0,
        256,
        49406,
        49407,
    )
    for name, text in made.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer("!").input_ids[0] == 49406


def test_the_vocabulary_is_found_beside_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    made = vocabulary_of_merges(merges(48894))
    (tmp_path / "tokenizer").mkdir()
    for name, text in made.items():
        (tmp_path / "tokenizer" / name).write_text(text, encoding="utf-8")
    assert find_vocabulary(None, tmp_path / "model.safetensors") == made
    assert find_vocabulary(tmp_path, tmp_path / "elsewhere" / "model.safetensors") == made


def test_the_vocabulary_is_found_in_the_hub_cache_and_in_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = vocabulary_of_merges(merges(48894))
    hub = tmp_path / "hub" / "models--openai--clip" / "snapshots" / "1"
    hub.mkdir(parents=True)
    for name, text in made.items():
        (hub / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_vocabulary(None, tmp_path / "a" / "model.safetensors") == made
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    (tmp_path / "packages" / "clip").mkdir(parents=True)
    (tmp_path / "packages" / "clip" / "__init__.py").touch()
    packed = gzip.compress(merges(48894).encode())
    (tmp_path / "packages" / "clip" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(packed)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    assert find_vocabulary(None, tmp_path / "a" / "model.safetensors") == made


def test_a_vocabulary_that_is_nowhere_is_refused_with_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "vocab.json").write_text('{"small": 0}')
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"(?s)49408 tokens.*clip-tokenizer.*--tokenizer"):
        find_vocabulary(None, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not found"):
        find_vocabulary(tmp_path, tmp_path / "model.safetensors")
