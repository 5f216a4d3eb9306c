"""The largest numbers, of rows and of all tensors together, against plain sorting; ties by place."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surgery.errors import NumericsError
from surgery.numerics.ranking import histogram, largest_of_all, largest_of_rows, quotas

# few different numbers, so that there are ties; some of them below zero, infinitely near to it, and nothing
NUMBERS = st.sampled_from([-2.0, -1e-30, -0.0, 0.0, 1e-42, 1e-30, 0.5, 0.50000006, 1.0, 3e38])


def matrices(rows: int, width: int) -> st.SearchStrategy[Tensor]:
    row = st.lists(NUMBERS, min_size=width, max_size=width)
    return st.lists(row, min_size=rows, max_size=rows).map(torch.tensor)


def plainly(scores: list[float], count: int, zeros: bool) -> list[int]:
    allowed = [place for place, score in enumerate(scores) if score > 0 or (zeros and score == 0)]
    return sorted(sorted(allowed, key=lambda place: (-scores[place], place))[:count])


@settings(max_examples=80, deadline=None)
@given(matrices(3, 7), st.lists(st.integers(0, 7), min_size=3, max_size=3), st.booleans())
def test_the_largest_of_each_row_are_those_of_a_sorted_row(
    scores: Tensor, counts: list[int], zeros: bool
) -> None:
    expected = [
        row * 7 + place
        for row, count in enumerate(counts)
        for place in plainly(scores[row].tolist(), count, zeros)
    ]
    assert largest_of_rows(scores, torch.tensor(counts), zeros=zeros).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(matrices(2, 6), matrices(1, 5), st.integers(0, 18), st.booleans())
def test_the_largest_of_all_are_those_of_all_numbers_sorted(
    first: Tensor, second: Tensor, count: int, zeros: bool
) -> None:
    def passing() -> Iterator[tuple[str, Tensor]]:
        yield "a", first
        yield "b", second

    found = largest_of_all(passing, count, zeros=zeros)
    together = found["a"][0].tolist() + [12 + place for place in found["b"][0].tolist()]
    for name, one in passing():
        assert torch.equal(found[name][1], one.flatten()[found[name][0]])
    assert together == plainly([*first.flatten().tolist(), *second.flatten().tolist()], count, zeros)


def test_a_threshold_inside_one_bin_is_exact() -> None:
    scores = 1 + torch.arange(1000, dtype=torch.float32) * 2**-23  # all in the bin of 1.0
    assert histogram(scores).max() == 1000
    found = largest_of_all(partial(iter, [("w", scores)]), 10)
    assert found["w"][0].tolist() == list(range(990, 1000))


def test_a_count_may_follow_from_how_many_numbers_pass_and_they_pass_twice() -> None:
    passes: list[None] = []

    def passing() -> Iterator[tuple[str, Tensor]]:
        passes.append(None)
        yield "w", torch.arange(100, dtype=torch.float32)

    assert largest_of_all(passing, lambda numbers: numbers // 50)["w"][0].tolist() == [98, 99]
    assert len(passes) == 2


@pytest.mark.parametrize("ratio", [0.001, 0.004, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("width", [7, 320, 1280])
def test_a_quota_that_is_carried_on_comes_to_the_nearest_whole_number(width: int, ratio: float) -> None:
    carried = quotas(999, width, ratio, "carry")
    assert int(carried.sum()) == round(999 * width * ratio)
    assert int(carried.max() - carried.min()) <= 1


@pytest.mark.parametrize("count", [1, 5, 10, 100, 1000])
def test_what_is_left_over_is_handed_on_to_the_next_tensor(count: int) -> None:
    sizes = [(2560, 320), (320, 1280), (5120, 640), (640, 2560)] * 4
    ratio, before, found = count / sum(rows * width for rows, width in sizes), 0.0, 0
    for rows, width in sizes:
        found += int(quotas(rows, width, ratio, "carry", before).sum())
        before += ratio * rows * width
    assert found == count


def test_a_quota_of_its_own_is_rounded_down_or_up() -> None:
    assert quotas(3, 320, 0.001, "floor").tolist() == [0, 0, 0]
    assert quotas(3, 320, 0.001, "ceil").tolist() == [1, 1, 1]
    # 0.07 · 100 is 7.000000000000001 as a float, and 0.29 · 100 is 28.999999999999996
    assert quotas(1, 100, 0.07, "ceil").tolist() == [7]
    assert quotas(1, 100, 0.29, "floor").tolist() == [29]


def test_what_is_no_share_is_refused() -> None:
    with pytest.raises(NumericsError, match=r"the ratio is 1\.5"):
        quotas(3, 10, 1.5, "floor")
    with pytest.raises(NumericsError, match="-1 places were asked for"):
        largest_of_all(partial(iter, []), -1)
