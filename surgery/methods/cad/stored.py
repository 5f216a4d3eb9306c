"""Attributions in a store: keys that name all they depend on, and sums that a killed run goes on from."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from surgery.anatomy import settings_text, weights_digest
from surgery.diffusion import Models, device_and_dtype
from surgery.methods.cad.attribution import Attribution, add_samples, attribute, attribution_of
from surgery.methods.cad.gradients import Grading, Sums
from surgery.methods.cad.nouns import CadConcept, Measured, Pairs
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.settings import AttributionSettings, as_json
from surgery.record import JSON, file_digest
from surgery.store import Store

EVERY_S: Final = 60.0
"""Large sums are written no more often: a killed run loses so much."""
_FIELDS: Final = ("noisy", "timesteps", "target", "prompt", "sample")
SMALL_BYTES: Final = 50_000_000
"""Smaller ones are written after every path."""


class Keys:
    """What results of one call are named by; the models' digests are made once."""

    def __init__(self, models: Models, grading: Grading, batch: int) -> None:
        self._models, self._grading, self._batch = models, grading, batch
        self._known: dict[tuple[CadConcept, AttributionSettings], dict[str, JSON]] = {}
        self.among: dict[CadConcept, tuple[CadConcept, ...]] = {}
        """Concepts that draw their paths in one batch with others, which changes last bits."""

    @cached_property
    def _common(self) -> dict[str, JSON]:
        models: Any = self._models
        device, dtype = device_and_dtype(models.unet)
        found: dict[str, JSON] = {
            "unet": weights_digest(models.unet),
            "text_encoder": weights_digest(models.text_encoder),
            "vae": weights_digest(models.vae),
            "scheduler": settings_text(models.scheduler),
            "names": list(self._grading.names),
            "micro_batch": self._grading.micro_batch,
            "checkpointing": self._grading.checkpointing,
            "batch": self._batch,
            "dtype": str(dtype),
            "device": device.type,
            "threads": torch.get_num_threads(),
        }
        second = getattr(models, "text_encoder_2", None)
        if second is not None:
            found["text_encoder_2"] = weights_digest(second)
        return found

    def concept(self, concept: CadConcept, settings: AttributionSettings) -> dict[str, JSON]:
        """All that one concept's attribution depends on; of the batches, too, which change last bits."""
        known = (concept, settings)
        if known not in self._known:
            self._known[known] = self._concept(concept, settings)
        return self._known[known]

    def _concept(self, concept: CadConcept, settings: AttributionSettings) -> dict[str, JSON]:
        return {
            **self._common,
            "attribution": as_json(settings),
            "prompts": list(concept.prompts),
            "images": [file_digest(path) for path in concept.images],
            "seed": concept.seed,
            **({"among": [_told(one) for one in self.among[concept]]} if concept in self.among else {}),
        }


def _told(concept: CadConcept) -> list[JSON]:
    return [concept.name, concept.seed, *concept.prompts]


class Shelf:
    """Attributions of one call; what is half done lies in the store, at most some seconds of work behind.

    Only the newest sums are kept, and none when the list made of them is safe (``clear``): they are as large
    as the weights.
    """

    def __init__(self, store: Store | None, models: Models, grading: Grading, batch: int) -> None:
        self.keys = Keys(models, grading, batch)
        self._store, self._models, self._grading, self._batch = store, models, grading, batch
        self._held: dict[tuple[tuple[CadConcept, ...], AttributionSettings, str], list[Pairs]] = {}

    def share_batches(self, concepts: Sequence[CadConcept], settings: AttributionSettings) -> None:
        """Let concepts draw their paths together where those of several fill one batch of the sampler."""
        size = self._batch // settings.paths
        for start in range(0, len(concepts), size) if size > 1 and settings.objective == "base_gap" else ():
            group = tuple(concepts[start : start + size])
            self.keys.among.update(dict.fromkeys(group, group) if len(group) > 1 else {})

    def pairs(
        self, concept: CadConcept, settings: AttributionSettings, purpose: str = "attribution"
    ) -> Pairs:
        """The concept's noisy pictures, drawn once; with others', where it shares the sampler's batches."""
        group = self.keys.among.get(concept, (concept,)) if purpose == "attribution" else (concept,)
        which = (group, settings, purpose)
        if which not in self._held:
            self._held[which] = self._drawn(*which)
        return self._held[which][group.index(concept)]

    def _drawn(
        self, group: tuple[CadConcept, ...], settings: AttributionSettings, purpose: str
    ) -> list[Pairs]:
        store = self._store
        if store is None:
            return pairs_of(self._models, group, settings, purpose=purpose, batch=self._batch)
        told: list[JSON] = [dict(self.keys.concept(one, settings)) for one in group]
        meaning: dict[str, JSON] = {"what": "cad pairs", "purpose": purpose, "concepts": told}
        parts: list[str] = []

        def keep(part: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
            # the whole's lock is held
            parts.append(store.key({**meaning, "part": part}))
            held = store.get(parts[-1]) or store.put(parts[-1], make(), {})
            return held.tensors()

        def compute() -> tuple[dict[str, Tensor], dict[str, JSON]]:
            found = pairs_of(self._models, group, settings, purpose=purpose, batch=self._batch, keep=keep)
            tensors = {
                f"{number}/{name}": getattr(one, name) for number, one in enumerate(found) for name in _FIELDS
            }
            return tensors, {"towards": found[0].towards}

        held = store.remember(store.key(meaning), compute)
        for key in parts:
            store.drop(key)  # the whole is safe
        tensors = held.tensors()
        return [
            Pairs(
                **{name: tensors[f"{number}/{name}"] for name in _FIELDS},
                prompts=one.prompts,
                towards=held.data["towards"],
            )
            for number, one in enumerate(group)
        ]

    def attribution(self, concept: CadConcept, settings: AttributionSettings) -> Attribution:
        """The concept's attribution, gone on with where a stopped run left it."""
        pairs, store = self.pairs(concept, settings), self._store
        if store is None:
            return attribute(self._models, pairs, self._grading, standard_errors=settings.standard_errors)
        numbers = pairs.sample.unique().tolist()
        done, values = self._newest(store, concept, settings, len(numbers))
        left = torch.tensor(numbers[done.samples :], dtype=pairs.sample.dtype)
        rest = pairs.select(torch.isin(pairs.sample, left))
        seen, kept, written = values, done.samples, time.monotonic()
        for measured in add_samples(self._models, rest, self._grading, done):
            seen.append(measured.values)
            last = done.samples == len(numbers)
            if last or not _large(done) or time.monotonic() - written >= EVERY_S:
                self._keep(store, concept, settings, done, seen, kept)
                kept, written = done.samples, time.monotonic()
        whole = Measured(values=torch.cat(seen), timesteps=pairs.timesteps, sample=pairs.sample)
        return attribution_of(self._models, self._grading, done, whole, len(pairs))

    def _keep(
        self,
        store: Store,
        concept: CadConcept,
        settings: AttributionSettings,
        sums: Sums,
        seen: list[Tensor],
        before: int,
    ) -> None:
        """Put the sums into the store in the place of the earlier ones."""
        tensors = {f"gradient/{name}": one for name, one in sums.gradients.items()}
        tensors |= {f"difference/{name}": one for name, one in (sums.differences or {}).items()}
        tensors |= {f"last/{name}": one for name, one in sums.last.items()}
        key = self._key(store, concept, settings, sums.samples)
        store.put(key, tensors, {"values": torch.cat(seen).tolist()})
        if before:
            store.drop(self._key(store, concept, settings, before))

    def clear(self, concept: CadConcept, settings: AttributionSettings) -> None:
        """Throw the concept's sums away."""
        if self._store is not None:
            for number in range(1, max(settings.samples, len(concept.images)) + 1):
                self._store.drop(self._key(self._store, concept, settings, number))

    def _newest(
        self, store: Store, concept: CadConcept, settings: AttributionSettings, most: int
    ) -> tuple[Sums, list[Tensor]]:
        for number in range(most, 0, -1):
            held = store.get(self._key(store, concept, settings, number))
            if held is not None:
                tensors = held.tensors()
                parts = {
                    kind: {
                        name.partition("/")[2]: one for name, one in tensors.items() if name.startswith(kind)
                    }
                    for kind in ("gradient", "difference", "last")
                }
                sums = Sums(
                    gradients=parts["gradient"],
                    differences=parts["difference"] if settings.standard_errors else None,
                    last=parts["last"],
                    samples=number,
                )
                return sums, [torch.tensor(held.data["values"])]
        return Sums(differences={} if settings.standard_errors else None), []

    def _key(self, store: Store, concept: CadConcept, settings: AttributionSettings, number: int) -> str:
        meaning: dict[str, JSON] = {"what": "cad sums", "samples": number}
        if settings.standard_errors:
            meaning["errors"] = 2  # goes up when they are made otherwise
        return store.key({**meaning, "concept": self.keys.concept(concept, settings)})


def _large(sums: Sums) -> bool:
    return sum(one.nbytes for one in sums.gradients.values()) > SMALL_BYTES
