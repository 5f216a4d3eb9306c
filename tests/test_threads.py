"""Items made ahead of their turn: the same ones, in order, bounded, and with their errors in place."""

from collections.abc import Iterator
from threading import Event, get_ident

import pytest
import torch

from surgery.threads import ahead, one_thread_each
from tests.support.threads import threads


def test_items_come_in_order_from_another_thread() -> None:
    def made() -> Iterator[tuple[int, int]]:
        for number in range(20):
            yield number, get_ident()

    found = list(ahead(made(), 3))
    assert [number for number, _ in found] == list(range(20))
    assert len({ident for _, ident in found} - {get_ident()}) == 1


def test_no_more_are_made_than_allowed() -> None:
    begun: list[int] = []
    full = Event()

    def made() -> Iterator[int]:
        for number in range(50):
            begun.append(number)
            if len(begun) == 4:
                full.set()
            yield number

    items = ahead(made(), 3)
    assert next(items) == 0
    assert full.wait(10)  # one taken, three waiting
    items.close()
    assert len(begun) == 4


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def made() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    items = ahead(made(), 5)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_nothing_to_make_is_nothing() -> None:
    assert list(ahead((), 2)) == []


def test_the_caller_s_threads_come_back_after_an_error() -> None:
    with threads(3), pytest.raises(ValueError, match="broken"), one_thread_each(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        raise ValueError("broken")
    with threads(3):
        with one_thread_each():
            pass
        assert torch.get_num_threads() == 3
