"""The embedded checkpoint is a Stable Diffusion 1.x in everything but width."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_tokenizer
from surgery.judge import load_judge
from surgery.names import canonical
from surgery.shelf import checkpoint_path

POCKET = checkpoint_path("pocket-sd")


@pytest.fixture(scope="module")
def words() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((POCKET / "concepts.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def concepts(words: dict[str, Any]) -> list[dict[str, Any]]:
    return [*words["concepts"], *words["professions"]]


def names_of(component: str) -> set[str]:
    return {name for name in open_checkpoint(POCKET).tensors if name.startswith(f"{component}/")}


def test_all_of_the_shelf_takes_at_most_forty_megabytes() -> None:
    size = sum(path.stat().st_size for path in POCKET.parent.rglob("*") if path.is_file())
    assert size <= 40_000_000


def test_the_unet_has_exactly_the_keys_of_stable_diffusion_1() -> None:
    with torch.device("meta"):
        full_size = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    expected = {canonical("unet", key) for key in full_size.state_dict()}
    assert len(expected) == 686
    assert names_of("unet") == expected


def test_the_text_encoder_has_exactly_the_keys_of_stable_diffusion_1() -> None:
    with torch.device("meta"):
        full_size = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12))
    keys = [key for key in full_size.state_dict() if not key.endswith("position_ids")]
    assert names_of("text_encoder") == {canonical("text_encoder", key) for key in keys}
    positions = open_checkpoint(POCKET).entry("text_encoder/text_model.embeddings.position_embedding.weight")
    assert positions.shape[0] == 77


def test_weights_are_in_half_precision_under_keys_that_every_loader_reads() -> None:
    checkpoint = open_checkpoint(POCKET)
    assert {entry.dtype for entry in checkpoint.tensors.values()} == {torch.float16}
    text = [e.key for n, e in checkpoint.tensors.items() if n.startswith("text_encoder/")]
    assert all(key.startswith("text_model.") for key in text)


def test_the_tokenizer_is_in_clips_format_and_order() -> None:
    vocabulary = json.loads((POCKET / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(vocabulary, key=vocabulary.get)
    assert [vocabulary[token] for token in tokens] == list(range(len(tokens)))
    assert tokens[256:512] == [token + "</w>" for token in tokens[:256]]
    assert all(len(token) == 1 for token in tokens[:256])
    merges = (POCKET / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert tokens[512:-2] == ["".join(merge.split(" ")) for merge in merges]
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = load_tokenizer(POCKET)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (len(tokens) - 2, len(tokens) - 1)
    assert tokenizer("a cat", padding="max_length", max_length=77).input_ids[-1] == len(tokens) - 1


def test_it_draws_at_least_300_concepts_and_60_of_them_have_a_true_alias(
    words: dict[str, Any], concepts: list[dict[str, Any]]
) -> None:
    drawn = [c for c in concepts if c["subgroup"] != words["left_out_subgroup"]]
    assert len({c["name"] for c in drawn}) >= 300
    aliased = [c for c in drawn if any(a.split()[-1] != c["name"].split()[-1] for a in c["aliases"])]
    assert len(aliased) >= 60
    spellings = [spelling for c in concepts for spelling in (c["name"], *c["aliases"])]
    assert len(spellings) == len(set(spellings))


def test_at_least_twelve_professions_state_their_bias(words: dict[str, Any]) -> None:
    shares = [profession["share_man"] for profession in words["professions"]]
    assert sum(abs(share - 0.5) >= 0.2 for share in shares) >= 12
    assert all(0 < share < 1 for share in shares)
    assert sum(words["share_skin"]) == pytest.approx(1)


def test_fruit_is_left_out_of_the_captions_names_and_known_to_the_judge(words: dict[str, Any]) -> None:
    fruit = {c["name"] for c in words["concepts"] if c["subgroup"] == words["left_out_subgroup"]}
    assert words["left_out_subgroup"] == "food-fruit"
    assert len(fruit) >= 15
    assert fruit <= set(load_judge("pocket-judge").labels.concept)


def test_test_templates_never_appear_in_training(words: dict[str, Any]) -> None:
    templates = words["templates"]
    assert not set(templates["test"]) & set(templates["train"])
    assert len(templates["test"]) >= 4
    heads = [template.partition("{}")[0] for template in templates["test"]]
    captions = (POCKET / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert len(captions) >= 10_000
    assert not [caption for caption in captions if caption.startswith(tuple(heads))]


def test_the_judge_knows_every_concept_style_background_gender_and_skin_tone(
    words: dict[str, Any], concepts: list[dict[str, Any]]
) -> None:
    labels = load_judge("pocket-judge").labels
    merged = set(labels.merged)
    assert {c["name"] for c in concepts} - merged == set(labels.concept) - {"none"}
    assert set(words["styles"]) | {"plain"} == set(labels.style)
    assert tuple(words["backgrounds"]) == labels.background
    assert tuple(words["genders"]) == labels.gender
    assert tuple(words["skins"]) == labels.skin


def test_the_config_folders_name_no_machine() -> None:
    for path in Path(POCKET).rglob("*.json"):
        assert "/" not in json.loads(path.read_text(encoding="utf-8")).get("_name_or_path", "")
