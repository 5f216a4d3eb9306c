"""Gradients of the measure: against finite differences, and the models stay as they were."""

from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.anatomy import standing_in, weights_digest, weights_of
from surgery.delta import Places
from surgery.diffusion import encode_prompts, predict_noise
from surgery.errors import MethodError
from surgery.methods.cad import attribution as attribution_room
from surgery.methods.cad import gradients as gradients_room
from surgery.methods.cad.attribution import attribute
from surgery.methods.cad.gradients import Grading, Sums, add_gradients, measure, squared_derivatives
from surgery.methods.cad.masks import ComponentMask, masked, random_mask
from surgery.methods.cad.nouns import Pairs
from surgery.methods.cad.predict import Predictor, predict
from tests.methods.cad.conftest import NAMES

TEXT = "text_encoder/text_model.encoder.layers.2.mlp.fc2.weight"


def gradients(
    models: Any, pairs: Pairs, names: tuple[str, ...] = NAMES, **knobs: Any
) -> dict[str, torch.Tensor]:
    sums = Sums()
    add_gradients(models, pairs, Grading(names=names, **knobs), sums)
    return sums.gradients


@pytest.mark.parametrize("name", [*NAMES, TEXT])
def test_a_gradient_is_the_slope_of_the_measure(models: Any, pairs: Pairs, name: str) -> None:
    weight = weights_of(models, (name,))[name].detach()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2 * weight.norm() / direction.norm() * direction
    up, down = (
        measure(models, pairs, {name: weight + sign * step}).values.double().sum() for sign in (1, -1)
    )
    slope = float(up - down) / 2
    expected = float((gradients(models, pairs, (name,))[name] * step).sum())
    assert expected == pytest.approx(slope, rel=0.02)


def test_micro_batches_and_recomputed_activations_change_nothing_but_rounding(
    models: Any, pairs: Pairs
) -> None:
    plain = gradients(models, pairs, micro_batch=4)
    for knobs in ({"micro_batch": 1}, {"checkpointing": True}):
        other = gradients(models, pairs, **knobs)
        for name in NAMES:
            torch.testing.assert_close(other[name], plain[name], rtol=1e-3, atol=1e-5)


def test_differences_are_those_of_neighbouring_paths(models: Any, pairs: Pairs) -> None:
    sums = Sums(differences={})
    add_gradients(models, pairs, Grading(names=NAMES), sums)
    each = [gradients(models, pairs.of_sample(number)) for number in range(2)]
    assert sums.samples == 2
    assert sums.differences is not None
    for name in NAMES:
        torch.testing.assert_close(sums.gradients[name], each[0][name] + each[1][name], rtol=1e-3, atol=1e-5)
        expected = (each[1][name] - each[0][name]).square()
        torch.testing.assert_close(sums.differences[name], expected, rtol=1e-3, atol=1e-5)


def test_a_gradient_of_shrunk_weights_is_taken_where_they_are_smaller(models: Any, pairs: Pairs) -> None:
    name = NAMES[1]
    shrunk = gradients(models, pairs, (name,), shrunk=0.25)[name]
    weight = weights_of(models, (name,))[name]
    before = weight.detach().clone()
    try:
        weight.data.mul_(0.75)
        expected = gradients(models, pairs, (name,))[name]
    finally:
        weight.data.copy_(before)
    torch.testing.assert_close(shrunk, expected, rtol=1e-3, atol=1e-5)


def test_the_models_stay_as_they_were(models: Any, pairs: Pairs) -> None:
    before = weights_digest(models.unet), [weight.requires_grad for weight in models.unet.parameters()]
    gradients(models, pairs, checkpointing=True)
    after = weights_digest(models.unet), [weight.requires_grad for weight in models.unet.parameters()]
    assert before == after
    assert all(weight.grad is None for weight in models.unet.parameters())
    assert not models.unet.is_gradient_checkpointing


def test_curvature_is_the_sum_of_squared_derivatives(models: Any, pairs: Pairs) -> None:
    name = NAMES[1]
    one = pairs.select(slice(0, 1))
    generator = torch.Generator().manual_seed(0)
    found = squared_derivatives(models, one, Grading(names=(name,)), 200, generator)[name] / 200
    weight = weights_of(models, (name,))[name].detach()
    for place in ((0, 0), (3, 7), (5, 30)):
        assert float(found[place]) == pytest.approx(_difference(models, one, name, weight, place), rel=0.4)


def _difference(models: Any, one: Pairs, name: str, weight: torch.Tensor, place: tuple[int, int]) -> float:
    """‖∂ε/∂w‖² of one weight."""
    text = encode_prompts(models.tokenizer, models.text_encoder, [one.prompts[int(one.prompt[0])]])
    told = []
    for sign in (1, -1):
        moved = weight.clone()
        moved[place] += sign * 5e-2
        with torch.no_grad(), standing_in(models, {name: moved}):
            told.append(predict_noise(models.unet, one.noisy, one.timesteps, text))
    return float(((told[0] - told[1]) / 1e-1).square().sum())


def test_memory_that_runs_out_while_sums_are_added_leaves_none_of_them_twice(
    models: Any, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = attribute(models, pairs, Grading(names=NAMES), standard_errors=True)
    add, calls = gradients_room.add_to, []

    def short(*given: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError
        add(*given)

    monkeypatch.setattr(gradients_room, "add_to", short)
    halved = attribute(models, pairs, Grading(names=NAMES), standard_errors=True)
    assert whole.spread is not None
    assert halved.spread is not None
    for name in NAMES:
        torch.testing.assert_close(halved.gradients[name], whole.gradients[name], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(halved.spread[name], whole.spread[name], rtol=1e-2, atol=1e-6)


def test_a_standard_error_is_that_of_the_mean_over_paths(models: Any, pairs: Pairs) -> None:
    found = attribute(models, pairs, Grading(names=NAMES), standard_errors=True)
    assert found.spread is not None
    for name in NAMES:
        # each path has two of the four pairs: the mean over pairs is the mean of the paths' own means
        means = torch.stack([gradients(models, pairs.of_sample(number))[name] / 2 for number in range(2)])
        torch.testing.assert_close(found.gradients[name], means.mean(0), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(found.spread[name], means.std(0) / 2**0.5, rtol=1e-2, atol=1e-6)
    # a score and its error are multiples of the weight, and the t-statistic has the score's sign
    for (name, score), (_, t) in zip(found.scores(), found.t_statistics(), strict=True):
        error = found.spread[name] * found.weights[name].detach().abs()
        known = error > 1e-9
        torch.testing.assert_close(t[known], score[known] / error[known], rtol=1e-3, atol=1e-5)
        assert bool(known.any())


def test_one_picture_at_a_time_adds_where_the_sums_are(models: Any, pairs: Pairs) -> None:
    sums, one = Sums(), Grading(names=NAMES, micro_batch=1)
    places = [
        [total.data_ptr() for total in sums.gradients.values()]
        for _ in attribution_room.add_samples(models, pairs, one, sums)
    ]
    assert len(places) > 1
    assert all(place == places[0] for place in places)
    together = Sums()
    add_gradients(models, pairs, Grading(names=NAMES, micro_batch=len(pairs)), together)
    assert sums.samples == together.samples
    for name, total in together.gradients.items():
        torch.testing.assert_close(sums.gradients[name], total, rtol=1e-4, atol=1e-6)


def test_what_differs_between_timesteps_is_no_error_of_paths_spread_over_them() -> None:
    # 40 samples whose gradients rise evenly by 0.1 each, and a little noise
    noise = 1e-3 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    values = 0.1 * torch.arange(40) + noise
    total = Sums(differences={})
    for start in range(0, 40, 7):  # in lots, as they come
        lot = Sums(differences={}, last=total.last)
        for value in values[start : start + 7]:
            lot.add({"w": value[None].clone()})
            lot.samples += 1
        total.merge(lot)
    assert total.differences is not None
    assert total.samples == 40
    by_hand = values.diff().square().sum() * 40 / 78
    found = attribution_room._standard_error(total, "w", 1)
    torch.testing.assert_close(found, by_hand.sqrt()[None])
    assert float(found) < 0.1 * float(values.std() * 40**0.5)  # as if they were drawn at random


@pytest.mark.parametrize("towards", [1, -1])
def test_the_curvature_makes_a_prediction_better_than_the_slope_alone(
    models: Any, pairs: Pairs, towards: int
) -> None:
    shaken = replace(pairs, towards=towards, target=pairs.target * 0.5)
    weights = weights_of(models, NAMES)
    generator = torch.Generator().manual_seed(0)
    rules: tuple[Predictor, ...] = ("first_order", "gauss_newton")
    told = {rule: predict(models, shaken, Grading(names=NAMES), rule) for rule in rules}
    before = measure(models, shaken, {}).mean
    errors: dict[str, list[float]] = {rule: [] for rule in told}
    for _ in range(6):
        mask = random_mask(
            ComponentMask(
                {
                    name: Places("elements", tuple(one.shape), torch.arange(one.numel() // 5))
                    for name, one in weights.items()
                }
            ),
            generator,
        )
        gone = {name: masked(weights[name].detach(), places) for name, places in mask.places.items()}
        change = measure(models, shaken, gone).mean - before
        for rule, prediction in told.items():
            errors[rule].append((prediction.of(mask) - change) ** 2)
    assert sum(errors["gauss_newton"]) < sum(errors["first_order"])


def test_a_weight_that_nothing_flows_into_is_refused(models: Any, pairs: Pairs) -> None:
    unused = "vae/decoder.conv_in.weight"
    with pytest.raises(MethodError, match="no gradient reaches 'vae/decoder"):
        gradients(models, pairs, (NAMES[0], unused))


def test_a_measure_that_is_no_number_is_refused(models: Any, pairs: Pairs) -> None:
    name = NAMES[0]
    weight = weights_of(models, (name,))[name]
    before = weight.detach().clone()
    try:
        weight.data[0, 0] = torch.nan
        with pytest.raises(MethodError, match="measure is NaN"):
            gradients(models, pairs)
    finally:
        weight.data.copy_(before)


@pytest.mark.parametrize("towards", [1, -1])
def test_even_weights_let_every_pair_say_as_much(models: Any, pairs: Pairs, towards: int) -> None:
    signed = replace(pairs, towards=towards)
    grading = Grading(names=NAMES, even=True, micro_batch=2)
    found = attribute(models, signed, grading)
    apart = [
        attribute(models, signed.select([row]), replace(grading, even=False)) for row in range(len(pairs))
    ]
    size = abs(found.measured.mean)
    for name in NAMES:
        shares = [one.gradients[name] / abs(one.measured.mean) for one in apart]
        expected = size * torch.stack(shares).mean(0)
        torch.testing.assert_close(found.gradients[name], expected, rtol=1e-3, atol=1e-6)


def test_half_precision_is_added_up_beyond_a_micro_batch_whatever_the_paths(
    models: Any, pairs: Pairs
) -> None:
    half = copy(models)
    object.__setattr__(half, "unet", deepcopy(models.unet).bfloat16())
    sums = {}
    for size in (1, 4):
        sums[size] = Sums()
        add_gradients(half, pairs, Grading(names=NAMES, micro_batch=size), sums[size])
        assert sums[size].samples == 2
        assert all(one.dtype == torch.float32 for one in sums[size].gradients.values())
    for name in NAMES:
        near = 0.05 * float(sums[1].gradients[name].abs().max())
        torch.testing.assert_close(sums[4].gradients[name], sums[1].gradients[name], rtol=0.1, atol=near)
