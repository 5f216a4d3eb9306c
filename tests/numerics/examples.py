"""Random systems of known shape."""

import torch
from torch import Tensor


def random_rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_moment(width: int, seed: int = 0, rows: int | None = None) -> Tensor:
    """The second moment of some random rows; singular when there are fewer rows than the width."""
    sample = random_rows(rows or 4 * width, width, seed)
    return sample.T @ sample / len(sample)
