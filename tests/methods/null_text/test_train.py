"""Learning a look from pictures: the loss falls, a stopped run goes on, and the U-Net lets go."""

import logging
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from surgery.anatomy import weights_digest
from surgery.delta import Dense, LowRank
from surgery.diffusion import noise_schedule, predict_noise, read_prompts
from surgery.errors import MethodError
from surgery.methods.null_text import PictureSet, TrainSettings, check_settings, read_pictures, train
from surgery.methods.null_text.door import layers_of, leaves_of, wordless
from surgery.methods.null_text.objective import LookObjective
from surgery.methods.training import State
from surgery.store import Store
from tests.checkpoint.test_ldm import UNETS

QUICK = TrainSettings(
    rank=2, steps=6, batch=4, micro_batch=4, learning_rate=1e-2, average=0.5, held_out=0.2, check_every=2
)


@pytest.fixture(scope="module")
def pictures(models: Any, tmp_path_factory: pytest.TempPathFactory) -> PictureSet:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = np.full((32, 32, 3), (200, 30, 30), np.uint8)
        pixels[8:24, 8:24] = generator.integers(150, 255)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return read_pictures(models, folder)


def test_the_loss_falls_and_the_unet_is_as_it_was(models: Any, pictures: PictureSet) -> None:
    before, module_kinds = weights_digest(models.unet), [type(one) for one in models.unet.modules()]
    found = train(models, pictures, replace(QUICK, steps=40, check_every=20, patience=9))
    assert (found.steps, len(found.losses)) == (40, 40)
    assert [step for step, _ in found.held_out] == [20, 40]
    untrained = train(models, pictures, replace(QUICK, steps=1, check_every=1, learning_rate=1e-12))
    assert found.held_out[-1][1] < 0.97 * untrained.held_out[0][1]
    assert weights_digest(models.unet) == before
    assert [type(one) for one in models.unet.modules()] == module_kinds
    assert not hasattr(models.unet, "peft_config")
    assert all(isinstance(form, LowRank) for form in found.delta.terms.values())


def test_one_update_is_adamw_on_the_loss_of_noise_under_no_words(models: Any, pictures: PictureSet) -> None:
    """All weights, one update, by hand."""
    settings = replace(QUICK, form="full", steps=1, average=0.0, held_out=0.0, clip=1e9)
    found = train(models, pictures, settings)
    seen: list[tuple[torch.Tensor, ...]] = []
    with leaves_of(models, settings) as leaves:
        seen.append(LookObjective(models, pictures, settings).batch(0))
        clean, noise, timesteps = seen[0]
        schedule = noise_schedule(models.scheduler)
        text = read_prompts(models, [""]).features.expand(4, -1, -1)
        predicted = predict_noise(models.unet, schedule.noisy(clean, noise, timesteps), timesteps, text)
        loss = (predicted - noise).square().mean()
        gradients = torch.autograd.grad(loss, list(leaves.parameters.values()))
        for (name, leaf), gradient in zip(leaves.parameters.items(), gradients, strict=True):
            # the first update of Adam moves by the rate times the gradient over its own size
            step = -1e-2 * (1e-2 * leaf + gradient / (gradient.abs() + 1e-8))
            form = found.delta.terms[name]
            assert isinstance(form, Dense)
            torch.testing.assert_close(form.values, step.detach(), rtol=1e-2, atol=1e-4)
    assert float(loss.detach()) == pytest.approx(found.losses[0], rel=1e-4)
    assert not any(".attn2." in name for name in found.delta.terms)


@pytest.mark.parametrize("form", ["lora", "full"])
def test_a_stopped_run_goes_on_and_ends_in_the_same_bits(
    models: Any, pictures: PictureSet, form: Any, tmp_path: Path
) -> None:
    settings = replace(QUICK, form=form)
    whole = train(models, pictures, settings)

    def stop(check: Any) -> None:
        if check.step == 4:
            raise KeyboardInterrupt

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(models, pictures, settings, store=store, on_check=stop)
    seen: list[int] = []
    resumed = train(models, pictures, settings, store=store, on_check=lambda check: seen.append(check.step))
    assert seen == [4, 6]
    assert resumed.losses == whole.losses
    assert resumed.held_out == whole.held_out
    for name, form_ in whole.delta.terms.items():
        assert torch.equal(resumed.delta.materialise(name), whole.delta.materialise(name)), form_


def test_a_longer_training_goes_on_from_a_finished_one(
    models: Any, pictures: PictureSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, store = train(models, pictures, QUICK), Store(tmp_path)
    caplog.set_level(logging.INFO)
    train(models, pictures, replace(QUICK, steps=4), store=store)
    longer = train(models, pictures, replace(QUICK, patience=50), store=store)
    assert "goes on from update 4" in caplog.text
    assert (longer.losses, longer.held_out) == (whole.losses, whole.held_out)
    for name, form in whole.delta.terms.items():
        assert torch.equal(longer.delta.materialise(name), whole.delta.materialise(name)), form
    # one that looked where the longer does not, or that is past the end, is none to go on from
    shorter = train(models, pictures, replace(QUICK, steps=3), store=store)
    assert "starts anew" in caplog.text
    assert shorter.losses == whole.losses[:3]
    caplog.clear()
    assert train(models, pictures, QUICK, store=store).held_out == whole.held_out
    assert "starts anew" in caplog.text


def test_more_patience_waits_on_and_less_does_not_pass_a_wait() -> None:
    state = State(step=10, held_out=[(2, 3.0), (4, 2.0), (6, 2.5), (8, 2.6), (10, 1.0)], best=10)
    assert (state.waited, state.longest_wait()) == (0, 2)


def test_training_stops_when_the_held_out_loss_no_longer_falls(
    models: Any, pictures: PictureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = train(models, pictures, replace(QUICK, steps=4, held_out=0.0))
    assert (without.best, without.held_out) == (4, ())
    told = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    monkeypatch.setattr(LookObjective, "held_out", lambda _: next(told))
    found = train(models, pictures, replace(QUICK, steps=50, patience=2))
    assert (found.steps, found.best) == (8, 4)
    assert [loss for _, loss in found.held_out] == [3.0, 2.0, 2.5, 2.6]


def test_micro_batches_change_nothing_but_rounding(models: Any, pictures: PictureSet) -> None:
    whole, parts = (train(models, pictures, replace(QUICK, micro_batch=size)) for size in (4, 1))
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)


class Pair:
    """Two processes of which the other's sums are known beforehand: here, nothing."""

    num_processes = 2

    def __init__(self, index: int, sums: list[torch.Tensor]) -> None:
        self.process_index, self.sums = index, sums

    def reduce(self, tensor: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
        self.sums.append(tensor.clone())
        return tensor


def test_each_process_takes_its_share_of_the_same_batch(models: Any, pictures: PictureSet) -> None:
    settings = replace(QUICK, steps=1, average=0.0, held_out=0.0)
    alone: list[torch.Tensor] = []
    single = train(models, pictures, settings)
    shares: list[list[torch.Tensor]] = [[], []]
    for index in (0, 1):
        train(models, pictures, settings, company=Pair(index, shares[index]))
    total = [first + second for first, second in zip(*shares, strict=True)]
    with leaves_of(models, settings) as leaves:
        for loss in LookObjective(models, pictures, settings).losses(0, State()):
            loss.backward()
        alone += [leaf.grad for leaf in leaves.parameters.values() if leaf.grad is not None]
    assert float(total[-1]) == pytest.approx(single.losses[0], rel=1e-4)
    for found, expected in zip(total, alone, strict=False):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_factors_are_beside_layers_of_blocks_that_no_word_reaches(models: Any) -> None:
    found = {kind: layers_of(models.unet, kind) for kind in ("attention", "linear", "all")}
    assert set(found["attention"]) < set(found["linear"]) < set(found["all"])
    assert not any("attn2" in path for path in found["all"])
    assert "unet/conv_in.weight" not in found["all"]
    assert any("resnets.0.conv1" in path for path in found["all"])


@pytest.mark.parametrize(("family", "count"), [("sd1", 815_533_444), ("sdxl", 2_021_626_884)])
def test_full_training_has_the_published_number_of_parameters(family: str, count: int) -> None:  # 7
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[family])
    chosen = {name.removeprefix("unet/") for name in wordless(unet)}
    assert sum(weight.numel() for path, weight in unet.named_parameters() if path in chosen) == count


def test_the_base_with_the_change_is_the_tuned_unet(models: Any, pictures: PictureSet) -> None:  # 8
    settings = replace(QUICK, form="full", steps=3, average=0.0, held_out=0.0)
    tuned: dict[str, torch.Tensor] = {}

    def keep(_: Any) -> None:
        tuned.update({path: one.detach().clone() for path, one in models.unet.named_parameters()})

    found = train(models, pictures, settings, on_check=keep)
    for name, form in found.delta.terms.items():
        weight, aim = models.unet.get_parameter(name.removeprefix("unet/")), tuned[name.removeprefix("unet/")]
        assert isinstance(form, Dense)
        again = (weight.detach().double() + form.values.double()).float()
        # the difference is rounded once and the sum once: two units in the last place at most
        torch.testing.assert_close(again, aim, rtol=2.4e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0, "batch": 0}, "rank is 0.*"),
        ({"form": "some"}, "form is 'some'; expected lora or full"),
        ({"held_out": 1.0}, r"held_out is 1\.0; expected a share"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        check_settings(replace(QUICK, **changes))


def test_a_loss_that_is_no_number_is_refused(models: Any, pictures: PictureSet) -> None:
    broken = replace(pictures, mean=pictures.mean * torch.nan)
    with pytest.raises(MethodError, match="the loss of update 1 is nan"):
        train(models, broken, QUICK)
    assert not hasattr(models.unet, "peft_config")


def test_a_held_out_loss_that_is_no_number_is_refused(
    models: Any, pictures: PictureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LookObjective, "held_out", lambda _: float("nan"))
    with pytest.raises(MethodError, match="held-out loss after 2 updates is nan"):
        train(models, pictures, QUICK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(models: Any, pictures: PictureSet, dtype: torch.dtype) -> None:
    half = copy(models)
    object.__setattr__(half, "unet", deepcopy(models.unet).to(dtype))
    with pytest.raises(MethodError, match="small updates round to nothing"):
        train(half, pictures, QUICK)
