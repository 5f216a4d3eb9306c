"""The text encoders of a checkpoint as an audit reads them, one or both of SDXL's."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery.anatomy import TextStack, Tokenizer, text_stack
from surgery.checkpoint import Checkpoint
from surgery.names import TEXT_ENCODERS, canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A text encoder, and the component that it is."""

    component: str
    encoder: Any
    stack: TextStack

    @classmethod
    def of(cls, encoder: Any, component: str = TEXT_ENCODERS[0]) -> "Tower":
        """The tower of an encoder, which it holds and does not copy."""
        return cls(component=component, encoder=encoder, stack=text_stack(encoder))

    def linear(self) -> dict[str, nn.Module]:
        """The linear layers of all blocks, by the canonical name of their weight."""
        return {
            canonical(self.component, f"{self.stack.path}.{number}.{path}.weight"): module
            for number, block in enumerate(self.stack.blocks)
            for path, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """Every text encoder of a checkpoint; they read the same token numbers."""

    every: tuple[Tower, ...]
    tokenizer: Tokenizer

    @property
    def width(self) -> int:
        """Of what cross-attention reads."""
        return sum(tower.stack.width for tower in self.every)

    @property
    def positions(self) -> int:
        """The longest prompt in tokens."""
        return min(tower.stack.positions for tower in self.every)


def load_towers(base: Checkpoint) -> Towers:
    """The text encoders of a checkpoint in float32.

    Raises:
        CheckpointError: when one of them or the tokenizer cannot be loaded.
    """
    from surgery.checkpoint.components import load_text_encoder, load_tokenizer

    there = {name.partition("/")[0] for name in base.tensors}
    towers = [
        Tower.of(load_text_encoder(base.path, component=name), name)
        for name in TEXT_ENCODERS
        if name in there
    ]
    return Towers(every=tuple(towers), tokenizer=load_tokenizer(base.path))
