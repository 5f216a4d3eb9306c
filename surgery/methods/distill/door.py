"""From concepts and scales to a change of the U-Net."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

from torch import Tensor

from surgery.anatomy import settings_text, weights_digest, weights_of
from surgery.anatomy.atlas import place_of
from surgery.delta import Delta, Operator
from surgery.delta.algebra import change_of
from surgery.diffusion import Models, read_prompts, resident, sampler_faults
from surgery.diffusion.conditions import read_without
from surgery.errors import MethodError, raise_all
from surgery.methods.distill.closed_form import closed_form
from surgery.methods.distill.objective import DistillObjective
from surgery.methods.distill.points import Texts
from surgery.methods.distill.settings import DistillConcept, DistillSettings, as_json, check_distill
from surgery.methods.training import Leaves, Task, delta_of, factors_of, run_updates, weights_alone
from surgery.record import JSON, json_digest
from surgery.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What came of it.

    Attributes:
        delta: The change of the U-Net.
        losses: Of every update; none where the closed form alone was asked for.
        rank: Of the closed form's map; 0 without one.
    """

    delta: Delta
    losses: tuple[float, ...]
    rank: int


def distill(
    models: Models,
    concepts: Sequence[DistillConcept],
    names: Sequence[str],
    settings: DistillSettings,
    *,
    preserve: Sequence[str] = (),
    store: Store | None = None,
) -> Distilled:
    """The change with which a concept's prompt draws what guidance at another scale drew.

    Args:
        models: The unedited checkpoint; it is left as it was.
        concepts: Whose scales.
        names: Weights of the U-Net that may change.
        settings: Scheme.
        preserve: Phrases that stay.
        store: Where the state is kept, so that a stopped run goes on.

    Raises:
        MethodError: when concepts, settings or models do not fit, or the loss is not finite.

    Source: arXiv 2303.07345 for ω below 0; 6.4 of the study for all else.
    """
    check_distill(concepts, settings, preserve)
    raise_all(MethodError, sampler_faults(models, settings.sampling_steps))
    start = _started(models, concepts, names, settings, preserve)
    rank = next(iter(start.values())).left.shape[1] if start else 0
    if not settings.steps:
        return Distilled(delta=Delta(dict(start)), losses=(), rank=rank)
    with resident(models.unet), _leaves(models, names, settings, start) as leaves:
        texts = _texts(models, concepts, preserve, settings)
        objective = DistillObjective(models, concepts, texts, settings, leaves.absent)
        meaning = None if store is None else _meaning(models, concepts, names, settings, preserve)
        task = Task(models=models, leaves=leaves, settings=settings, store=store, meaning=meaning)
        state = run_updates(task, objective)
    return Distilled(
        delta=delta_of(models, state.averages or state.values), losses=tuple(state.losses), rank=rank
    )


def _started(
    models: Models,
    concepts: Sequence[DistillConcept],
    names: Sequence[str],
    settings: DistillSettings,
    preserve: Sequence[str],
) -> dict[str, Operator]:
    """The closed form by name of the weights that have one."""
    if settings.start == "none":
        return {}
    projections = [name for name in names if place_of(name).role in ("cross_key", "cross_value")]
    if not projections:
        if settings.steps:
            return {}
        raise MethodError(
            "the closed form is one of keys and values of cross-attention, and none is among the weights; "
            "expected some. Take components attn2_kv, or steps of training."
        )
    others = [name for name in names if name not in projections]
    if others and not settings.steps:
        raise MethodError(
            f"the closed form does not reach {others[0]!r}"
            f"{f' and {len(others) - 1} others' if len(others) > 1 else ''}; expected keys and values of "
            "cross-attention alone. Leave them out, or take steps of training."
        )
    found = closed_form(models, concepts, preserve, settings)
    return dict.fromkeys(projections, found)


def _leaves(
    models: Models, names: Sequence[str], settings: DistillSettings, start: dict[str, Operator]
) -> AbstractContextManager[Leaves]:
    if settings.form == "factors":
        return factors_of(models, names, settings.rank, settings.seed)
    weights = weights_of(models, tuple(start))
    begun: dict[str, Tensor] = {
        name: (weight.detach().cpu().double() + change_of(start[name], weight.detach().cpu())).to(weight)
        for name, weight in weights.items()
    }
    return weights_alone(models, names, begun)


def _texts(
    models: Models,
    concepts: Sequence[DistillConcept],
    preserve: Sequence[str],
    settings: DistillSettings,
) -> Texts:
    prompts = [(prompt, number) for number, concept in enumerate(concepts) for prompt in concept.prompts]
    kept = list(preserve) if settings.preserve_weight else []
    return Texts(
        prompts=tuple(prompt for prompt, _ in prompts),
        concept=tuple(number for _, number in prompts),
        concepts=read_prompts(models, [prompt for prompt, _ in prompts]),
        null=read_without(models, ""),
        preserve=read_prompts(models, kept) if kept else None,
    )


def _meaning(
    models: Models,
    concepts: Sequence[DistillConcept],
    names: Sequence[str],
    settings: DistillSettings,
    preserve: Sequence[str],
) -> dict[str, JSON]:
    return {
        "what": "distilled guidance",
        "unet": weights_digest(models.unet),
        "text": json_digest(read_prompts(models, ["", *preserve]).features.double().sum((1, 2)).tolist()),
        "scheduler": settings_text(models.scheduler),
        "settings": as_json(settings),
        "concepts": [{**asdict(one), "prompts": list(one.prompts)} for one in concepts],
        "names": list(names),
        "preserve": list(preserve),
    }
