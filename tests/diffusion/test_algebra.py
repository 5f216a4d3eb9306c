"""Identities of guidance: numbers in tests' names are those of section 4.2 of the study; all in float64."""

import pytest
import torch
from torch import Tensor

from surgery.diffusion.algebra import (
    across,
    along,
    cosine,
    guided,
    inner,
    limited,
    norm,
    open_below,
    trimmed,
)


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)


@pytest.fixture
def vectors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((3, 4, 8, 8), generator=generator, dtype=torch.float64) for _ in range(5)]


def test_one_condition_is_classifier_free_guidance_to_the_bit(vectors: list[Tensor]) -> None:  # 1
    base, one, *_ = vectors
    assert torch.equal(guided(base, [(7.5, one)]), base + 7.5 * (one - base))


def test_a_branch_like_the_base_is_inert_and_equal_branches_add_their_weights(
    vectors: list[Tensor],
) -> None:  # 2
    base, one, other, *_ = vectors
    assert torch.equal(guided(base, [(7.5, one), (123.0, base)]), guided(base, [(7.5, one)]))
    twice = guided(base, [(2.0, one), (1.5, one)])
    near(twice, guided(base, [(3.5, one)]))
    shifted = vectors[4]
    # weights that sum to 1 leave nothing of the base
    first, second = (guided(start, [(0.3, one), (0.7, other)]) for start in (base, shifted))
    near(first, second)


def test_a_negative_prompt_and_rectification_are_weights_about_one_base(vectors: list[Tensor]) -> None:  # 3
    base, wanted, unwanted, tuned, drifted = vectors
    by_hand = unwanted + 7.5 * (wanted - unwanted)
    near(guided(base, [(7.5, wanted), (1 - 7.5, unwanted)]), by_hand)
    branches = [(2.5, tuned), (2.5, wanted)]
    difference = guided(drifted, branches) - guided(base, branches)
    near(difference, (1 - 5.0) * (drifted - base))


def test_a_weight_may_differ_by_picture(vectors: list[Tensor]) -> None:
    base, one, *_ = vectors
    weights = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    found = guided(base, [(weights, one)])
    for place, weight in enumerate((0.0, 1.0, 2.0)):
        expected = guided(base[place : place + 1], [(weight, one[place : place + 1])])
        near(found[place : place + 1], expected)


def test_parts_along_and_across_add_up_and_are_orthogonal(vectors: list[Tensor]) -> None:
    vector, direction, *_ = vectors
    rest = across(vector, [direction])
    near(along(vector, direction) + rest, vector)
    assert float(cosine(rest, direction).abs().max()) < 1e-10
    share = cosine(vector, direction)
    near(norm(rest) / norm(vector), (1 - share.square()).sqrt())


def test_what_lies_across_several_directions_is_orthogonal_to_each(vectors: list[Tensor]) -> None:
    vector, first, second, third, _ = vectors
    slanted = [first, first + 0.1 * second, third]  # taking one away after the other would leave 0.1 of them
    rest = across(vector, slanted)
    assert max(float(cosine(rest, one).abs().max()) for one in slanted) < 1e-10


def test_directions_that_depend_on_each_other_count_once(vectors: list[Tensor]) -> None:
    vector, first, second, *_ = vectors
    plain = across(vector, [first, second])
    near(across(vector, [first, second, first, torch.zeros_like(first), 1e6 * second]), plain)
    assert torch.equal(across(vector, []), vector)


def test_nothing_has_no_direction(vectors: list[Tensor]) -> None:
    nothing = torch.zeros_like(vectors[0])
    assert torch.equal(cosine(vectors[0], nothing), torch.zeros(3, 1, 1, 1, dtype=torch.float64))
    assert torch.equal(along(vectors[0], nothing), nothing)
    assert torch.equal(across(vectors[0], [nothing]), vectors[0])
    assert torch.equal(limited(nothing, 1.0), nothing)


@pytest.mark.parametrize(("quantile", "kept"), [(0.0, 64), (0.5, 32), (0.9, 7), (1.0, 1)])
def test_trimming_keeps_the_largest_of_each_channel(  # 12
    vectors: list[Tensor], quantile: float, kept: int
) -> None:
    found = trimmed(vectors[0], quantile).flatten(2)
    assert (found != 0).sum(2).unique().tolist() == [kept]
    whole = vectors[0].flatten(2)
    assert bool(((found == whole) | (found == 0)).all())
    least = found.abs().masked_fill(found == 0, torch.inf).amin(2)
    assert bool((whole.abs().masked_fill(found != 0, 0.0).amax(2) <= least).all())


def test_trimming_may_differ_by_picture(vectors: list[Tensor]) -> None:
    found = trimmed(vectors[0], torch.tensor([0.0, 0.5, 0.9]).view(3, 1, 1, 1)).flatten(2)
    assert (found != 0).sum(2)[:, 0].tolist() == [64, 32, 7]


def test_cosines_do_not_know_scales(vectors: list[Tensor]) -> None:  # 12
    first, second, *_ = vectors
    near(cosine(first, second), cosine(7.5 * first, 8.5 * second))
    near(cosine(first, -second), -cosine(first, second))


def test_limiting_shortens_what_is_longer_and_nothing_else(vectors: list[Tensor]) -> None:
    long, short = 10 * vectors[0], 1e-3 * vectors[1]
    near(norm(limited(long, 15.0)).flatten(), torch.full((3,), 15.0).double())
    assert torch.equal(limited(short, 15.0), short)
    assert float(cosine(limited(long, 15.0), long).min()) == pytest.approx(1.0)


def test_gates_are_hard_or_a_sigmoid() -> None:
    values = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert open_below(values, 0.5).tolist() == [1.0, 0.0, 0.0]
    soft = open_below(values, 0.5, 0.1)
    assert soft[1].item() == pytest.approx(0.5)
    assert soft[0].item() == pytest.approx(1 / (1 + torch.e**-4))
    torch.testing.assert_close(open_below(values, 0.5, 1e-4)[[0, 2]], open_below(values, 0.5)[[0, 2]])


def test_inner_products_are_of_each_picture(vectors: list[Tensor]) -> None:
    first, second, *_ = vectors
    by_hand = [float((first[n] * second[n]).sum()) for n in range(3)]
    assert inner(first, second).flatten().tolist() == pytest.approx(by_hand, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_latents_in_half_precision_overflow_nothing(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn((1, 4, 128, 128), generator=generator, dtype=torch.float64) for _ in range(2)]
    first, second = (one.to(dtype) for one in exact)
    assert float(norm(limited(first, 15.0))) == pytest.approx(15.0, rel=0.02)
    for found in (limited(first, 15.0), along(first, second), across(first, [second])):
        assert found.dtype == dtype
        assert bool(found.isfinite().all())
    # directions so alike that their types' rounding is all that parts them
    near_second = (exact[1] + 1e-3 * exact[0]).to(dtype)
    left = across(first.flip(2), [second, near_second]).double()
    expected = across(first.flip(2).double(), [second.double(), near_second.double()])
    assert float((left - expected).norm() / expected.norm()) < 0.01
