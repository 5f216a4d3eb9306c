"""Devices: the first that is there, or the one that was named, and never another."""

import logging

import pytest
import torch

from surgery.cli.devices import chosen_device, use_threads
from surgery.errors import SurgeryError
from tests.support.threads import threads


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without any accelerator."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def test_auto_takes_the_cpu_where_nothing_else_is_and_says_so(
    machine: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert chosen_device("auto") == "cpu"
    assert "computing on cpu" in caplog.text


def test_auto_takes_the_first_cuda_device(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen_device("auto") == "cuda:0"
    assert chosen_device("cuda") == "cuda:0"
    assert chosen_device("cuda:1") == "cuda:1"
    assert chosen_device("cpu") == "cpu"


def test_auto_takes_mps_before_the_cpu(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert chosen_device("auto") == "mps"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "gpu", ""])
def test_a_device_that_is_not_there_is_refused(machine: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(SurgeryError, match="Present are: auto, cpu"):
        chosen_device(name)


def test_threads_are_set_when_named_and_left_alone_when_not() -> None:
    with threads(torch.get_num_threads()):
        use_threads(1)
        assert torch.get_num_threads() == 1
        use_threads(None)
        assert torch.get_num_threads() == 1
