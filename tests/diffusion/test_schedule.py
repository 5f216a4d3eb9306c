"""The noise schedule is the scheduler's, for checkpoints of both kinds of prediction."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from surgery.diffusion import noise_schedule
from surgery.errors import MethodError


def test_noising_is_the_scheduler_s(pipeline: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    times = torch.tensor([0, 500, 999])
    found = noise_schedule(pipeline.scheduler).noisy(clean, noise, times)
    torch.testing.assert_close(found, pipeline.scheduler.add_noise(clean, noise, times))


def test_the_truth_is_the_noise_or_the_velocity(pipeline: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    times, schedule = torch.tensor([100, 900]), noise_schedule(pipeline.scheduler)
    assert torch.equal(schedule.truth(clean, noise, times), noise)
    velocity = replace(schedule, predicts="v_prediction").truth(clean, noise, times)
    torch.testing.assert_close(velocity, pipeline.scheduler.get_velocity(clean, noise, times))


def test_a_scheduler_without_a_table_of_noise_is_refused() -> None:
    with pytest.raises(MethodError, match="no table of noise levels"):
        noise_schedule(object())
