"""The text encoder behind the insertion point: only what an offset can reach is computed again.

An offset is added to the stream of one token behind one block. Blocks before it do not change, and in a
causal encoder neither do tokens before the subject. So a step runs the few blocks behind, from the first
subject token of the batch on, against kept keys and values; for the pooled feature the last block asks for
one token only.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surgery.anatomy import Past, TextStack, after_block, past_of, through_blocks
from surgery.methods.emcid.models import Tower


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Prompts as rows of one tensor.

    ``subject`` is each row's steered position, ``eos`` that of its pooled feature. ``real`` marks tokens that
    are no padding where the encoder is to leave padding out (as released), None where it reads it.
    """

    ids: Int[Tensor, "prompts tokens"]
    subject: Int[Tensor, "prompts"]
    eos: Int[Tensor, "prompts"]
    real: Bool[Tensor, "prompts tokens"] | None = None

    def to(self, device: torch.device) -> "Prompts":
        """The same on another device."""
        return Prompts(
            ids=self.ids.to(device),
            subject=self.subject.to(device),
            eos=self.eos.to(device),
            real=None if self.real is None else self.real.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What is read of prompts: the features of all tokens, and the pooled one."""

    features: Float[Tensor, "prompts tokens width"]
    pooled: Float[Tensor, "prompts pooled"]


@torch.no_grad()
def read(tower: Tower, prompts: Prompts) -> Read:
    """What the U-Net and the pooled losses read of whole prompts in one text encoder."""
    stack = tower.stack
    if not tower.behind:
        features = encode(stack, prompts)
        return Read(features=features, pooled=_projected(tower.projection, pooled(features, prompts.eos)))
    stream = through_blocks(stack.blocks[:-1], stack.embed(prompts.ids), prompts.real)
    last = after_block(stack.blocks[-1], stream, mask=prompts.real, queries=prompts.eos)
    ends = torch.as_tensor(stack.final_norm(last))[:, 0]
    return Read(features=stream, pooled=_projected(tower.projection, ends))


def _projected(projection: Any, ends: Tensor) -> Tensor:
    return ends if projection is None else torch.as_tensor(projection(ends))


@torch.no_grad()
def encode(stack: TextStack, prompts: Prompts) -> Float[Tensor, "prompts tokens width"]:
    """The encoder's features of whole prompts, as its ``forward`` gives them."""
    stream = through_blocks(stack.blocks, stack.embed(prompts.ids), prompts.real)
    features: Tensor = stack.final_norm(stream)
    return features


def pooled(
    features: Float[Tensor, "prompts tokens width"], eos: Int[Tensor, "prompts"]
) -> Float[Tensor, "prompts width"]:
    """Each prompt's feature at its end token."""
    return features[torch.arange(len(eos), device=eos.device), eos]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The blocks behind the insertion point with all that an offset leaves as it is.

    ``stream`` holds the tokens from ``first`` on, entering the first of ``blocks``; ``before`` the finished
    features of the tokens before them, ``pasts`` their keys and values in each block. The last ``behind``
    blocks lie behind what the U-Net reads of the tokens: only the pooled feature goes through them, and where
    there are any, no final norm belongs to the others.
    """

    blocks: tuple[Any, ...]
    final_norm: Any
    first: int
    stream: Float[Tensor, "prompts late width"]
    before: Float[Tensor, "prompts early width"]
    pasts: tuple[Past, ...]
    prompts: Prompts
    behind: int = 0
    projection: Any = None

    @property
    def source(self) -> Float[Tensor, "prompts width"]:
        """The unedited stream at each row's subject: what an offset is added to."""
        return pooled(self.stream, self.prompts.subject - self.first)

    def features(self, offsets: Float[Tensor, "prompts width"]) -> Float[Tensor, "prompts tokens width"]:
        """The features of all tokens with each row's offset added to its subject."""
        return self._joined(self._read_stream(offsets))

    def pooled(self, offsets: Float[Tensor, "prompts width"]) -> Float[Tensor, "prompts pooled"]:
        """The pooled features alone: tokens behind the end are left out, the last block asks for one."""
        stream, mask = self._to_the_ends(self._steered(offsets))
        for block, past in zip(self.blocks[:-1], self.pasts, strict=False):
            stream = after_block(block, stream, past=past, mask=mask)
        return self._ends(stream, mask)

    def both(self, offsets: Float[Tensor, "prompts width"]) -> Read:
        """The features of all tokens and the pooled ones, from one pass."""
        stream = self._read_stream(offsets)
        features = self._joined(stream)
        if self.behind:
            return Read(features=features, pooled=self._ends(*self._to_the_ends(stream)))
        ends = pooled(features, self.prompts.eos)
        return Read(features=features, pooled=_projected(self.projection, ends))

    def _read_stream(self, offsets: Tensor) -> Tensor:
        """The stream of the late tokens where the U-Net reads it."""
        stream = self._steered(offsets)
        for block, past in zip(self.blocks[: len(self.blocks) - self.behind], self.pasts, strict=False):
            stream = after_block(block, stream, past=past, mask=self.prompts.real)
        return stream

    def _joined(self, stream: Tensor) -> Tensor:
        late = stream if self.behind else torch.as_tensor(self.final_norm(stream))
        return torch.cat([self.before, late], 1)

    def _to_the_ends(self, stream: Tensor) -> tuple[Tensor, Tensor | None]:
        """The stream and the mask as far as the last end token."""
        length = int((self.prompts.eos - self.first).max()) + 1
        mask = self.prompts.real
        return stream[:, :length], None if mask is None else mask[:, : self.first + length]

    def _ends(self, stream: Tensor, mask: Tensor | None) -> Tensor:
        """The pooled feature of a stream before the last block."""
        eos = self.prompts.eos - self.first
        last = after_block(self.blocks[-1], stream, past=self.pasts[-1], mask=mask, queries=eos)
        return _projected(self.projection, torch.as_tensor(self.final_norm(last))[:, 0])

    def select(self, rows: Int[Tensor, "chosen"]) -> "Tail":
        """The tail of some of the prompts."""
        prompts = self.prompts
        return Tail(
            blocks=self.blocks,
            final_norm=self.final_norm,
            first=self.first,
            stream=self.stream[rows],
            before=self.before[rows],
            pasts=tuple(Past(keys=past.keys[rows], values=past.values[rows]) for past in self.pasts),
            prompts=Prompts(
                ids=prompts.ids[rows],
                subject=prompts.subject[rows],
                eos=prompts.eos[rows],
                real=None if prompts.real is None else prompts.real[rows],
            ),
            behind=self.behind,
            projection=self.projection,
        )

    def _steered(self, offsets: Tensor) -> Tensor:
        places = self.prompts.subject - self.first
        chosen = torch.arange(self.stream.shape[1], device=places.device)[None] == places[:, None]
        return self.stream + chosen[..., None] * offsets[:, None]


@torch.no_grad()
def tail_of(
    stack: TextStack, prompts: Prompts, layer: int, *, behind: int = 0, projection: Any = None
) -> Tail:
    """The tail behind block ``layer`` for fixed prompts; everything before runs once, here.

    ``behind`` and ``projection`` are those of the ``Tower``.
    """
    stream = through_blocks(stack.blocks[: layer + 1], stack.embed(prompts.ids), prompts.real)
    first = int(prompts.subject.min())
    before, pasts = stream[:, :first], []
    early = None if prompts.real is None else prompts.real[:, :first]
    finished = before
    for number, block in enumerate(stack.blocks[layer + 1 :], start=layer + 1):
        pasts.append(past_of(block, before))
        before = after_block(block, before, mask=early)
        if number < len(stack.blocks) - behind:
            finished = before
    return Tail(
        blocks=stack.blocks[layer + 1 :],
        final_norm=stack.final_norm,
        first=first,
        stream=stream[:, first:],
        before=finished if behind else stack.final_norm(finished),
        pasts=tuple(pasts),
        prompts=prompts,
        behind=behind,
        projection=projection,
    )
