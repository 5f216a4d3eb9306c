"""Several predictions of one step: what each reads, at which strengths of the patches."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.diffusion import Control, Models, Reading, device_and_dtype, predict_under, together
from surgery.guidance.weights import BranchWeights, Strengths

Latents: TypeAlias = Float[Tensor, "pictures channels height width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One evaluation of the U-Net for all pictures of a batch.

    Attributes:
        text: What it reads, a prompt for each picture.
        strengths: Of each patch in its weights.
        instead: Latents that it reads in place of the sampler's.
        control: A ControlNet and its picture beside the U-Net.
    """

    text: Reading
    strengths: Strengths = ()
    instead: Latents | None = None
    control: Control | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchExecutor:
    """Computes branches, in as few passes as weights and memory allow.

    Attributes:
        models: Whose U-Net.
        weights: Its weights at several strengths; None where there is no patch.
        together: Whether branches share a pass. Else each has its own, with the memory of one.
    """

    models: Models
    weights: BranchWeights | None = None
    together: bool = True

    @torch.no_grad()
    def predict(self, latents: Latents, timestep: Tensor | int, branches: Sequence[Branch]) -> list[Latents]:
        """The prediction of each branch, in their order."""
        found: dict[int, Latents] = {}
        for group in self._groups(branches):
            some = [branches[place] for place in group]
            found |= zip(group, self._pass(latents, timestep, some), strict=True)
        return [found[place] for place in range(len(branches))]

    def _groups(self, branches: Sequence[Branch]) -> list[list[int]]:
        """Which branches share a pass."""
        places = list(range(len(branches)))
        if not self.together:
            return [[place] for place in places]
        rowwise = self.weights is None or self.weights.rowwise
        alike: dict[tuple[Strengths, int], list[int]] = {}
        for place in places:
            one = branches[place]
            key = () if rowwise else one.strengths, id(one.control)
            alike.setdefault(key, []).append(place)
        return list(alike.values())

    def _pass(
        self, latents: Latents, timestep: Tensor | int, branches: Sequence[Branch]
    ) -> tuple[Latents, ...]:
        device, dtype = device_and_dtype(self.models.unet)
        given = [latents if one.instead is None else one.instead for one in branches]
        noisy = torch.cat(given).to(device, dtype)
        text = together([one.text for one in branches]).to(noisy)
        when = timestep.repeat(len(branches)) if isinstance(timestep, Tensor) and timestep.ndim else timestep
        rows = [one.strengths for one in branches for _ in range(len(latents))]
        with self.weights.at(rows) if self.weights is not None and rows[0] else nullcontext():
            predicted = predict_under(self.models, noisy, when, text, branches[0].control)
        return predicted.to(latents).chunk(len(branches))
