"""Learning a look: pictures in, a change of the U-Net out."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from surgery.anatomy import settings_text, weights_digest
from surgery.delta import Delta
from surgery.diffusion import (
    Models,
    resident,
    sampler_faults,
)
from surgery.errors import MethodError, raise_all
from surgery.methods.null_text.context import known_context
from surgery.methods.null_text.objective import LookObjective
from surgery.methods.null_text.pictures import PictureSet
from surgery.methods.null_text.settings import Layers, TrainSettings, as_json, check_settings
from surgery.methods.training import (
    Check,
    Company,
    Leaves,
    Task,
    delta_of,
    factors_of,
    run_updates,
    weights_alone,
)
from surgery.names import canonical
from surgery.record import JSON, json_digest
from surgery.store import Store

_BLOCKS: Final = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A learned look.

    Attributes:
        delta: The change of the U-Net.
        steps: Updates that were made.
        best: Updates after which the weights were those of the delta.
        losses: Training loss of every update.
        held_out: Step and held-out loss of each look.
    """

    delta: Delta
    steps: int
    best: int
    losses: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...]


def train(
    models: Models,
    pictures: PictureSet,
    settings: TrainSettings,
    *,
    store: Store | None = None,
    on_check: Callable[[Check], None] | None = None,
    company: Company | None = None,
    leave_out: Sequence[str] = (),
) -> Trained:
    """The change of a U-Net that learned to draw like some pictures, without a word.

    Noise is added at timesteps drawn evenly, and predicted under the null context alone. Every draw of an
    update follows from the seed and the update's number, so that a stopped run that goes on ends in the same
    weights; and every process of a company takes its share of the same batch.

    Args:
        models: The unedited checkpoint; it is left as it was.
        pictures: From ``read_pictures``.
        settings: What is trained, and for how long.
        store: Where the state is kept, so that a stopped run goes on; all processes must see the same one.
        on_check: Called at each look at the held-out loss, in the first process alone, while the U-Net has
            the averaged weights and knows the null context alone.
        company: Other processes that train the same.
        leave_out: Weights that have no factors.

    Raises:
        MethodError: when settings or models do not fit, or the loss is not finite.

    Source: arXiv 2312.08195; 1.4 of the study. There all weights outside of cross-attention are trained, and
    cross-attention is replaced by constants.
    """
    check_settings(settings)
    raise_all(MethodError, sampler_faults(models, 1))
    with resident(models.unet), leaves_of(models, settings, leave_out) as leaves:
        objective = LookObjective(models, pictures, settings, company)
        task = Task(
            models=models,
            leaves=leaves,
            settings=settings,
            store=store,
            meaning=None
            if store is None
            else {
                **_meaning(models, pictures, settings, objective.null.features),
                **({"leave_out": sorted(leave_out)} if leave_out else {}),
            },
            on_check=on_check,
            company=company,
        )
        with known_context(models.unet, objective.null.features):
            state = run_updates(task, objective)
    values = state.best_values or state.averages or state.values
    return Trained(
        delta=delta_of(models, values),
        steps=state.step,
        best=state.best or state.step,
        losses=tuple(state.losses),
        held_out=tuple(state.held_out),
    )


def leaves_of(
    models: Models, settings: TrainSettings, leave_out: Sequence[str] = ()
) -> AbstractContextManager[Leaves]:
    """What the settings train; ``leave_out`` are weights without factors."""
    if settings.form == "lora":
        names = [name for name in layers_of(models.unet, settings.layers) if name not in leave_out]
        return factors_of(models, names, settings.rank, settings.seed)
    return weights_alone(models, wordless(models.unet))


def wordless(unet: nn.Module) -> list[str]:
    """All weights of a U-Net but those of its cross-attention and of the norms in front of that."""
    return [canonical("unet", path) for path, _ in unet.named_parameters() if not _hears(path.split("."))]


def _hears(parts: Sequence[str]) -> bool:
    return "transformer_blocks" in parts and ("attn2" in parts or "norm2" in parts)


def layers_of(unet: nn.Module, layers: Layers) -> list[str]:
    """Weights of the layers that have factors: inside of blocks, and none of cross-attention."""
    found = []
    for path, module in unet.named_modules():
        parts = path.split(".")
        inside = parts[0] in _BLOCKS and "attn2" not in parts
        wanted = {
            "attention": isinstance(module, nn.Linear) and "attn1" in parts,
            "linear": isinstance(module, nn.Linear),
            "all": isinstance(module, nn.Linear | nn.Conv2d),
        }[layers]
        if inside and wanted:
            found.append(canonical("unet", f"{path}.weight"))
    return found


def _meaning(models: Any, pictures: PictureSet, settings: TrainSettings, null: Tensor) -> dict[str, JSON]:
    return {
        "what": "null-text training",
        "unet": weights_digest(models.unet),
        "null": json_digest(null.float().sum((0, 2)).tolist()),
        "scheduler": settings_text(models.scheduler),
        "settings": as_json(settings),
        "pictures": json_digest(pictures.mean.double().sum((1, 2, 3)).tolist()),
    }
