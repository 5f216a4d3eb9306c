"""Stage I: one offset per concept, learned in batches that are stored whole."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surgery import progress
from surgery.anatomy import frozen
from surgery.diffusion import note_halving, out_of_memory, resident
from surgery.errors import MethodError, raise_all
from surgery.methods.emcid.descent import Descent, descend
from surgery.methods.emcid.models import EmcidModels, models_digest
from surgery.methods.emcid.nouns import Concept, warning
from surgery.methods.emcid.problem import problem_of
from surgery.methods.emcid.settings import OffsetSettings, as_json
from surgery.record import JSON, Finding, Severity, file_digest
from surgery.store import Store

# Settings that decide what is done with a result, not what it is.
_NO_MEANING = ("batch", "keep_unconverged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What Stage I found for one concept.

    ``offset`` is to be added to the stream behind block ``layer`` at the subject; ``source`` is the
    unedited stream there for the first prompt, so that v* = source + offset. ``first_loss`` and
    ``last_loss`` are means over the first and last window of steps. ``second`` is the same for SDXL's second
    text encoder; both were learned together.
    """

    concept: Concept
    offset: Float[Tensor, "width"]
    source: Float[Tensor, "width"]
    layer: int
    encoder_digest: str
    steps: int
    first_loss: float
    last_loss: float
    settled: bool
    clamped: bool
    finite: bool
    second: "Target | None" = None

    @property
    def converged(self) -> bool:
        """Whether the loss became smaller at all."""
        return self.last_loss < self.first_loss or self.first_loss == 0.0


def optimise_offsets(
    models: EmcidModels,
    concepts: Sequence[Concept],
    settings: OffsetSettings,
    *,
    layer: int = 10,
    layer_2: int | None = None,
    store: Store | None = None,
) -> list[Target]:
    """The offset of each concept, in their order.

    Concepts are worked on in batches of ``settings.batch`` in the given order. A batch is stored whole
    under a key of all that its bits depend on, so a killed run loses one batch; out of memory, a batch is
    split in two, each with a key of its own.

    Args:
        models: The unedited models.
        concepts: What ``prepare`` made of the edits.
        settings: Stage I.
        layer: The block behind which the offset is added: the last one that Stage II edits.
        layer_2: The same of SDXL's second text encoder.
        store: Where batches are kept.

    Raises:
        MethodError: when a model is missing that the mode needs, or a single concept does not fit into
        memory. ConceptError: when a picture cannot be read.

    Source: 1.2 to 1.4 of the study.
    """
    check_models(models, concepts, settings)
    pictures = settings.mode != "text" and any(_has_picture(concept, settings) for concept in concepts)
    with_unet = settings.mode != "text" or settings.metric == "cross_attention"
    digests = models_digest(models, unet=with_unet, pictures=pictures)
    work = _Work(models=models, settings=settings, layer=layer, layer_2=layer_2, store=store, digests=digests)
    batches = [concepts[start : start + settings.batch] for start in range(0, len(concepts), settings.batch)]
    targets: list[Target] = []
    with frozen(models.text_encoder, models.text_encoder_2, models.unet, models.vae):
        for batch in progress.track(batches, "concepts", unit="batch"):
            targets += work.batch(tuple(batch))
    return targets


def check_models(models: EmcidModels, concepts: Sequence[Concept], settings: OffsetSettings) -> None:
    """Refuse a mode whose models or pictures are not there, all faults at once.

    Raises:
        MethodError: with everything that is missing.
    """
    faults = []
    by_noise = settings.mode != "text"
    if by_noise or settings.metric == "cross_attention":
        what = f"mode {settings.mode!r}" if by_noise else "metric 'cross_attention'"
        faults += _missing(models, ("unet", "scheduler"), what)
    if not by_noise:
        faults += [
            f"{concept.label}: only pictures say what to draw, and mode 'text' does not look at any. "
            "Use mode 'noise' or 'both', or give a destination."
            for concept in concepts
            if concept.goals is None
        ]
        faults += [
            f"{concept.label}: it has pictures, and mode 'text' does not look at any. Use mode 'noise' or "
            "'both', or leave them out."
            for concept in concepts
            if concept.goals is not None and concept.edit.images
        ]
        if settings.text_weight == 0:
            faults.append("mode 'text' with text_weight 0 has nothing to learn from; give it a weight.")
    else:
        if any(_has_picture(concept, settings) for concept in concepts):
            faults += _missing(models, ("vae",), "a noise loss on pictures")
        faults += [
            f"{concept.label}: offsets.images is 'given', but the edit has no pictures. Give it some."
            for concept in concepts
            if settings.images == "given" and not concept.edit.images
        ]
    raise_all(MethodError, faults)


def _missing(models: EmcidModels, parts: tuple[str, ...], what: str) -> list[str]:
    absent = [part for part in parts if getattr(models, part) is None]
    return [f"{what} needs the {part}; none was given. Load the whole pipeline." for part in absent]


def _has_picture(concept: Concept, settings: OffsetSettings) -> bool:
    return bool(concept.edit.images) or settings.images != "none"


def findings_of(targets: Sequence[Target], *, left_out: bool = True) -> list[Finding]:
    """What was noticed while the offsets were learned; ``left_out`` says what happens where none was."""
    found = []
    for target in targets:
        label = target.concept.label
        if not target.finite:
            message = "its loss became NaN or infinite; the concept is left out. Lower the learning rate."
            found.append(Finding(kind="not-finite", subject=label, message=message, severity="fault"))
        elif not target.converged:
            message = f"its loss did not fall ({target.first_loss:.3g} to {target.last_loss:.3g})"
            message += "; the concept is left out. " if left_out else ". "
            found.append(warning("not-converged", label, message + "Give it more steps or other templates."))
        elif target.clamped:
            message = "its offset ended at the largest length allowed"
            message += ". " if target.settled else " before its loss stood still. "
            message += "A larger offsets.clamp may do more."
            severity: Severity = "info" if target.settled else "warning"
            found.append(Finding(kind="clamped", subject=label, message=message, severity=severity))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    models: EmcidModels
    settings: OffsetSettings
    layer: int
    layer_2: int | None
    store: Store | None
    digests: Mapping[str, JSON]

    def batch(self, concepts: tuple[Concept, ...]) -> list[Target]:
        try:
            return self._stored(concepts)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(concepts) == 1:
                raise MethodError(
                    f"{concepts[0].label} alone does not fit into memory; expected room for all of its "
                    "prompts and pictures. Use fewer of them, fewer offsets.samples, or another device."
                ) from error
        half = len(concepts) // 2
        note_halving("concepts", len(concepts))
        return self.batch(concepts[:half]) + self.batch(concepts[half:])

    def _stored(self, concepts: tuple[Concept, ...]) -> list[Target]:
        if self.store is None:
            tensors = self._compute(concepts)
        else:
            key = self.store.key(self._meaning(concepts))
            tensors = self.store.remember(key, lambda: (self._compute(concepts), {})).tensors()
        return [self._target(tensors, row, concept) for row, concept in enumerate(concepts)]

    def _target(self, tensors: Mapping[str, Any], row: int, concept: Concept) -> Target:
        widths = [tower.stack.width for tower in self.models.towers]
        layers = (self.layer,) if self.layer_2 is None else (self.layer_2, self.layer)
        offsets, sources = (tensors[name][row].split(widths) for name in ("offset", "source"))
        found: Target | None = None
        places = zip(reversed(self.models.towers), layers, reversed(offsets), reversed(sources), strict=True)
        for tower, layer, offset, source in places:
            digest = str(self.digests[tower.component])
            found = _target(tensors, row, concept, layer, digest, offset, source, found)
        assert found is not None  # there is a text encoder
        return found

    def _compute(self, concepts: tuple[Concept, ...]) -> dict[str, Tensor]:
        by_noise = self.settings.mode != "text"
        with resident(self.models.unet) if by_noise else nullcontext():
            problem = problem_of(self.models, concepts, self.settings, self.layer, self.layer_2)
            descent = descend(problem.losses, problem.source, self.settings, problem.cycle, problem.widths)
        return {"source": problem.source.cpu(), **_tensors(descent)}

    def _meaning(self, concepts: tuple[Concept, ...]) -> dict[str, JSON]:
        settings = {name: value for name, value in as_json(self.settings).items() if name not in _NO_MEANING}
        return {
            "result": "emcid/offsets",
            "version": 2,
            "models": self.digests,
            "settings": settings,
            "layer": self.layer,
            **({} if self.layer_2 is None else {"layer_2": self.layer_2}),
            "concepts": [_concept_meaning(concept, self.settings) for concept in concepts],
        }


def _concept_meaning(concept: Concept, settings: OffsetSettings) -> dict[str, JSON]:
    meaning: dict[str, JSON] = {
        "spans": [[span.start, span.end, *span.ids] for span in concept.spans],
        "goals": None
        if concept.goals is None
        else [[goal.start, goal.end, *goal.ids] for goal in concept.goals],
    }
    if settings.mode != "text":
        meaning["seed"] = concept.edit.seed
        meaning["images"] = [file_digest(path) for path in concept.edit.images]
    return meaning


def _tensors(descent: Descent) -> dict[str, Tensor]:
    return {
        "offset": descent.offsets.cpu(),
        "first": descent.first,
        "last": descent.last,
        "steps": descent.steps,
        "settled": descent.settled,
        "clamped": descent.clamped,
        "finite": descent.finite,
    }


def _target(
    tensors: Mapping[str, Any],
    row: int,
    concept: Concept,
    layer: int,
    digest: str,
    offset: Tensor,
    source: Tensor,
    second: Target | None,
) -> Target:
    return Target(
        concept=concept,
        offset=offset,
        source=source,
        second=second,
        layer=layer,
        encoder_digest=digest,
        steps=int(tensors["steps"][row]),
        first_loss=float(tensors["first"][row]),
        last_loss=float(tensors["last"][row]),
        settled=bool(tensors["settled"][row]),
        clamped=bool(tensors["clamped"][row]),
        finite=bool(tensors["finite"][row] and torch.isfinite(tensors["offset"][row]).all()),
    )
