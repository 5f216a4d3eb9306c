"""Key statistics as a file that is believed only when all of it holds."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surgery.errors import MethodError, SurgeryError
from surgery.methods.emcid import (
    CorpusSettings,
    KeyStatistics,
    OffsetSettings,
    UpdateSettings,
    collect_statistics,
    edit,
    load_statistics,
    save_statistics,
)
from surgery.methods.emcid.models import EmcidModels
from surgery.numerics import unpack
from tests.support.concepts import CAT, captions


@pytest.fixture(scope="module")
def found(encoder: Any, tokenizer: Any) -> KeyStatistics:
    settings = CorpusSettings(include_bos=False)
    return collect_statistics(encoder, tokenizer, captions(), (9, 10), settings)


@pytest.fixture
def file(found: KeyStatistics, tmp_path: Path) -> Path:
    save_statistics({"text_encoder": found}, tmp_path / "statistics.safetensors")
    return tmp_path / "statistics.safetensors"


def test_statistics_come_back_as_they_were(found: KeyStatistics, file: Path) -> None:
    (again,) = load_statistics(file, shrinkage=0.25).values()
    assert all(torch.equal(again.moments[layer], found.moments[layer]) for layer in (9, 10))
    assert replace(again, moments={}) == replace(found, moments={}, shrinkage=0.25)
    assert (again.includes_bos, again.includes_padding) == (False, True)


def test_the_file_is_what_its_description_says_to_a_stranger(found: KeyStatistics, file: Path) -> None:
    tensors = load_file(file)
    assert set(tensors) == {"text_encoder/9", "text_encoder/10"}
    rows = [row[: number + 1] for number, row in enumerate(unpack(found.moments[9]).float())]
    assert torch.equal(tensors["text_encoder/9"], torch.cat(rows))
    with safe_open(file, "pt") as handle:
        assert handle.metadata()["sdstatistics.version"] == "1"


def test_equal_statistics_are_equal_files_and_nothing_is_overwritten_unasked(
    found: KeyStatistics, file: Path, tmp_path: Path
) -> None:
    save_statistics({"text_encoder": found}, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    before = hashlib.sha256(file.read_bytes()).digest()
    with pytest.raises(SurgeryError, match="exists"):
        save_statistics({"text_encoder": replace(found, token_count=1)}, file)
    assert hashlib.sha256(file.read_bytes()).digest() == before


def rewritten(file: Path, change: Callable[[dict[str, Any], dict[str, str]], None]) -> None:
    tensors = load_file(file)
    with safe_open(file, "pt") as handle:
        metadata = dict(handle.metadata())
    change(tensors, metadata)
    save_file(tensors, file, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.update({"text_encoder/9": t["text_encoder/9"] * 2}), "is damaged"),
        (lambda t, m: m.update({"sdstatistics.encoders": "{}"}), "is damaged"),
        (lambda t, m: m.update({"sdstatistics.version": "2"}), "key statistics of version '2'"),
        (lambda t, m: m.pop("sdstatistics.version"), "holds no key statistics"),
    ],
)
def test_what_was_changed_or_is_something_else_is_refused(
    file: Path, change: Callable[[dict[str, Any], dict[str, str]], None], message: str
) -> None:
    rewritten(file, change)
    with pytest.raises(MethodError, match=message):
        load_statistics(file)


def test_tensors_that_are_no_triangle_are_refused_together(found: KeyStatistics, tmp_path: Path) -> None:
    spoiled = replace(found, moments={9: torch.zeros(5), 10: torch.full((6,), torch.nan)})
    save_statistics({"text_encoder": spoiled}, tmp_path / "spoiled")
    with pytest.raises(MethodError, match="^2 faults"):
        load_statistics(tmp_path / "spoiled")


def test_numbers_that_no_captions_give_are_refused(found: KeyStatistics, tmp_path: Path) -> None:
    nothing = {layer: torch.zeros_like(moment) for layer, moment in found.moments.items()}
    save_statistics({"text_encoder": replace(found, moments=nothing, token_count=-5)}, tmp_path / "odd")
    with pytest.raises(MethodError, match=r"^3 faults") as refused:
        load_statistics(tmp_path / "odd")
    assert "has no mean squares" in str(refused.value)
    assert "come from -5 tokens" in str(refused.value)


def test_an_edit_with_the_file_is_the_edit_with_its_captions(models: EmcidModels, tmp_path: Path) -> None:
    offsets = OffsetSettings(mode="text", steps=3, keep_unconverged=True)
    update, corpus = UpdateSettings(layers=(9, 10)), CorpusSettings(shrinkage=0.1)
    plain = edit(models, [CAT], offsets, update, captions(), corpus=corpus)
    save_statistics(plain.statistics, tmp_path / "file")
    known = load_statistics(tmp_path / "file", shrinkage=0.1)
    again = edit(models, [CAT], offsets, update, (), statistics=known)
    for name in plain.delta.terms:
        assert torch.equal(plain.delta.materialise(name), again.delta.materialise(name))
    with pytest.raises(MethodError, match=r"layers \[8\] are edited too"):
        edit(models, [CAT], offsets, replace(update, layers=(8, 9, 10)), (), statistics=known)
