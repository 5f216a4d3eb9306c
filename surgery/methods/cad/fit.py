"""Whether models can be attributed at all, told before anything is computed (8.5 of the study)."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from surgery.anatomy import weights_of
from surgery.diffusion import Models, device_and_dtype, noise_schedule, sampler_faults
from surgery.errors import MethodError, raise_all
from surgery.methods.cad.gradients import MICRO_BATCH, is_small
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.pairs import BATCH
from surgery.methods.cad.settings import AttributionSettings
from surgery.names import canonical, split
from surgery.record import Finding


def refuse_unfit(models: Models, names: tuple[str, ...], settings: AttributionSettings) -> None:
    """Refuse models whose scores would say nothing about the checkpoint that they come from.

    Raises:
        MethodError: all faults at once.
    """
    schedule = noise_schedule(models.scheduler)  # refuses what is no Stable Diffusion 1.x, 2.x or XL
    if schedule.predicts == "epsilon" and float(schedule.remaining.min()) <= 0:
        raise MethodError(
            "the schedule ends in pure noise, where a prediction of noise says nothing; expected a "
            "checkpoint that predicts velocities. Is the scheduler's prediction_type right?"
        )
    raise_all(MethodError, [*_adapters(models), *sampler_faults(models, settings.sampling_steps)])
    raise_all(MethodError, list(_unfit_weights(models, names)))


def usual_rows(models: Any) -> tuple[int, int]:
    """Noisy pictures in one pass forward and back, and paths at a time, that suit the U-Net and its device.

    A large one on a CPU has work enough in one row, and more of them only take memory.
    """
    if is_small(models.unet):
        return 25, 16
    device, _ = device_and_dtype(models.unet)
    return (1, 4) if device.type == "cpu" else (MICRO_BATCH, BATCH)


def model_findings(models: Any, concepts: Sequence[CadConcept]) -> Iterator[Finding]:
    """What of models and prompts changes how scores are to be read."""
    room = models.tokenizer.model_max_length
    for concept in concepts:
        for prompt in concept.prompts:
            if len(models.tokenizer(prompt).input_ids) > room:
                yield Finding(
                    kind="prompt-cut",
                    subject=concept.name,
                    message=f"{prompt!r} has more than {room} tokens; what is behind is not read.",
                    severity="warning",
                )
    if noise_schedule(models.scheduler).predicts == "v_prediction":
        yield Finding(
            kind="velocity",
            subject="unet",
            message="the U-Net predicts velocities: a distance between two predictions weighs timesteps "
            "otherwise than one of noise does. Compare scores within this checkpoint only.",
            severity="info",
        )


def _adapters(models: Any) -> Iterator[str]:
    """Layers of PEFT's or older adapters, which compute beside the checkpoint's weights."""
    for part in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(models, part, None)
        wrapped = [
            path
            for path, module in (model.named_modules() if isinstance(model, nn.Module) else ())
            if hasattr(module, "base_layer") or getattr(module, "lora_layer", None) is not None
        ]
        if wrapped:
            yield (
                f"the {part} has adapters on {len(wrapped)} layers ({wrapped[0]!r} first); scores would be "
                "those of weights that the checkpoint does not have. Unload them, or save the fused "
                "checkpoint and attribute that one."
            )


def _unfit_weights(models: Models, names: tuple[str, ...]) -> Iterator[str]:
    owners: dict[int, str] = {}
    for part in sorted({split(name)[0] for name in names}):
        for path, weight in getattr(models, part).named_parameters(remove_duplicate=False):
            name = canonical(part, path)
            first = owners.setdefault(id(weight), name)
            if first != name and {first, name} & set(names):
                yield (
                    f"{first!r} and {name!r} are one tensor in the models; a mask of one would take the "
                    "other's weights away. Leave both out."
                )
    for name, weight in weights_of(models, names).items():
        if not weight.is_floating_point() or weight.element_size() < 2:
            yield f"{name!r} is {weight.dtype}; expected float32, bfloat16 or float16. Load it unquantised."
