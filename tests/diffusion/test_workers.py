"""Several pieces of work at once: in order, on one thread each, and whole or not at all."""

from collections.abc import Iterator
from contextvars import ContextVar
from threading import Barrier, Event, get_ident
from typing import Any

import pytest
import torch
from torch import nn

from surgery.diffusion import at_once, encode_prompts, in_order, offload, sample, workers
from tests.support.threads import threads

CALLER: ContextVar[str] = ContextVar("caller", default="nobody")


@pytest.fixture
def three_threads() -> Iterator[None]:
    with threads(3):
        yield


def test_results_come_in_the_order_of_the_items(three_threads: None) -> None:
    last_done = Event()

    def work(item: int) -> int:
        if item == 0:
            assert last_done.wait(10)  # the first one ends last
        if item == 2:
            last_done.set()
        return item * item

    assert list(in_order(work, range(3), 3)) == [0, 1, 4]


def test_workers_run_at_once_on_one_thread_each_in_their_caller_s_context(three_threads: None) -> None:
    together = Barrier(3, timeout=10)

    def work(item: int) -> tuple[int, int, str]:
        together.wait()
        return get_ident(), torch.get_num_threads(), CALLER.get()

    token = CALLER.set("me")
    found = list(in_order(work, range(3), 3))
    CALLER.reset(token)
    assert len({ident for ident, _, _ in found}) == 3
    assert {(threads, caller) for _, threads, caller in found} == {(1, "me")}
    assert torch.get_num_threads() == 3


def test_an_error_ends_the_rest_and_gives_the_threads_back(three_threads: None) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise ValueError("broken")
        return item

    with pytest.raises(ValueError, match="broken"):
        list(in_order(work, range(1000), 2))
    assert len(begun) < 1000
    assert torch.get_num_threads() == 3


def test_one_worker_is_the_caller_itself(three_threads: None) -> None:
    found = list(in_order(lambda item: (get_ident(), torch.get_num_threads()), [0, 1], 1))
    assert found == [(get_ident(), 3)] * 2


def test_small_networks_on_the_cpu_get_a_worker_for_each_thread(three_threads: None) -> None:
    small = nn.Linear(2, 2)
    assert (at_once(small, 10), at_once(small, 2), at_once(small, 0)) == (3, 2, 1)


def test_large_networks_and_offloaded_ones_work_alone(
    three_threads: None, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SMALL", 5)
    assert at_once(nn.Linear(2, 2), 10) == 1
    monkeypatch.setattr(workers, "SMALL", 10**9)
    assert at_once(pipeline.unet, 10) == 3
    offload(pipeline, torch.device("cpu"))
    assert at_once(pipeline.unet, 10) == 1


def test_pictures_drawn_at_once_are_those_drawn_alone(three_threads: None, pipeline: Any) -> None:
    prompts = ["cat", "a dog", "the tree in the park", "cat"]

    def draw(prompt: str) -> Any:
        return sample(pipeline, [prompt] * 2, [1, 2], steps=2, progress=False)

    at_a_time = [list(in_order(draw, prompts, 3)), list(in_order(draw, prompts, 2))]
    for several, fewer in zip(*at_a_time, strict=True):
        assert (several == fewer).all()
    torch.set_num_threads(1)
    assert all((found == draw(prompt)).all() for found, prompt in zip(at_a_time[0], prompts, strict=True))


def test_a_tokenizer_is_shared(three_threads: None, pipeline: Any) -> None:
    prompts = [f"a cat {number} " + "very " * number for number in range(60)]

    def encode(prompt: str) -> torch.Tensor:
        return encode_prompts(pipeline.tokenizer, pipeline.text_encoder, [prompt])

    found = list(in_order(encode, prompts, 3))
    torch.set_num_threads(1)
    assert all(torch.equal(a, encode(p)) for a, p in zip(found, prompts, strict=True))
