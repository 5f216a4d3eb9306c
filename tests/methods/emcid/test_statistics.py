"""Key statistics against the plain second moment of what ``fc2`` reads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.anatomy import reading_inputs, text_stack
from surgery.errors import MethodError
from surgery.methods.emcid import CorpusSettings, collect_statistics
from surgery.store import Store
from tests.support.concepts import captions

LAYERS = (0, 5, 10)


def plain_moment(encoder: Any, tokenizer: Any, layer: int, settings: CorpusSettings) -> tuple[Tensor, int]:
    """One caption at a time through the whole encoder."""
    total, count, weight = torch.zeros(128, 128, dtype=torch.float64), 0, 0.0
    for caption in captions():
        padding: Any = {"padding": "max_length", "max_length": 77} if settings.include_padding else {}
        ids = tokenizer(caption, return_tensors="pt", **padding).input_ids
        with torch.no_grad(), reading_inputs({"keys": encoder.encoder.layers[layer].mlp.fc2}) as seen:
            encoder(ids)
        keys, words = seen["keys"][0].double(), len(tokenizer(caption).input_ids)
        weights = torch.tensor([settings.word_weight if at < words else 1.0 for at in range(len(keys))])
        first = 0 if settings.include_bos else 1
        keys, weights = keys[first:], weights[first:].double()
        total, count = total + keys.T @ (weights[:, None] * keys), count + len(keys)
        weight += float(weights.sum())
    return total / weight, count


@pytest.mark.parametrize("include_bos", [True, False])
@pytest.mark.parametrize("include_padding", [True, False])
def test_moments_are_the_plain_ones_under_each_policy(
    encoder: Any, tokenizer: Any, include_bos: bool, include_padding: bool
) -> None:
    settings = CorpusSettings(include_bos=include_bos, include_padding=include_padding)
    found = collect_statistics(encoder, tokenizer, captions(), LAYERS, settings)
    for layer in LAYERS:
        expected, count = plain_moment(encoder, tokenizer, layer, settings)
        assert found.token_count == count
        torch.testing.assert_close(found.moment(layer), expected, rtol=1e-4, atol=1e-6)


def test_the_order_of_the_captions_does_not_matter(encoder: Any, tokenizer: Any) -> None:
    one = collect_statistics(encoder, tokenizer, captions(), LAYERS)
    other = collect_statistics(encoder, tokenizer, captions()[::-1], LAYERS)
    assert one.corpus_digest == other.corpus_digest
    assert all(torch.equal(one.moments[layer], other.moments[layer]) for layer in LAYERS)


def test_only_so_many_captions_count(encoder: Any, tokenizer: Any) -> None:
    found = collect_statistics(encoder, tokenizer, captions(), (0,), CorpusSettings(count=7))
    assert found.caption_count == 7
    assert torch.equal(found.moments[0], collect_statistics(encoder, tokenizer, captions(7), (0,)).moments[0])


def test_shrinkage_mixes_in_the_identity(encoder: Any, tokenizer: Any) -> None:
    plain = collect_statistics(encoder, tokenizer, captions(), (0,))
    shrunk = replace(plain, shrinkage=0.25)
    moment = plain.moment(0)
    identity = torch.eye(128, dtype=torch.float64) * moment.trace() / 128
    torch.testing.assert_close(shrunk.moment(0), 0.75 * moment + 0.25 * identity)


def test_stored_statistics_are_the_same_numbers_and_are_not_collected_again(
    encoder: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    fresh = collect_statistics(encoder, tokenizer, captions(), LAYERS, store=store)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("collected again")

    monkeypatch.setattr("surgery.methods.emcid.statistics._collect", refuse)
    again = collect_statistics(encoder, tokenizer, captions(), LAYERS, store=store)
    assert all(torch.equal(again.moments[layer], fresh.moments[layer]) for layer in LAYERS)


@pytest.mark.parametrize(
    "change", [{"captions": captions(59)}, {"settings": CorpusSettings(include_bos=False)}, {"layers": (1,)}]
)
def test_what_changes_the_numbers_changes_the_key(
    encoder: Any, tokenizer: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    store, plain = Store(tmp_path), {"captions": captions(), "layers": (0,), "settings": None}
    collect_statistics(encoder, tokenizer, store=store, **plain)  # type: ignore[arg-type]
    entries = len(list(tmp_path.glob("*/*/done.json")))
    collect_statistics(encoder, tokenizer, store=store, **{**plain, **change})
    assert len(list(tmp_path.glob("*/*/done.json"))) == entries + 1


def test_statistics_of_another_model_layer_or_width_are_refused_together(
    encoder: Any, tokenizer: Any
) -> None:
    found = collect_statistics(encoder, tokenizer, captions(), (0,))
    narrow = replace(found, moments={0: torch.zeros(10)})
    with pytest.raises(MethodError, match="^3 faults"):
        narrow.check(text_stack(encoder), "another", (0, 1))
    found.check(text_stack(encoder), found.encoder_digest, (0,))


def test_a_tiny_sample_is_a_warning(encoder: Any, tokenizer: Any) -> None:
    found = collect_statistics(encoder, tokenizer, captions(), (0,))
    (finding,) = found.findings(128)
    assert (finding.kind, finding.severity) == ("few-tokens", "warning")
    assert found.findings(found.word_count // 5) == ()


def test_no_captions_are_an_error(encoder: Any, tokenizer: Any) -> None:
    with pytest.raises(MethodError, match="no captions"):
        collect_statistics(encoder, tokenizer, [], (0,))
