"""What several predictions at one point of a path make together: sums, projections, gates.

Inner products are taken picture by picture, over all channels and pixels, in float32 or better.
"""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_RANK: Final = 1e-10
"""Directions whose share of the largest one is smaller count as none."""


def guided(
    base: Float[Tensor, "pictures ..."],
    branches: Sequence[tuple[float | Tensor, Float[Tensor, "pictures ..."]]],
) -> Float[Tensor, "pictures ..."]:
    """The sum base + Σ wᵢ (eᵢ - base): every branch pulls away from the same base.

    One branch is classifier-free guidance; several of one model are Composable Diffusion; of several models,
    generalised guidance. A weight may be a tensor with one entry for each picture.

    Source: Liu et al. 2022, eq. 11; arXiv 2312.08195, (A1) of the study.
    """
    total = base
    for weight, branch in branches:
        total = total + weight * (branch - base)
    return total


def inner(
    first: Float[Tensor, "pictures ..."], second: Float[Tensor, "pictures ..."]
) -> Float[Tensor, "pictures ..."]:
    """The inner product of each picture, with as many dimensions as the pictures have."""
    product = (_wide(first) * _wide(second)).flatten(1).sum(1)
    return product.view(-1, *[1] * (first.ndim - 1))


def norm(vector: Float[Tensor, "pictures ..."]) -> Float[Tensor, "pictures ..."]:
    """The Euclidean length of each picture, shaped like ``inner``'s result."""
    return inner(vector, vector).sqrt()


def cosine(
    first: Float[Tensor, "pictures ..."], second: Float[Tensor, "pictures ..."]
) -> Float[Tensor, "pictures ..."]:
    """The cosine between two vectors of each picture; 0 where one of them is nothing."""
    lengths = norm(first) * norm(second)
    return torch.where(lengths > 0, inner(first, second) / lengths.clamp_min(_tiny(lengths)), 0.0)


def along(
    vector: Float[Tensor, "pictures ..."], direction: Float[Tensor, "pictures ..."]
) -> Float[Tensor, "pictures ..."]:
    """The part of a vector that lies along a direction; nothing where the direction is nothing."""
    size = inner(direction, direction)
    return (inner(vector, direction) / size.clamp_min(_tiny(size)) * direction).to(vector)


def across(
    vector: Float[Tensor, "pictures ..."], directions: Sequence[Float[Tensor, "pictures ..."]]
) -> Float[Tensor, "pictures ..."]:
    """The part of a vector that is orthogonal to all of some directions, by least squares.

    Directions that depend on each other count once. Unlike taking one component after the other away, what is
    left is orthogonal to each.
    """
    if not directions:
        return vector
    # [pictures, directions, size]; nearly equal directions are told apart in float64 alone
    rows = torch.stack([direction.flatten(1).double() for direction in directions], 1)
    sizes = rows.norm(dim=2, keepdim=True)
    rows = rows / sizes.clamp_min(_tiny(sizes))
    values, turns = torch.linalg.eigh(rows @ rows.mT)
    kept = values > _RANK * values.amax(1, keepdim=True)
    scale = torch.where(kept, values.clamp_min(_RANK).rsqrt(), 0.0)
    basis = (scale[..., None] * turns.mT) @ rows  # orthonormal, nothing where not kept
    left = vector.flatten(1).double()[:, :, None]
    for _ in range(2):  # the second time takes what rounding left of the first
        left = left - basis.mT @ (basis @ left)
    return left.view_as(vector).to(vector)


def trimmed(
    vector: Float[Tensor, "pictures channels ..."], quantile: float | Tensor
) -> Float[Tensor, "pictures channels ..."]:
    """The largest entries of each channel, by size; the share ``quantile`` of the pixels becomes nothing.

    Args:
        vector: Predictions or scores.
        quantile: From 0, which keeps all, to 1, which keeps the largest alone; may differ by picture.
    """
    sizes = vector.abs().flatten(2)
    count = sizes.shape[2]
    share = torch.as_tensor(quantile, dtype=torch.float64).reshape(-1, 1, 1).expand(len(vector), 1, 1)
    rank = (share * count).floor().clamp(0, count - 1).long().to(sizes.device)
    ordered = sizes.sort(dim=2).values
    least = ordered.gather(2, rank.expand(-1, sizes.shape[1], 1))
    return torch.where(sizes >= least, vector.flatten(2), 0.0).view_as(vector)


def limited(vector: Float[Tensor, "pictures ..."], most: float) -> Float[Tensor, "pictures ..."]:
    """The vector, shortened to a length of ``most`` where it is longer.

    Source: adaptive projected guidance, Sadat et al. 2024, eq. 8.
    """
    length = norm(vector)
    return (vector * (most / length.clamp_min(_tiny(length))).clamp_max(1.0)).to(vector)


def open_below(
    value: Float[Tensor, "pictures ..."], threshold: float, softness: float = 0.0
) -> Float[Tensor, "pictures ..."]:
    """A gate: 1 where the value is below the threshold, 0 above; with ``softness`` a sigmoid between."""
    if softness == 0:
        return (value < threshold).to(value)
    return torch.sigmoid((threshold - value) / softness)


def _wide(vector: Tensor) -> Tensor:
    return vector if vector.dtype == torch.float64 else vector.float()


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny
