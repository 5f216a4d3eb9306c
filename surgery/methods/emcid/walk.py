"""One walk through the text encoder: keys are read, a layer is changed, and the walk goes on.

Prompts end at their subject's last token, since a causal encoder computes it from nothing behind; what has
been worked out up to a block stays valid when that block's ``fc2`` changes. So all layers together cost one
pass, where a fresh pass per layer would read the same numbers. For the same reason the words with which many
prompts begin, those of a template, are worked out once for all of them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from surgery.anatomy import Past, TextStack, after_attention, mlp_keys, past_of

_TOKENS_AT_ONCE = 4096
# Fewer prompts than this are not worth a batch of their own for the sake of a common beginning.
_WORTH_SHARING = 32

Weights = Mapping[int, Tensor]
"""Changed ``fc2`` weights by layer, in float32; layers that are not named have the encoder's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A prompt as a walk reads it: ids as far as they matter, and the tokens ``[start, end)`` looked at."""

    ids: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """The stream of some prompts entering a block, or with their attention's part of it added.

    ``common`` is the stream of the tokens with which all of them begin (none of them may be there), once.
    """

    common: Float[Tensor, "1 early width"]
    stream: Float[Tensor, "prompts late width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inside:
    """A block as far as its ``fc2``: the stream there, and the keys of both parts."""

    middle: _State
    keys: _State


@dataclass(slots=True, kw_only=True)
class _Part:
    """Some prompts of like beginning and length between two blocks, and where their tokens of interest lie.

    ``inside`` keeps what was worked out of the block ahead. ``one_each`` says that one token of each prompt
    is looked at, in the order of the prompts.
    """

    state: _State
    rows: Int[Tensor, "tokens"]
    places: Int[Tensor, "tokens"]
    one_each: bool
    inside: _Inside | None = None

    def looked_at(self, values: Tensor) -> Tensor:
        return values[self.rows, self.places]


class Walk:
    """Prompts on their way through the blocks; ``layer`` is the block they stand before."""

    @torch.no_grad()
    def __init__(self, stack: TextStack, stretches: Sequence[Stretch]) -> None:
        self.stack, self.layer = stack, 0
        groups = list(_groups(stretches))
        self._parts = [self._part([stretches[index] for index in group], early) for group, early in groups]
        order = [index for group, _ in groups for index in group]
        counts = [stretches[index].end - stretches[index].start for index in order]
        self._back = _places_of(order, counts)

    def keys(self) -> Float[Tensor, "tokens d_in"]:
        """The inputs of the present ``fc2`` at all tokens looked at, in the order of the stretches."""
        return self._gather([part.looked_at(self._inside(part).keys.stream) for part in self._parts])

    def stream_behind(self, last: int, weights: Weights) -> Float[Tensor, "tokens width"]:
        """The stream behind block ``last``, reached with these weights; the walk stays where it is."""
        return self._gather([self._behind(part, last, weights) for part in self._parts])

    def stream(self) -> Float[Tensor, "tokens width"]:
        """The stream behind the blocks gone through so far."""
        return self._gather([part.looked_at(part.state.stream) for part in self._parts])

    def step(self, weights: Weights) -> None:
        """Go through the present block with these weights."""
        for part in self._parts:
            part.state = self._out(self.layer, self._inside(part), weights)
            part.inside = None
        self.layer += 1

    @torch.no_grad()
    def _behind(self, part: _Part, last: int, weights: Weights) -> Tensor:
        if self.layer > last:
            return part.looked_at(part.state.stream)
        state = self._out(self.layer, self._inside(part), weights)
        for layer in range(self.layer + 1, last + 1):
            if layer == last and part.one_each:
                return self._asked(layer, part, state, weights)
            state = self._out(layer, self._into(layer, state), weights)
        return part.looked_at(state.stream)

    def _asked(self, layer: int, part: _Part, state: _State, weights: Weights) -> Tensor:
        """Behind a block, but of the tokens looked at alone: the others are only read there."""
        block = self.stack.blocks[layer]
        past = _past(block, state)
        middle = after_attention(block, state.stream, past=past, queries=part.places)[:, 0]
        return middle + self._fc2(layer, mlp_keys(block, middle), weights)

    @torch.no_grad()
    def _inside(self, part: _Part) -> _Inside:
        if part.inside is None:
            part.inside = self._into(self.layer, part.state)
        return part.inside

    def _into(self, layer: int, state: _State) -> _Inside:
        block = self.stack.blocks[layer]
        stream = after_attention(block, state.stream, past=_past(block, state))
        common = after_attention(block, state.common) if state.common.shape[1] else state.common
        keys = _State(common=mlp_keys(block, common), stream=mlp_keys(block, stream))
        return _Inside(middle=_State(common=common, stream=stream), keys=keys)

    @torch.no_grad()
    def _out(self, layer: int, inside: _Inside, weights: Weights) -> _State:
        return _State(
            common=inside.middle.common + self._fc2(layer, inside.keys.common, weights),
            stream=inside.middle.stream + self._fc2(layer, inside.keys.stream, weights),
        )

    def _fc2(self, layer: int, keys: Tensor, weights: Weights) -> Tensor:
        fc2 = self.stack.blocks[layer].mlp.fc2
        return linear(keys, weights.get(layer, fc2.weight), fc2.bias)

    def _part(self, group: list[Stretch], early: int) -> _Part:
        width = max(len(stretch.ids) for stretch in group)
        # any id will do behind a prompt's end: nothing before it reads it
        ids = torch.tensor([[*stretch.ids, *[0] * (width - len(stretch.ids))] for stretch in group])
        looked = [(row, place) for row, one in enumerate(group) for place in range(one.start, one.end)]
        rows, places = torch.tensor(looked, device=self.stack.device).T
        stream = self.stack.embed(ids.to(self.stack.device))
        return _Part(
            state=_State(common=stream[:1, :early], stream=stream[:, early:]),
            rows=rows,
            places=places - early,
            one_each=all(one.end - one.start == 1 for one in group),
        )

    def _gather(self, found: list[Tensor]) -> Tensor:
        return torch.cat(found).cpu()[self._back]


def _past(block: object, state: _State) -> Past | None:
    """What a block's attention reads of the common beginning, the same for every prompt."""
    if state.common.shape[1] == 0:
        return None
    past, prompts = past_of(block, state.common), len(state.stream)
    return Past(keys=past.keys.expand(prompts, -1, -1, -1), values=past.values.expand(prompts, -1, -1, -1))


def _groups(stretches: Sequence[Stretch]) -> Iterator[tuple[list[int], int]]:
    """Batches of prompts that begin alike, each with the tokens that they have in common."""
    begins = _beginnings(stretches)
    order = sorted(range(len(stretches)), key=lambda index: (begins[index], len(stretches[index].ids)))
    group: list[int] = []
    for index in order:  # ascending lengths within a beginning: the newest is the longest
        early, size = len(begins[index]), len(stretches[index].ids)
        alike = bool(group) and begins[group[0]] == begins[index]
        if group and (not alike or (len(group) + 1) * (size - early) > _TOKENS_AT_ONCE):
            yield group, len(begins[group[0]])
            group = []
        group.append(index)
    if group:
        yield group, len(begins[group[0]])


def _beginnings(stretches: Sequence[Stretch]) -> list[tuple[int, ...]]:
    """For each prompt the longest beginning, before what is looked at, that many prompts share."""
    counts = Counter(one.ids[:size] for one in stretches for size in range(1, one.start + 1))
    return [
        next(
            (one.ids[:size] for size in range(one.start, 0, -1) if counts[one.ids[:size]] >= _WORTH_SHARING),
            (),
        )
        for one in stretches
    ]


def _places_of(order: list[int], counts: list[int]) -> Tensor:
    """For each token of interest, in the order of the stretches, its place in the sorted order."""
    starts, total = {}, 0
    for index, count in zip(order, counts, strict=True):
        starts[index] = range(total, total + count)
        total += count
    return torch.tensor([place for index in sorted(starts) for place in starts[index]])
