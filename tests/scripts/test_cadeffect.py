"""The search for the ratio at which a concept is gone."""

from typing import Any

import pytest


@pytest.mark.parametrize("count", [1, 17])
def test_the_first_place_is_found_from_any_guess_and_none_is_asked_twice(bench: Any, count: int) -> None:
    first_place = bench("cadeffect").first_place
    for first in range(count + 1):
        for guess in range(count):
            asked: list[int] = []

            def holds(place: int, first: int = first, asked: list[int] = asked) -> bool:
                asked.append(place)
                return place >= first

            assert first_place(holds, guess, count) == first
            assert len(asked) == len(set(asked)) < 9
            if guess in (first, first - 1):
                assert len(asked) <= 2
