"""Prompts and the concepts they belong to: means over a concept's prompts, and the way back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """Which concept each prompt belongs to; every concept has one prompt at least."""

    owner: Int[Tensor, "prompts"]

    @property
    def counts(self) -> Int[Tensor, "concepts"]:
        """How many prompts each concept has."""
        return torch.bincount(self.owner)

    def mean(self, values: Float[Tensor, "prompts size"]) -> Float[Tensor, "concepts size"]:
        """The mean over each concept's prompts, summed in float64."""
        counts = self.counts
        total = torch.zeros(len(counts), values.shape[1], dtype=torch.float64)
        total.index_add_(0, self.owner, values.double())
        return (total / counts[:, None]).to(values.dtype)

    def spread(self, values: Float[Tensor, "concepts *size"]) -> Float[Tensor, "prompts *size"]:
        """Each concept's value at all of its prompts."""
        return values[self.owner]

    def response(self, between: Float[Tensor, "prompts prompts"]) -> Float[Tensor, "concepts concepts"]:
        """Responses between prompts as those between concepts: what all prompts of one send to the other."""
        return self.mean(self.mean(between).T).T * self.counts
