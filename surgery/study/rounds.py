"""Pictures of debiased phrases counted by group, each phrase stored by itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

from surgery.diffusion import at_once, device_and_dtype, halving, in_order
from surgery.evaluate import Painter, Sampling, Wanted, counted, sorted_into
from surgery.evaluate.pictures import Pictures
from surgery.judge import Judge, Trait
from surgery.judge.labels import Axis
from surgery.methods import Group, Replacement
from surgery.progress import Bar
from surgery.record import JSON
from surgery.store import Store


def wanted_of(replacement: Replacement) -> tuple[Wanted, ...]:
    """The groups of a debiased phrase as a judge looks for them, and what asks for each outright."""
    return tuple(
        Wanted(
            traits=traits_of(group),
            share=group.share,
            explicit=replacement.asked_as.replace("{}", group.phrase),
        )
        for group in replacement.groups
    )


def traits_of(group: Group) -> tuple[Trait, ...]:
    """What pictures of a group show; whether a judge knows it is for ``group_faults`` to say."""
    return tuple(Trait(value, cast(Axis, attribute)) for attribute, value in group.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """Draws phrases with one set of weights and counts the groups they show.

    ``weights`` is the digest of all that the pictures depend on in ``models``.
    """

    models: Any
    weights: str
    sampling: Sampling
    judge: Judge
    store: Store

    def counts(
        self, wanted: Mapping[str, Sequence[Wanted]], shown: Bar
    ) -> dict[str, tuple[tuple[int, ...], int]]:
        """For each phrase the pictures of each of its groups, and those of none of them."""
        phrases = list(wanted)

        def one(phrase: str) -> tuple[tuple[int, ...], int]:
            most = min(self.sampling.batch, self.sampling.samples * len(self.sampling.templates))
            data = self._counted(phrase, wanted[phrase], most)
            return tuple(data["counts"]), int(data["others"])

        workers = at_once(self.models.unet, len(phrases))
        found = {}
        for phrase, counts in zip(phrases, in_order(one, phrases, workers), strict=True):
            found[phrase] = counts
            shown.update(1)
        return found

    def _counted(self, phrase: str, wanted: Sequence[Wanted], most: int) -> Mapping[str, Any]:
        """Counts from the store, or of pictures that are drawn now, ``most`` at a time while memory lasts."""

        def found_or_drawn(batch: int) -> Callable[[], Mapping[str, Any]]:
            # each size of batch has a key of its own, since regrouping changes the last bits
            sampling = replace(self.sampling, batch=batch)
            key = Store.key(self._meaning(phrase, wanted, sampling))
            held = self.store.get(key)
            if held is not None:
                return lambda: held.data
            pictures = Painter(models=self.models, sampling=sampling).unhalved(phrase, sampling.templates)
            return lambda: self.store.put(key, {}, self._judged(pictures, wanted)).data

        # the judge looks behind the halving: memory that it lacks is no matter of pictures
        return halving(most, found_or_drawn)()

    def _judged(self, pictures: Pictures, wanted: Sequence[Wanted]) -> dict[str, JSON]:
        counts, others = counted(wanted, sorted_into(wanted, self.judge.score(pictures)))
        return {"counts": list(counts), "others": others}

    def _meaning(self, phrase: str, wanted: Sequence[Wanted], sampling: Sampling) -> dict[str, JSON]:
        device, dtype = device_and_dtype(self.models.unet)
        return {
            "result": "study.groups",
            "version": 1,
            "weights": self.weights,
            "phrase": phrase,
            "groups": [[[trait.axis, trait.name] for trait in group.traits] for group in wanted],
            "sampling": {**asdict(sampling), "templates": list(sampling.templates)},
            "judge": [self.judge.name, dict(self.judge.accuracy)],
            "dtype": str(dtype),
            "device": device.type,
            "threads": torch.get_num_threads(),
        }
