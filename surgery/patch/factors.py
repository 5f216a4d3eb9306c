"""Half-precision changes as products of two half-precision factors: exact, or of bounded rank.

The exact way makes one factor a *selector*: a matrix of zeros with one power of two per column or row, which
picks the changed rows or columns out of the other factor. Such a product needs no rounding in any precision
and any order of summation, so every loader gets the same change to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.patch.rounding import round_once

_SMALLEST: Final = 4  # rank and alpha of a file with mixed ranks; both powers of two
_LARGEST_ALPHA: Final = 2048  # loaders may keep alpha in half precision, which has no odd numbers above


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """``scale * up @ down`` is the change; as matrices, kernels flattened into the inputs."""

    up: Float[Tensor, "d_out rank"]
    down: Float[Tensor, "rank d_in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """One alpha for the whole file, and a rank per module; loaders scale by ``alpha / rank``.

    diffusers applies files with more than one alpha at the wrong scale.
    """

    alpha: int
    of: Mapping[str, int]


def select(change: Float[Tensor, "d_out d_in"]) -> Factors:
    """The change exactly, by its changed rows or columns, whichever are fewer."""
    rows, columns = change.any(dim=1).nonzero()[:, 0], change.any(dim=0).nonzero()[:, 0]
    if len(rows) <= len(columns):
        return Factors(up=torch.eye(change.shape[0], dtype=change.dtype)[:, rows], down=change[rows])
    return Factors(up=change[:, columns], down=torch.eye(change.shape[1], dtype=change.dtype)[columns])


def truncate(change: Float[Tensor, "d_out d_in"], rank: int) -> Factors:
    """The nearest change of at most that rank (singular values), its factors rounded to half precision."""
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return Factors(
        up=round_once(left[:, :rank] * root, torch.float16),
        down=round_once(root[:, None] * right[:rank], torch.float16),
    )


def choose_ranks(needed: Mapping[str, int], sizes: Mapping[str, int]) -> Ranks:
    """Ranks that make ``alpha / rank`` a power of two everywhere, the smaller file of two kinds.

    Args:
        needed: Rank of each module's factors; 0 for a module of zeros.
        sizes: Outputs plus inputs of each module: the elements that one rank costs.
    """
    largest = max([1, *needed.values()])
    equal = Ranks(alpha=largest, of=dict.fromkeys(needed, largest))
    powers = {
        key: max(_SMALLEST, 1 << (rank - 1).bit_length()) if rank else _SMALLEST
        for key, rank in needed.items()
    }
    mixed = Ranks(alpha=_SMALLEST, of=powers)
    if largest <= _LARGEST_ALPHA and _elements(equal, sizes) <= _elements(mixed, sizes):
        return equal
    return mixed


def pad(factors: Factors, rank: int, alpha: int) -> Factors:
    """The same product at another rank: zeros added, and the selector carrying ``rank / alpha``.

    The factor that is no selector keeps its bits.
    """
    missing = rank - factors.up.shape[1]
    up = torch.nn.functional.pad(factors.up, (0, missing))
    down = torch.nn.functional.pad(factors.down, (0, 0, 0, missing))
    if is_selector(up):
        return Factors(up=up * (rank / alpha), down=down)
    return Factors(up=up, down=down * (rank / alpha))


def is_selector(matrix: Tensor) -> bool:
    """Whether a matrix holds nothing but zeros and ones."""
    return bool(((matrix == 0) | (matrix == 1)).all())


def _elements(ranks: Ranks, sizes: Mapping[str, int]) -> int:
    return sum(rank * sizes[key] for key, rank in ranks.of.items())
