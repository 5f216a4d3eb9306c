"""The cost benches at a size of seconds: their plain ways against the oracle, and a whole run of each."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.methods.emcid import (
    PUBLISHED,
    CorpusSettings,
    OffsetSettings,
    UpdateSettings,
    collect_statistics,
)
from surgery.shelf import checkpoint_path
from tests.parity.plain_emcid import plain_update
from tests.support.concepts import CAT, DOCTOR, PIZZA, captions, concepts_of, random_targets
from tests.support.models import encoder, tokenizer

__all__ = ["encoder", "tokenizer"]

LAYERS = (0, 3, 10)


@pytest.mark.parametrize("residual", ["mlp", "block"])
def test_the_plain_stage_two_is_the_oracle_s(bench: Any, encoder: Any, tokenizer: Any, residual: Any) -> None:
    settings = UpdateSettings(
        layers=LAYERS, ridge=100.0, residual=residual, anchor="first", keys="mean", alpha=0.6
    )
    targets = random_targets(encoder, concepts_of(tokenizer, CAT, PIZZA, DOCTOR))
    statistics = collect_statistics(encoder, tokenizer, captions(), LAYERS, CorpusSettings(shrinkage=0.1))
    moments = {layer: statistics.moment(layer) for layer in LAYERS}
    found = bench("plaintwo").plain_stage_two(encoder, tokenizer, targets, moments, settings)
    edits = [target.concept.edit for target in targets]
    wanted = [(target.source + target.offset).expand(3, -1) for target in targets]
    expected = plain_update(encoder, tokenizer, edits, wanted, moments, settings)
    for layer, change in expected.items():
        torch.testing.assert_close(found[layer], change.float(), rtol=1e-4, atol=1e-6)


def test_the_plain_statistics_are_the_method_s(bench: Any, encoder: Any, tokenizer: Any) -> None:
    corpus = CorpusSettings(include_padding=False)
    ours = collect_statistics(encoder, tokenizer, captions(), LAYERS, corpus)
    plain = bench("plaintwo").plain_moments(encoder, tokenizer, captions(), LAYERS, tokens_at_once=40)
    for layer in LAYERS:
        torch.testing.assert_close(plain[layer], ours.moment(layer), rtol=1e-4, atol=1e-6)


def full_size(tmp_path: Path, **more: Any) -> argparse.Namespace:
    names, texts = tmp_path / "names.json", tmp_path / "captions.txt"
    names.write_text(json.dumps(["cat", "dog", "fish", "female doctor"]))
    texts.write_text("\n".join(captions()))
    return argparse.Namespace(
        family="sd15",
        component="text_encoder",
        vocabulary=tmp_path,
        names=names,
        captions=texts,
        concepts=3,
        store=tmp_path / "store",
        **more,
    )


def test_stage_two_prints_ratio_memory_parts_and_difference(
    bench: Any,
    encoder: Any,
    tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stagetwo = bench("stagetwo")
    monkeypatch.setattr(stagetwo, "text_encoder", lambda *names: encoder)
    monkeypatch.setattr(stagetwo, "tokenizer", lambda folder: tokenizer)
    options = full_size(
        tmp_path,
        caption_count=60,
        plain_captions=20,
        layers=(0, 10),
        padding=True,
        residuals=("mlp", "block"),
        plain=True,
        shrinkage=0.1,
    )
    stagetwo.stage_two(options)
    said = capsys.readouterr().out
    differences = [float(line.rpartition(" ")[2]) for line in said.splitlines() if "differ by" in line]
    assert len(differences) == 2
    assert max(differences) < 1e-4
    for word in ("encoding", "solving", "reports", "GB more memory", "floor", "2 passes over 20"):
        assert word in said


def test_text_offsets_prints_a_row(
    bench: Any,
    encoder: Any,
    tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    textoffsets = bench("textoffsets")
    monkeypatch.setattr(textoffsets, "text_encoder", lambda *names: encoder)
    monkeypatch.setattr(textoffsets, "tokenizer", lambda folder: tokenizer)
    monkeypatch.setattr(textoffsets, "DEFAULT", OffsetSettings(mode="text", steps=3))
    textoffsets.text_offsets(full_size(tmp_path, metrics=["pooled"], resume=False))
    assert "3 concepts behind block 10" in (said := capsys.readouterr().out)
    assert "3 steps on the mean" in said


def test_stage_one_goes_on_from_what_is_stored_and_tells_both_ways(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stageone = bench("stageone")
    offsets, update = PUBLISHED["objects"]
    quick = {"objects": (replace(offsets, steps=2, sampling_steps=1), update)}
    ours, ours_update = stageone.PRESETS["pocket"]
    preset = {"pocket": (replace(ours, steps=2, bank_size=2, sampling_steps=1), ours_update)}
    monkeypatch.setattr(stageone, "PUBLISHED", quick)
    monkeypatch.setattr(stageone, "PRESETS", preset)
    monkeypatch.setattr(stageone, "UNSEEN_STEPS", 1)
    options = argparse.Namespace(
        base=str(checkpoint_path("pocket-sd")),
        seed=0,
        concepts=2,
        preset="pocket",
        offsets={},
        dtypes=["float32"],
        ways=["published", "ours, both"],
        questions=1,
        samples=0,
        flops=False,
        store=tmp_path,
    )
    stageone.stage_one(options)
    said = capsys.readouterr().out.splitlines()
    for way in ("published, plain", "ours, both"):
        assert len([line for line in said if line.startswith(way)]) == 2  # its cost and its loss
    assert sum("against the plain way" in line for line in said) == 1
    monkeypatch.setattr(stageone, "plain_offset", None)  # called again, it would fail
    (plain,) = (way for way in stageone.ways(options) if way.plain)
    assert len(stageone.Bench(options).learned(plain).targets) == 2
