"""How far a profession's embedding moves, and whereto."""

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery.checkpoint.components import load_pipeline

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "checkpoints" / "pocket-sd"


@pytest.fixture(scope="module")
def balance() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts" / "pocket")
        before = set(sys.modules)
        import balance

        yield balance
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").parent.name == "pocket":
                del sys.modules[name]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(CHECKPOINT)


def test_with_nothing_seen_the_stated_share_is_expected_where_it_is(balance: Any) -> None:
    assert balance.best_shift([], [], [], 0.9) == pytest.approx(0.0, abs=1e-3)


def test_the_shift_is_where_the_seen_curve_has_the_stated_share(balance: Any) -> None:
    shifts = [0.0, 0.4, 0.8, 1.2]
    men = [round(1000 / (1 + np.exp(1 - 3 * shift))) for shift in shifts]
    found = balance.best_shift(shifts, men, [1000] * 4, 0.8)
    assert 1 / (1 + np.exp(1 - 3 * found)) == pytest.approx(0.8, abs=0.01)


def test_a_curve_that_falls_again_far_away_does_not_mislead(balance: Any) -> None:
    found = balance.best_shift([0.0, 0.5, 1.0, 2.0, 3.0], [50, 64, 71, 59, 40], [100] * 5, 0.7)
    assert 0.8 < found < 1.3


def test_a_shift_goes_so_far_beyond_what_was_tried(balance: Any) -> None:
    assert balance.best_shift([0.0], [0], [100], 0.95) == pytest.approx(balance.FARTHEST)


@torch.no_grad()
def test_the_direction_leads_from_woman_to_man_and_the_encoder_stays(balance: Any, pipeline: Any) -> None:
    from vocabulary import read_vocabulary

    encoder, tokenizer = pipeline.text_encoder.float(), pipeline.tokenizer
    vocabulary = read_vocabulary(CHECKPOINT / "concepts.json")
    template = vocabulary.templates["test"][0]
    vocabulary = replace(vocabulary, templates={"test": (template,)})
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    direction = balance.direction_of(encoder, tokenizer, vocabulary, "mechanic")
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())

    def feature(of: Any, phrase: str) -> torch.Tensor:
        prompt = template.format(phrase)
        last = len(tokenizer(prompt).input_ids) - 2
        hidden: torch.Tensor = balance.encode(of, tokenizer, [prompt], 77)[0, last]
        return hidden

    way = feature(encoder, "a male mechanic") - feature(encoder, "a female mechanic")
    places = {
        shift: float(
            feature(balance.shifted(encoder, [direction], np.array([shift])), "a mechanic") @ way / way.norm()
        )
        for shift in (-0.5, 0.0, 0.5)
    }
    assert places[-0.5] < places[0.0] < places[0.5]


def test_pictures_are_decoded_at_the_scale_that_the_u_net_was_taught(balance: Any, pipeline: Any) -> None:
    vae = copy.deepcopy(pipeline.vae)
    models = balance.models(pipeline.tokenizer, pipeline.text_encoder, pipeline.unet, vae, 0.25)
    assert models.vae.config.scaling_factor == 0.25
