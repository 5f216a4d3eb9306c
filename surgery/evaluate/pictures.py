"""Pictures of phrases with fixed seeds, kept in the store so that runs share them and resume."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from surgery.anatomy import settings_text
from surgery.diffusion import Models, device_and_dtype, halving, sample
from surgery.store import Store

Pictures = UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How many pictures are drawn for a phrase, and how.

    The pictures of one phrase are drawn by themselves, so that they do not change with the company they are
    in. A small U-Net draws several phrases at once, one thread each.

    Attributes:
        templates: Prompts with one ``{}`` for the phrase.
        samples: Pictures of each prompt.
        seed: Each picture's own seed follows from this, its prompt and its number.
        steps: Steps of the checkpoint's scheduler.
        guidance: Guidance scale.
        batch: Pictures at a time, at most.
        clip_skip: Text blocks left out at the end; 1 is what many people know as clip-skip 2.
        in_pieces: Whether prompts of more than 77 tokens are read whole, in pieces.
    """

    templates: tuple[str, ...]
    samples: int = 2
    seed: int = 0
    steps: int = 25
    guidance: float = 5.0
    batch: int = 16
    clip_skip: int = 0
    in_pieces: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Where pictures are kept, and the names of the weights that drew them.

    Attributes:
        store: Results on disk.
        before: Digest of the unedited checkpoint.
        after: Digest that names the edited weights (base, patch and strength).
    """

    store: Store
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Painter:
    """Draws the pictures of a phrase with one set of weights, or finds them in the store."""

    models: Models
    sampling: Sampling
    store: Store | None = None
    weights: str = ""

    def pictures(self, phrase: str, templates: Sequence[str]) -> Pictures:
        """``samples`` pictures for each template, template by template."""
        prompts, seeds = self._asked(phrase, templates)
        most = min(self.sampling.batch, len(prompts))
        return halving(most, lambda batch: self._kept(prompts, seeds, batch))

    def unhalved(self, phrase: str, templates: Sequence[str]) -> Pictures:
        """The same, for callers that halve the batch themselves: when memory runs out, that is an error."""
        prompts, seeds = self._asked(phrase, templates)
        return self._kept(prompts, seeds, min(self.sampling.batch, len(prompts)))

    def _asked(self, phrase: str, templates: Sequence[str]) -> tuple[list[str], list[int]]:
        prompts = [t.replace("{}", phrase) for t in templates for _ in range(self.sampling.samples)]
        numbers = list(range(self.sampling.samples)) * len(templates)
        seeds = [own_seed(self.sampling.seed, p, number) for p, number in zip(prompts, numbers, strict=True)]
        return prompts, seeds

    def _kept(self, prompts: list[str], seeds: list[int], batch: int) -> Pictures:
        # each size of batch has a key of its own, since regrouping changes the last bits
        if self.store is None:
            return self._drawn(prompts, seeds, batch)
        key = self.store.key(self._meaning(prompts, seeds, batch))
        stored = self.store.remember(
            key,
            lambda: (
                {"pictures": torch.from_numpy(self._drawn(prompts, seeds, batch))},
                {"prompts": prompts},
            ),
        )
        return np.asarray(stored.tensors()["pictures"])

    def _drawn(self, prompts: list[str], seeds: list[int], batch: int) -> Pictures:
        knobs = self.sampling
        return sample(
            self.models,
            prompts,
            seeds,
            steps=knobs.steps,
            guidance=knobs.guidance,
            batch=batch,
            clip_skip=knobs.clip_skip,
            in_pieces=knobs.in_pieces,
            progress=False,
            halve=False,
        )

    def _meaning(self, prompts: list[str], seeds: list[int], batch: int) -> dict[str, Any]:
        device, dtype = device_and_dtype(self.models.unet)
        unusual = {"clip_skip": self.sampling.clip_skip, "in_pieces": self.sampling.in_pieces}
        return {
            **{name: value for name, value in unusual.items() if value},
            "result": "evaluate.pictures",
            "version": 1,
            "weights": self.weights,
            "prompts": prompts,
            "seeds": seeds,
            "steps": self.sampling.steps,
            "guidance": self.sampling.guidance,
            "batch": batch,
            "scheduler": settings_text(self.models.scheduler),
            "dtype": str(dtype),
            "device": device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def own_seed(seed: int, prompt: str, number: int) -> int:
    """A seed of 32 bits for one picture; it depends on nothing else that is drawn."""
    text = json.dumps([seed, prompt, number])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
