"""The largest numbers of rows, of a matrix, or of many tensors that pass by: exact, ties by place.

Only numbers of at least zero are ranked. Their bits, read as whole numbers, then have the same order, so that
a histogram over the upper half of the bits finds a threshold among any number of tensors in constant memory.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from surgery.errors import NumericsError

Passing: TypeAlias = Callable[[], Iterable[tuple[str, Float32[Tensor, "*shape"]]]]
"""Gives the same named tensors, in the same order, each time it is called."""

_BINS: Final = 1 << 15  # upper 16 bits of a positive float32
_PIECE: Final = 1 << 22  # elements that a histogram looks at at a time
_EXACT: Final = 1e-6  # 0.07 * 100 is a little more than 7, and is 7; sums over many tensors are as little off


def quotas(rows: int, width: int, ratio: float, rounding: str, before: float = 0.0) -> Int64[Tensor, " rows"]:
    """How many of the ``width`` places of each row a share of ``ratio`` is.

    Args:
        rounding: ``floor`` and ``ceil`` round each row for itself; ``carry`` hands what is left over to the
            next row, so that all rows together come to the whole number nearest to their share.
        before: The exact share of all rows in front of these, of other tensors; ``carry`` goes on from it.

    Raises:
        NumericsError: when the ratio is not between 0 and 1.
    """
    if not 0 <= ratio <= 1:
        raise NumericsError(f"the ratio is {ratio}; a share between 0 and 1 was expected.")
    exact = torch.full((rows,), ratio * width, dtype=torch.float64)
    if rounding == "floor":
        return (exact + _EXACT).floor().long()
    if rounding == "ceil":
        return (exact - _EXACT).ceil().long()
    exact_ends = before + torch.arange(rows + 1, dtype=torch.float64) * (ratio * width)
    return torch.diff((exact_ends + 0.5 + _EXACT).floor().long())


def largest_of_rows(
    scores: Float32[Tensor, "rows width"], counts: Int64[Tensor, " rows"], *, zeros: bool = False
) -> Int64[Tensor, " places"]:
    """Flat places of the ``counts`` largest numbers of each row, ascending; of equals the first.

    Args:
        scores: Any numbers; those below zero are never taken.
        counts: How many of each row, at most its width.
        zeros: Whether a zero may be taken.
    """
    most = int(counts.max()) if len(counts) else 0
    if most == 0:
        return torch.zeros(0, dtype=torch.int64)
    best = scores.topk(most, dim=1).values
    # the smallest number that is taken; nothing is larger than infinity
    last = best.gather(1, (counts - 1).clamp_min(0)[:, None])
    last = torch.where(counts[:, None] > 0, last, torch.inf)
    allowed = _allowed(scores, zeros)
    taken = (scores > last) & allowed
    equal = (scores == last) & allowed
    missing = counts[:, None] - taken.sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) > missing).any()):
        equal &= equal.cumsum(1, dtype=torch.int32) <= missing
    return (taken | equal).flatten().nonzero().flatten()


def largest_of_all(
    passing: Passing, count: int | Callable[[int], int], *, zeros: bool = False
) -> Mapping[str, tuple[Int64[Tensor, " places"], Float32[Tensor, " places"]]]:
    """The ``count`` largest numbers of all tensors together: flat places and numbers by name.

    Of equals the first are taken. The tensors pass twice. Beside them, memory holds a histogram, what was
    taken, and the numbers of the one bin (of 32,768) that the threshold falls into.

    Args:
        passing: Gives the tensors one by one.
        count: How many, or how many of so many numbers in all.
        zeros: Whether zeros may be taken.

    Raises:
        NumericsError: when the count is negative.
    """
    total, numbers = torch.zeros(_BINS, dtype=torch.int64), 0
    for _, scores in passing():
        total += histogram(scores, zeros=zeros)
        numbers += scores.numel()
    wanted = count if isinstance(count, int) else count(numbers)
    if wanted < 0:
        raise NumericsError(f"{wanted} places were asked for; a number of at least 0 was expected.")
    border, above = _border(total, wanted)
    near: dict[str, tuple[Tensor, Tensor]] = {}
    sure: list[Tensor] = []
    for name, scores in passing():
        flat, bins = scores.flatten(), _bins(scores, zeros)
        places = (bins >= border).nonzero().flatten()
        near[name] = places, flat[places]
        sure.append(bins[places] > border)
    if not near:
        return {}
    edge = [values[~mine] for (_, values), mine in zip(near.values(), sure, strict=True)]
    chosen = _first_of_equals(torch.cat(edge), wanted - above).split([len(one) for one in edge])
    found = {}
    for (name, (places, values)), mine, part in zip(near.items(), sure, chosen, strict=True):
        mine[~mine] = part
        found[name] = places[mine], values[mine]
    return found


def histogram(scores: Float32[Tensor, "*shape"], *, zeros: bool = False) -> Int64[Tensor, " bins"]:
    """How many numbers fall into each bin of the upper 16 bits; those of other tensors may be added."""
    total = torch.zeros(_BINS, dtype=torch.int64)
    for piece in scores.flatten().split(_PIECE):
        bins = _bins(piece, zeros)
        total += torch.bincount(bins[bins >= 0], minlength=_BINS)
    return total


def _allowed(scores: Tensor, zeros: bool) -> Bool[Tensor, "*shape"]:
    return scores >= 0 if zeros else scores > 0


def _bins(scores: Tensor, zeros: bool) -> Tensor:
    """The bin of each number, flat; -1 for what is never taken."""
    flat = scores.flatten()
    bins = flat.abs().contiguous().view(torch.int32) >> 16  # the bits of -0.0 are not those of 0.0
    return torch.where(_allowed(flat, zeros), bins, -1)


def _border(total: Tensor, count: int) -> tuple[int, int]:
    """The bin in which the ``count``-th largest number lies, and how many lie above it."""
    from_above = total.flip(0).cumsum(0).flip(0)
    reached = (from_above >= count).nonzero().flatten()
    border = int(reached[-1]) if len(reached) and count > 0 else (0 if count > 0 else _BINS - 1)
    above = int(from_above[border + 1]) if border + 1 < _BINS else 0
    return border, above


def _first_of_equals(values: Tensor, count: int) -> Tensor:
    """Which are the ``count`` largest; of equals the first."""
    order = values.sort(descending=True, stable=True).indices[: max(0, count)]
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[order] = True
    return chosen
