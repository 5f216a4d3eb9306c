"""Cross-attention as one vector a layer, the form in which such U-Nets were published, behind a tolerance.

Source: arXiv 2312.08195; 1.3 of the study. Under a context whose tokens are all alike, such as SDXL's zeros,
it is exact; under the reading of an empty prompt it is not, and how far off it is must be measured.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.header import open_header
from surgery.checkpoint.reader import read_tensor
from surgery.checkpoint.serialise import safetensors_chunks
from surgery.diffusion import Models, device_and_dtype, generator_for, noise_schedule, predict_under, resident
from surgery.diffusion.conditions import read_without
from surgery.diffusion.pixels import scale_factor
from surgery.errors import CheckpointError, MethodError
from surgery.methods.null_text.context import collapsed, constants_of, cross_attentions
from surgery.methods.null_text.pictures import PictureSet
from surgery.record import JSON

LEVELS: Final = 8
PICTURES: Final = 16
_KEY: Final = "surgery.constants"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """A vector for each cross-attention, and how far the U-Net with them is from the one it stands for.

    Attributes:
        vectors: By the path of the cross-attention.
        varies: By the same, √(variance over tokens, timesteps and pictures / mean square) of what the vector
            stands for.
        error: ‖collapsed - whole‖ / ‖whole‖ of the predictions, over all points together.
        by_timestep: The same at each timestep.
    """

    vectors: Mapping[str, Float[Tensor, " channels"]]
    varies: Mapping[str, float]
    error: float
    by_timestep: Mapping[int, float]

    def told(self) -> dict[str, JSON]:
        """All but the vectors, as plain data."""
        return {
            "error": self.error,
            "by_timestep": {str(step): error for step, error in self.by_timestep.items()},
            "varies": dict(self.varies),
        }


@torch.no_grad()
def measure_constants(
    models: Models, pictures: PictureSet, seed: int = 0, batch: int = PICTURES
) -> Constants:
    """The constants of a U-Net as it is now, over noisy pictures at evenly spaced timesteps.

    Args:
        models: The checkpoint, with the patch in its U-Net.
        pictures: Of the look.
        seed: Of the noise.
        batch: Pictures at a time.
    """
    device, dtype = device_and_dtype(models.unet)
    null = read_without(models, "")
    schedule = noise_schedule(models.scheduler)
    generator = generator_for(seed, "constants")
    clean = pictures.mean[:PICTURES]
    steps = schedule.spread(LEVELS)
    noisy = {
        step: schedule.noisy(
            clean, torch.randn(clean.shape, generator=generator), torch.full((len(clean),), step)
        ).to(device, dtype)
        for step in steps
    }
    height, width = (side * scale_factor(models.vae) for side in clean.shape[2:])

    def points() -> Iterator[tuple[Tensor, Tensor, Any]]:
        for step, latents in noisy.items():
            for part in torch.split(latents, batch):
                text = null.to(part).repeated(len(part))
                yield part, torch.full((len(part),), step, device=device), text.added(height, width)

    def predictions() -> dict[int, Tensor]:
        return {
            step: torch.cat(
                [
                    predict_under(models, part, step, null.to(part).repeated(len(part))).double()
                    for part in torch.split(latents, batch)
                ]
            )
            for step, latents in noisy.items()
        }

    with resident(models.unet):
        vectors, varies = constants_of(models.unet, points(), null.features)
        whole = predictions()
        with collapsed(models.unet, vectors):
            flat = predictions()
    errors = {step: float((flat[step] - whole[step]).norm() / whole[step].norm()) for step in steps}
    gap = sum(float((flat[step] - whole[step]).square().sum()) for step in steps)
    total = sum(float(whole[step].square().sum()) for step in steps)
    return Constants(
        vectors={path: one.float() for path, one in vectors.items()},
        varies=varies,
        error=(gap / total) ** 0.5,
        by_timestep=errors,
    )


def save_constants(
    found: Constants, path: Path, tolerance: float, about: Mapping[str, JSON], *, overwrite: bool = False
) -> None:
    """Write the vectors, with the measured error, as a safetensors file.

    Args:
        found: Measured constants.
        path: The file.
        tolerance: The largest error that may be packed.
        about: What they belong to, such as digests of the base and the patch.
        overwrite: Whether an older file may be replaced.

    Raises:
        MethodError: when the error is larger than the tolerance; nothing is written.
    """
    if not found.error <= tolerance:
        worst = max(found.by_timestep, key=lambda step: found.by_timestep[step])
        raise MethodError(
            f"with constants in the place of cross-attention predictions are {100 * found.error:.2g} % off "
            f"({100 * found.by_timestep[worst]:.2g} % at timestep {worst}); expected at most "
            f"{100 * tolerance:.2g} %. Keep the patch, which is exact, or raise --tolerance."
        )
    told = {"version": 1, "tolerance": tolerance, **found.told(), **about}
    tensors = {f"{path}.constant": one.contiguous() for path, one in found.vectors.items()}
    with atomic_file(path, overwrite=overwrite) as temporary:
        write_bytes(temporary, safetensors_chunks(tensors, {_KEY: json.dumps(told, sort_keys=True)}))


def load_constants(path: Path, unet: nn.Module) -> dict[str, Float[Tensor, " channels"]]:
    """The vector of each cross-attention of a U-Net, for ``collapsed``.

    Raises:
        CheckpointError: when the file is no safetensors file.
        MethodError: when it holds no constants, those of another U-Net, or one that is nothing at all: such
            training ran without any.
    """
    header = open_header(path, CheckpointError)
    if _KEY not in header.metadata:
        raise MethodError(
            f"{path} holds no constants; expected a file that 'surgery train --constants' wrote."
        )
    vectors = {entry.key.removesuffix(".constant"): read_tensor(entry) for entry in header.entries}
    if vectors.keys() != cross_attentions(unet).keys():
        raise MethodError(
            f"{path} has constants of {len(vectors)} cross-attentions, and the U-Net has "
            f"{len(cross_attentions(unet))} of other names; expected those of this U-Net."
        )
    empty = [name for name, one in vectors.items() if not bool(one.any())]
    if empty:
        raise MethodError(f"the constants of {', '.join(empty[:3])} are nothing; expected all of them.")
    return vectors
