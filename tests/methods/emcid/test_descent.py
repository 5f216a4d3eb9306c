"""Many descents as one, on losses whose minimum is known."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surgery.methods.emcid import OffsetSettings
from surgery.methods.emcid.descent import Losses, descend

SOURCE = torch.eye(4)[:3] * 2  # three concepts of width 4, each vector of length 2
PLAIN = OffsetSettings(steps=60, patience=None, rate="absolute", learning_rate=0.05, clamp=10.0)
GOALS = torch.tensor([[1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0.5, 0.5]])


def towards(goals: Tensor) -> Losses:
    def losses(step: int, offsets: Tensor, active: Tensor) -> Tensor:
        return (offsets - goals[active]).square().sum(1)

    return losses


def plain_adam(goal: Tensor, steps: int, rate: float) -> Tensor:
    offset = torch.zeros(4, requires_grad=True)
    adam = torch.optim.Adam([offset], lr=rate)
    for _ in range(steps):
        adam.zero_grad()
        (offset - goal).square().sum().backward()
        adam.step()
    return offset.detach()


def test_each_descent_is_adam_alone() -> None:
    found = descend(towards(GOALS), SOURCE, PLAIN)
    for row, goal in enumerate(GOALS):
        torch.testing.assert_close(found.offsets[row], plain_adam(goal, 60, 0.05))


def test_the_relative_rate_is_in_root_mean_squares_of_the_source() -> None:
    # a source of length 2 and width 4 has root mean square 1; ten times as long, ten times the steps
    settings = replace(PLAIN, rate="relative", steps=1)
    one = descend(towards(GOALS), SOURCE, settings).offsets
    ten = descend(towards(GOALS), 10 * SOURCE, settings).offsets
    torch.testing.assert_close(one, descend(towards(GOALS), SOURCE, replace(PLAIN, steps=1)).offsets)
    torch.testing.assert_close(ten, 10 * one)


def test_a_cosine_takes_the_rate_down_as_torch_does() -> None:
    offset = torch.zeros(4, requires_grad=True)
    adam = torch.optim.Adam([offset], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=20)
    for _ in range(20):
        adam.zero_grad()
        (offset - GOALS[0]).square().sum().backward()
        adam.step()
        schedule.step()
    found = descend(towards(GOALS), SOURCE, replace(PLAIN, steps=20, decay="cosine"))
    torch.testing.assert_close(found.offsets[0], offset.detach())


def test_offsets_stay_inside_their_ball_and_say_when_they_touch_it() -> None:
    found = descend(towards(100 * GOALS), SOURCE, replace(PLAIN, clamp=0.25, learning_rate=1.0))
    torch.testing.assert_close(found.offsets.norm(dim=1), torch.full((3,), 0.5))
    assert found.clamped.tolist() == [True] * 3


def test_a_concept_that_stands_still_stops_alone() -> None:
    def losses(step: int, offsets: Tensor, active: Tensor) -> Tensor:
        # the first concept falls for ever, the second is at its minimum from the start
        falling = -offsets[:, 0] * 1e3 + 1e6
        return torch.where(active == 0, falling, 1.0 + 0.0 * offsets[:, 0])

    settings = replace(PLAIN, patience=4, tolerance=1e-6, steps=30)
    found = descend(losses, SOURCE[:2], settings)
    # the first window of 5 steps sets the mark, 4 more without improvement end it
    assert found.steps.tolist() == [30, 9]
    assert found.settled.tolist() == [False, True]


def test_a_stopped_concept_keeps_what_it_had() -> None:
    settings = replace(PLAIN, patience=3, tolerance=0.5, steps=40)
    found = descend(towards(GOALS), SOURCE, settings)
    steps = int(found.steps[0])
    assert steps < 40
    torch.testing.assert_close(found.offsets[0], plain_adam(GOALS[0], steps, 0.05))


def test_the_running_mean_spans_whole_cycles_of_the_noise() -> None:
    def losses(step: int, offsets: Tensor, active: Tensor) -> Tensor:
        # one hard question in eight hides a steady fall from a shorter window
        return (offsets[:, 0] * 0 + 10.0 * (step % 8 == 0) + 1.0 - 0.02 * step).abs()

    settings = replace(PLAIN, patience=8, tolerance=1e-3, steps=40)
    assert descend(losses, SOURCE[:1], settings, cycle=8).steps.tolist() == [40]
    assert descend(losses, SOURCE[:1], replace(settings, patience=4), cycle=1).steps.tolist() < [40]


def test_a_loss_that_is_not_finite_ends_its_concept_and_no_other() -> None:
    def losses(step: int, offsets: Tensor, active: Tensor) -> Tensor:
        broken = torch.where((active == 1) & (step >= 3), torch.tensor(float("nan")), torch.tensor(1.0))
        return broken * towards(GOALS)(step, offsets, active)

    found = descend(losses, SOURCE, PLAIN)
    assert found.finite.tolist() == [True, False, True]
    assert bool(torch.isfinite(found.offsets).all())
    torch.testing.assert_close(found.offsets[2], plain_adam(GOALS[2], 60, 0.05))


def test_first_and_last_loss_are_window_means() -> None:
    def losses(step: int, offsets: Tensor, active: Tensor) -> Tensor:
        return offsets[:, 0] * 0 + float(step)

    found = descend(losses, SOURCE[:1], replace(PLAIN, steps=10))
    assert (found.first.tolist(), found.last.tolist()) == ([2.0], [7.0])


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_few_steps_compare_the_first_loss_with_the_last(steps: int) -> None:
    def losses(step: int, offsets: Tensor, active: Tensor) -> Tensor:
        return offsets[:, 0] * 0 + float(step)

    found = descend(losses, SOURCE[:1], replace(PLAIN, steps=steps))
    assert (found.first.tolist(), found.last.tolist()) == ([0.0], [steps - 1.0])
