"""Which phrases an edit is said to be about: on numbers by hand, and on edits of the tiny pipeline."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surgery.audit import AuditOptions, audit_checkpoints, audit_patch
from surgery.audit.words.background import TEMPLATES
from surgery.audit.words.inputs import FEATURES, Inputs, collect, locate_all
from surgery.audit.words.ranking import Scores, combined, judged
from surgery.audit.words.strength import Acting
from surgery.audit.words.towers import Tower, Towers, load_towers
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.delta import Delta, Form, LowRank, Places, Replace
from surgery.delta.places import Kind
from surgery.patch import Term, apply_patch, load_patch, make_patch, save_patch
from surgery.report import AuditRecord
from tests.support.models import encoder, tokenizer
from tests.support.tiny import FC2

__all__ = ["encoder", "tokenizer"]

LAYER = 3
WORDS = ("dog", "fish", "cat", "doctor", "pizza", "painting")
TABLE = "text_encoder/text_model.embeddings.token_embedding.weight"


def scores(shares: list[float], controls: list[list[float]] | None = None) -> Scores:
    logs = torch.tensor(shares).log()
    calm = torch.full((2, len(shares)), 0.05) if controls is None else torch.tensor(controls)
    return Scores(log_shares=logs, log_controls=calm.log(), activations=torch.ones(len(shares)))


def touched(shares: list[float], controls: list[list[float]] | None = None) -> list[str]:
    phrases = [str(number) for number in range(len(shares))]
    return [row.phrase for row in judged(scores(shares, controls), phrases) if row.touched]


def test_strength_is_the_share_relative_to_the_median() -> None:
    rows = judged(scores([0.05, 0.1, 0.8]), ["a", "b", "c"])
    assert [row.strength for row in rows] == pytest.approx([0.5, 1.0, 8.0])
    assert [row.share for row in rows] == pytest.approx([0.05, 0.1, 0.8])


def test_a_phrase_that_stands_out_is_touched() -> None:
    assert touched([0.05, 0.05, 0.05, 0.05, 0.9]) == ["4"]


@pytest.mark.parametrize(
    ("shares", "why"),
    [
        ([0.05] * 4 + [0.19], "not four times the median"),
        ([0.002] * 4 + [0.09], "a share of less than a tenth"),
        ([0.005, 0.02, 0.08, 0.35, 0.38], "others lie as far apart, and chance hears half as much"),
    ],
)
def test_one_of_three_signs_alone_is_not_enough(shares: list[float], why: str) -> None:
    chance = [[0.05] * (len(shares) - 1) + [0.2]] * 2
    assert touched(shares, chance) == [], why


def test_a_phrase_heard_twice_as_well_as_chance_hears_any_is_touched_however_others_lie() -> None:
    shares = [0.01, 0.04, 0.16, 0.64, 0.9]
    assert touched(shares, [[0.05, 0.05, 0.05, 0.05, 0.31]] * 2) == ["3", "4"]
    assert touched(shares, [[0.05, 0.05, 0.05, 0.05, 0.33]] * 2) == ["4"]
    assert touched(shares, [[0.05, 0.05, 0.05, 0.05, 0.46]] * 2) == []


def test_a_phrase_must_stand_further_out_than_any_does_by_chance() -> None:
    shares = [0.05] * 8 + [0.9]
    calm = [0.05] * 9
    assert touched(shares, controls=[calm, calm]) == ["8"]
    assert touched(shares, controls=[calm, [0.05] * 8 + [0.9]]) == []


def test_what_a_change_about_nothing_hears_as_well_is_not_touched() -> None:
    shares, calm = [0.05] * 8 + [0.9], [0.05] * 9
    assert touched(shares, controls=[[0.05] * 8 + [0.9], calm]) == []
    # strong directions of the inputs are heard by anything, and a phrase that lies there can be edited too
    strong = [0.05] * 6 + [0.5] * 3
    assert touched([0.05] * 6 + [0.5, 0.5, 0.9], controls=[strong, strong]) == ["8"]


def test_sites_are_combined_by_the_mean_of_the_logarithm() -> None:
    first, second = (
        Acting(shares=torch.tensor([share]), controls=torch.zeros(2, 1), activations=torch.tensor([size]))
        for share, size in ((0.1, 1.0), (0.4, 3.0))
    )
    found = combined([first, second])
    assert float(found.log_shares.exp()) == pytest.approx(0.2)
    assert found.log_controls.flatten().tolist() == pytest.approx(
        [math.log(1e-3)] * 2
    )  # nothing counts as a thousandth
    assert float(found.activations) == pytest.approx(2.0)


@pytest.fixture(scope="module")
def edit(encoder: Any, tokenizer: Any) -> LowRank:
    """R Kᵀ (C + λ)⁻¹ for ``cat`` and ``pizza`` in one MLP: each key gives its column of R, others little."""
    tower = Tower.of(encoder)
    module = tower.linear()[FC2.format(LAYER)]
    located = locate_all(tokenizer, ("cat", "pizza"), 77)
    inputs = collect(Towers(every=(tower,), tokenizer=tokenizer), located, (), {"x": module})["x"]
    return keyed(inputs, 32)


def keyed(inputs: Inputs, rows: int) -> LowRank:
    """R Kᵀ (C + λ)⁻¹ of two phrases: each key gives its column of R, others little."""
    keys, usual = inputs.phrases.double(), inputs.usual.double()
    ridge = 1e-2 * usual.diagonal().mean() * torch.eye(len(usual), dtype=torch.float64)
    right = torch.linalg.solve(usual + ridge, keys.T).T
    right /= (right * keys).sum(1, keepdim=True)
    left = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    return LowRank(left=0.5 * left, right=right.float())


def patched(base: Path, name: str, form: Form, folder: Path) -> Path:
    term = Term(delta=Delta(terms={name: form}), source="by hand")
    save_patch(make_patch([term], open_checkpoint(base)), folder / "patch.safetensors")
    return folder / "patch.safetensors"


def replaced(kind: Kind, weight: Tensor, index: Tensor, new: Tensor) -> Replace:
    return Replace(places=Places(kind, tuple(weight.shape), index), new=new.to(weight.dtype))


def words_file(folder: Path) -> Path:
    (folder / "words.txt").write_text("\n".join(WORDS))
    return folder / "words.txt"


def ranked(record: AuditRecord) -> list[str]:
    assert record.words is not None
    return [row.phrase for row in record.words.rows]


def test_the_edited_words_come_first(tiny_pipeline: Path, edit: LowRank, tmp_path: Path) -> None:
    patch = patched(tiny_pipeline, FC2.format(LAYER), edit, tmp_path)
    record = audit_patch(patch, tiny_pipeline, AuditOptions(words=words_file(tmp_path)))
    assert set(ranked(record)[:2]) == {"cat", "pizza"}
    assert record.words is not None
    assert record.words.sites == 1
    assert record.words.added > 400  # six words have no median to stand out from
    assert record.claims[0].kind == "text-mlp-low-rank"


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        (FC2.format(LAYER).replace("text_encoder", "text_encoder_2"), None),
        ("unet/down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight", FEATURES),
    ],
)
def test_edits_of_sdxl_s_second_encoder_and_of_what_reads_both_tell_their_words(
    tiny_xl: Path, name: str, reads: str | None, tmp_path: Path
) -> None:
    base = open_checkpoint(tiny_xl)
    towers = load_towers(base)
    linear = {key: module for tower in towers.every for key, module in tower.linear().items()}
    located = locate_all(towers.tokenizer, ("cat", "pizza"), 77)
    inputs = collect(towers, located, (), {name: linear[name]} if reads is None else {})[reads or name]
    assert inputs.usual.shape[0] == base.shapes[name][1]
    patch = patched(tiny_xl, name, keyed(inputs, base.shapes[name][0]), tmp_path)
    record = audit_patch(patch, tiny_xl, AuditOptions(words=words_file(tmp_path)))
    assert set(ranked(record)[:2]) == {"cat", "pizza"}
    assert not [finding for finding in record.findings if finding.kind == "words-overlooked"]


def test_pooled_text_is_said_to_be_overlooked(tiny_xl: Path, tmp_path: Path) -> None:
    name = "text_encoder_2/text_projection.weight"
    rows, columns = open_checkpoint(tiny_xl).shapes[name]
    form = LowRank(left=torch.ones(rows, 1), right=torch.ones(1, columns))
    record = audit_patch(
        patched(tiny_xl, name, form, tmp_path), tiny_xl, AuditOptions(words=words_file(tmp_path))
    )
    assert [finding.subject for finding in record.findings] == [name]
    assert record.words is not None
    assert not record.words.touched


def test_what_cross_attention_reads_is_what_the_pipeline_gives_it(tiny_xl: Path) -> None:
    towers = load_towers(open_checkpoint(tiny_xl))
    located = locate_all(towers.tokenizer, ("cat",), 77)
    pipeline = load_pipeline(tiny_xl)
    spans = located.spans[0]
    prompts = [template.replace("{}", "cat") for template in TEMPLATES]
    features, *_ = pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    expected = torch.stack([row[span.last] for row, span in zip(features, spans, strict=True)]).mean(0)
    found = collect(towers, located, (), {})[FEATURES].phrases[0]
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


def test_the_edited_checkpoint_tells_the_same_words_as_the_patch(
    tiny_pipeline: Path, edit: LowRank, tmp_path: Path
) -> None:
    patch = patched(tiny_pipeline, FC2.format(LAYER), edit, tmp_path)
    apply_patch(load_patch(patch), tiny_pipeline, tmp_path / "edited")
    options = AuditOptions(words=words_file(tmp_path))
    of_patch = audit_patch(patch, tiny_pipeline, options)
    assert audit_checkpoints(tiny_pipeline, tmp_path / "edited", options).words == of_patch.words


def test_the_order_of_the_words_changes_nothing(tiny_pipeline: Path, edit: LowRank, tmp_path: Path) -> None:
    patch = patched(tiny_pipeline, FC2.format(LAYER), edit, tmp_path)
    first = audit_patch(patch, tiny_pipeline, AuditOptions(words=words_file(tmp_path)))
    (tmp_path / "turned.txt").write_text("\n".join(reversed(WORDS)))
    second = audit_patch(patch, tiny_pipeline, AuditOptions(words=tmp_path / "turned.txt"))
    assert ranked(first) == ranked(second)


def test_scattered_elements_are_about_no_word(tiny_pipeline: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = open_checkpoint(tiny_pipeline).read(FC2.format(LAYER))
    places = torch.randperm(weight.numel(), generator=generator)[:200].sort().values
    form = replaced("elements", weight, places, torch.zeros(200))
    patch = patched(tiny_pipeline, FC2.format(LAYER), form, tmp_path)
    record = audit_patch(patch, tiny_pipeline, AuditOptions(words=words_file(tmp_path)))
    assert record.words is not None
    assert record.words.touched == ()
    assert record.words.statement.startswith("No words: none of 6 phrases stands out")


def test_a_changed_token_vector_names_its_word(tiny_pipeline: Path, tokenizer: Any, tmp_path: Path) -> None:
    table, token = open_checkpoint(tiny_pipeline).read(TABLE), tokenizer("fish").input_ids[1]
    form = replaced("rows", table, torch.tensor([token]), torch.zeros(1, table.shape[1]))
    patch = patched(tiny_pipeline, TABLE, form, tmp_path)
    record = audit_patch(patch, tiny_pipeline, AuditOptions(words=words_file(tmp_path)))
    assert record.words is not None
    assert record.words.touched == ("fish",)
    assert "It is about fish." in record.summary


def test_a_change_outside_of_what_reads_text_is_about_no_word(tiny_pipeline: Path, tmp_path: Path) -> None:
    name = "unet/conv_in.bias"
    form = replaced("rows", open_checkpoint(tiny_pipeline).read(name), torch.tensor([0]), torch.ones(1))
    patch = patched(tiny_pipeline, name, form, tmp_path)
    record = audit_patch(patch, tiny_pipeline, AuditOptions(words=words_file(tmp_path)))
    assert record.words is not None
    assert record.words.statement == "No words: none of the changed weights reads text."


def test_phrases_that_cannot_be_located_are_named(tiny_pipeline: Path, edit: LowRank, tmp_path: Path) -> None:
    patch = patched(tiny_pipeline, FC2.format(LAYER), edit, tmp_path)
    (tmp_path / "words.txt").write_text("cat\n" + "x" * 200)
    record = audit_patch(patch, tiny_pipeline, AuditOptions(words=tmp_path / "words.txt"))
    assert record.words is not None
    assert ranked(record) == ["cat"]
    [left_out] = record.words.left_out
    assert left_out.startswith("xxx")


def test_a_text_encoder_with_another_set_of_tensors_is_not_asked(tiny_pipeline: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(tiny_pipeline, edited)
    file = edited / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    del tensors["text_model.final_layer_norm.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    record = audit_checkpoints(tiny_pipeline, edited, AuditOptions(words=words_file(tmp_path)))
    assert record.words is None
    assert "no-words" in {finding.kind for finding in record.findings}
