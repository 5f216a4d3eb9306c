"""One walk through the text encoder: keys are read, a layer is changed, and the walk goes on.

Prompts end at their subject's last token, since a causal encoder computes it from nothing behind; what has
been worked out up to a block stays valid when that block's ``fc2`` changes. So all layers together cost one
pass, where a fresh pass per layer would read the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from surgery.anatomy import TextStack, after_attention, mlp_keys

_TOKENS_AT_ONCE = 4096

Weights = Mapping[int, Tensor]
"""Changed ``fc2`` weights by layer, in float32; layers that are not named have the encoder's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A prompt as a walk reads it: ids as far as they matter, and the tokens ``[start, end)`` looked at."""

    ids: tuple[int, ...]
    start: int
    end: int


@dataclass(slots=True, kw_only=True)
class _Part:
    """Some prompts of like length: their stream between blocks, and where their tokens of interest lie."""

    stream: Tensor
    rows: Int[Tensor, "tokens"]
    places: Int[Tensor, "tokens"]

    def looked_at(self, values: Tensor) -> Tensor:
        return values[self.rows, self.places]


class Walk:
    """Prompts on their way through the blocks; ``layer`` is the block they stand before."""

    @torch.no_grad()
    def __init__(self, stack: TextStack, stretches: Sequence[Stretch]) -> None:
        self.stack, self.layer = stack, 0
        order = sorted(range(len(stretches)), key=lambda index: len(stretches[index].ids))
        groups = _groups(order, stretches)
        self._parts = [self._part([stretches[index] for index in group]) for group in groups]
        counts = [stretches[index].end - stretches[index].start for index in order]
        self._back = _places_of(order, counts)

    def keys(self) -> Float[Tensor, "tokens d_in"]:
        """The inputs of the present ``fc2`` at all tokens looked at, in the order of the stretches."""
        return self._gather([part.looked_at(self._keys(part)) for part in self._parts])

    def stream_behind(self, last: int, weights: Weights) -> Float[Tensor, "tokens width"]:
        """The stream behind block ``last``, reached with these weights; the walk stays where it is."""
        found = []
        for part in self._parts:
            stream = part.stream
            for layer in range(self.layer, last + 1):
                stream = self._through(layer, stream, weights)
            found.append(part.looked_at(stream))
        return self._gather(found)

    def stream(self) -> Float[Tensor, "tokens width"]:
        """The stream behind the blocks gone through so far."""
        return self._gather([part.looked_at(part.stream) for part in self._parts])

    def step(self, weights: Weights) -> None:
        """Go through the present block with these weights."""
        for part in self._parts:
            part.stream = self._through(self.layer, part.stream, weights)
        self.layer += 1

    @torch.no_grad()
    def _through(self, layer: int, stream: Tensor, weights: Weights) -> Tensor:
        block = self.stack.blocks[layer]
        middle = after_attention(block, stream)
        weight = weights.get(layer, block.mlp.fc2.weight)
        return middle + linear(mlp_keys(block, middle), weight, block.mlp.fc2.bias)

    @torch.no_grad()
    def _keys(self, part: _Part) -> Tensor:
        block = self.stack.blocks[self.layer]
        return mlp_keys(block, after_attention(block, part.stream))

    def _part(self, group: list[Stretch]) -> _Part:
        width = max(len(stretch.ids) for stretch in group)
        # any id will do behind a prompt's end: nothing before it reads it
        ids = torch.tensor([[*stretch.ids, *[0] * (width - len(stretch.ids))] for stretch in group])
        looked = [(row, place) for row, one in enumerate(group) for place in range(one.start, one.end)]
        rows, places = torch.tensor(looked, device=self.stack.device).T
        return _Part(stream=self.stack.embed(ids.to(self.stack.device)), rows=rows, places=places)

    def _gather(self, found: list[Tensor]) -> Tensor:
        return torch.cat(found).cpu()[self._back]


def _groups(order: list[int], stretches: Sequence[Stretch]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in order:  # ascending lengths: the newest is the longest
        if not groups or (len(groups[-1]) + 1) * len(stretches[index].ids) > _TOKENS_AT_ONCE:
            groups.append([])
        groups[-1].append(index)
    return groups


def _places_of(order: list[int], counts: list[int]) -> Tensor:
    """For each token of interest, in the order of the stretches, its place in the sorted order."""
    starts, total = {}, 0
    for index, count in zip(order, counts, strict=True):
        starts[index] = range(total, total + count)
        total += count
    return torch.tensor([place for index in sorted(starts) for place in starts[index]])
