"""Probes of predictions: nothing done is nothing seen, and what is done is seen where it is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch

from surgery.anatomy import weights_of
from surgery.diffusion import predict_under, read_prompts
from surgery.diffusion.algebra import cosine
from surgery.evaluate import Probed, probe_edit, probes_dict, probes_text
from surgery.evaluate.probes import LEVELS, _points

CAT = Probed(
    subject="cat",
    anchor="dog",
    paraphrases=("kitten", "puss"),
    near=("lion",),
    unrelated=("car", "tree", "house"),
    template="a photo of {} outside",
)
QUICK: dict[str, Any] = {"latents": 9, "steps": 4}


def value(found: Any, name: str) -> float:
    score = found.score(name)
    assert score is not None
    assert score.low <= score.value <= score.high
    return float(score.value)


@contextmanager
def doubled(pipeline: Any, *names: str) -> Iterator[Any]:
    weights = weights_of(pipeline, names)
    with torch.no_grad():
        for weight in weights.values():
            weight.mul_(2)
        try:
            yield pipeline
        finally:
            for weight in weights.values():
                weight.div_(2)


def test_without_an_edit_nothing_drifts_and_all_is_aligned(pipeline: Any) -> None:
    (found,) = probe_edit(pipeline, lambda: nullcontext(pipeline), [CAT], **QUICK)
    for name, expected in {
        "drift": 0.0,
        "drift amplified": 0.0,
        "energy": 1.0,
        "alignment": 1.0,
        "bystanders": 1.0,
        "bystanders worst": 1.0,
        "bystander energy": 1.0,
    }.items():
        assert value(found, name) == pytest.approx(expected, abs=1e-5), name
    for name in ("presence", "anchor alignment", "leak", "fusion"):
        assert value(found, name) == value(found, f"{name} before")
    assert all(one == pytest.approx(1.0, abs=1e-5) for one in found.curves["alignment"])
    assert len(found.timesteps) <= LEVELS


def test_a_change_of_the_text_moves_scores_and_one_of_the_unet_the_base(
    pipeline: Any, edited: Callable[[], AbstractContextManager[Any]]
) -> None:
    (text,) = probe_edit(pipeline, edited, [CAT], **QUICK)
    assert value(text, "alignment") < 0.999
    names = ("unet/conv_out.weight", "unet/conv_out.bias")
    (whole,) = probe_edit(pipeline, lambda: doubled(pipeline, *names), [CAT], guidance=3.0, **QUICK)
    # twice the prediction: ‖2e - e‖² / ‖e‖² = 1, every score twice as long in the same direction
    assert value(whole, "drift") == pytest.approx(1.0, abs=1e-4)
    assert value(whole, "drift amplified") == pytest.approx(4.0, abs=1e-3)
    assert value(whole, "energy") == pytest.approx(2.0, abs=1e-4)
    assert value(whole, "alignment") == pytest.approx(1.0, abs=1e-4)
    assert value(whole, "bystander energy") == pytest.approx(2.0, abs=1e-4)
    assert whole.curves["drift"] == pytest.approx((1.0,) * len(whole.timesteps), abs=1e-4)


def test_scores_are_the_cosines_of_predictions_at_the_points(pipeline: Any) -> None:
    (found,) = probe_edit(pipeline, lambda: nullcontext(pipeline), [CAT], **QUICK)
    points = _points(pipeline, CAT, 9, 5.0, 4, 16, 0)
    reading = read_prompts(pipeline, ["", "cat", "dog"])
    with torch.no_grad():
        none, cat, dog = (
            predict_under(
                pipeline, points.noisy, points.timesteps, reading.select([row]).repeated(len(points))
            )
            for row in range(3)
        )
    expected = float(cosine(cat - none, dog - none).mean())
    assert value(found, "anchor alignment before") == pytest.approx(expected, abs=1e-4)


def test_points_are_of_the_concept_of_others_and_of_paths(pipeline: Any) -> None:
    points = _points(pipeline, CAT, 9, 5.0, 4, 16, 0)
    assert set(points.source.tolist()) == set(range(9))
    assert len(points.timesteps.unique()) > 4
    again = _points(pipeline, CAT, 9, 5.0, 4, 16, 0)
    assert torch.equal(points.noisy, again.noisy)
    assert not torch.equal(points.noisy, _points(pipeline, CAT, 9, 5.0, 4, 16, 1).noisy)


def test_what_is_not_asked_is_not_told(pipeline: Any) -> None:
    (found,) = probe_edit(
        pipeline,
        lambda: nullcontext(pipeline),
        [Probed(subject="cat")],
        **QUICK,
    )
    assert found.leak == ""
    assert {score.name for score in found.scores} == {
        "drift", "drift amplified", "energy", "alignment", "presence", "presence before"
    }  # fmt: skip


def test_the_table_has_a_line_for_each_phrase_and_the_data_all_intervals(pipeline: Any) -> None:
    found = probe_edit(
        pipeline,
        lambda: nullcontext(pipeline),
        [CAT, Probed(subject="dog")],
        **QUICK,
    )
    lines = probes_text(found).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["probes", "cat"]
    assert "comes back through" in lines[2]
    assert lines[3].split()[:4] == ["dog", "0.000", "1.000", "1.000"]
    data: Any = probes_dict(found)
    assert data[0]["scores"][0]["name"] == "drift"
    assert len(data[1]["curves"]["energy"]) == len(data[1]["timesteps"])
