"""The sampling loop: many pictures in batches, each with its own seed."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from surgery import progress as shown
from surgery.diffusion.batches import in_batches
from surgery.diffusion.guide import Guide, PromptGuide
from surgery.diffusion.models import Models, Scheduler, config_of
from surgery.diffusion.offload import device_and_dtype, resident
from surgery.diffusion.pixels import decode, scale_factor
from surgery.errors import SurgeryError, raise_all
from surgery.progress import Bar


class SampleKnobs(TypedDict, total=False):
    """The options of ``sample`` and ``sample_latents``, for functions that hand them on."""

    steps: int
    guidance: float
    negative: str
    batch: int
    clip_skip: int
    in_pieces: bool
    size: tuple[int, int] | None
    progress: bool
    halve: bool
    guide: Guide | None
    scheduler: Scheduler | None


def sample(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 5.0,
    negative: str = "",
    batch: int = 16,
    clip_skip: int = 0,
    in_pieces: bool = False,
    size: tuple[int, int] | None = None,
    progress: bool = True,
    halve: bool = True,
    guide: Guide | None = None,
    scheduler: Scheduler | None = None,
) -> UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]:
    """One picture for each prompt with the seed at its place, values 0 to 255.

    The same as ``sample_latents`` followed by ``decode``; see there.
    """
    latents = sample_latents(
        models,
        prompts,
        seeds,
        steps=steps,
        guidance=guidance,
        negative=negative,
        batch=batch,
        clip_skip=clip_skip,
        in_pieces=in_pieces,
        size=size,
        progress=progress,
        halve=halve,
        guide=guide,
        scheduler=scheduler,
    )
    return decode(models.vae, latents, batch, halve=halve)


@torch.no_grad()
def sample_latents(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 5.0,
    negative: str = "",
    batch: int = 16,
    clip_skip: int = 0,
    in_pieces: bool = False,
    size: tuple[int, int] | None = None,
    progress: bool = True,
    halve: bool = True,
    guide: Guide | None = None,
    scheduler: Scheduler | None = None,
) -> Float[Tensor, "pictures channels height width"]:
    """Clean latents for each prompt with the seed at its place, scaled as the U-Net sees them.

    All noise of a picture comes from a CPU generator of its own, seeded by its seed: it does not depend on
    its batch, beyond rounding, and it is the picture that ``StableDiffusionPipeline`` draws from that seed.

    Args:
        models: A pipeline, or any object with its five parts. The scheduler is copied, not changed.
        prompts: One prompt for each picture.
        seeds: One seed for each picture.
        steps: Steps of the checkpoint's own scheduler.
        guidance: Guidance scale; 1 or less leaves the unconditional pass out, as the stock pipeline does.
        negative: Prompt of the unconditional pass, for all pictures.
        batch: Pictures at a time; the U-Net sees twice as many.
        clip_skip: Text blocks left out at the end, for prompts alone, as in the stock pipeline: 1 is what
            many programs call clip-skip 2.
        in_pieces: Whether prompts of more than 77 tokens are read whole (``encode_prompts``).
        size: Height and width in pixels; the size the checkpoint was trained on when left out.
        progress: Whether a bar is shown on a terminal.
        halve: Whether a batch that does not fit into memory is begun again at half the size. Else the error
            goes on to the caller, who may have stored results under the batch's size.
        guide: Predicts, and reads the prompts, in the place of ``guidance``, ``negative``, ``clip_skip`` and
            ``in_pieces``, which are then not looked at.
        scheduler: In the place of the checkpoint's; it is copied, too.

    Raises:
        SurgeryError: when the arguments do not fit each other or the models, all faults at once; when the
            latents do not stay finite.

    Source: ``StableDiffusionPipeline.__call__`` of diffusers 0.42.
    """
    raise_all(SurgeryError, _faults(models, prompts, seeds, steps, guidance, size))
    device, dtype = device_and_dtype(models.unet)
    shape = latent_shape(models, size)
    own = guide or PromptGuide(models, prompts, guidance, negative, clip_skip, in_pieces=in_pieces)
    _, drawn_as = device_and_dtype(models.text_encoder)
    solver = models.scheduler if scheduler is None else scheduler
    count = len(_started(solver, steps, device).timesteps)
    total = len(prompts) * count
    with nullcontext() if progress else shown.silence(), shown.bar(total, "sampling", "step") as bar:

        def work(part: slice) -> Tensor:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            drawn = [torch.randn((1, *shape), generator=one, dtype=drawn_as) for one in generators]
            noise = torch.cat(drawn).to(device, dtype)
            predict = own.begin(prompts[part], noise, count)
            with resident(models.unet):
                latents = _denoise(_started(solver, steps, device), predict, noise, generators, bar)
            if not bool(torch.isfinite(latents).all()):
                raise SurgeryError(
                    f"with {steps} steps{'' if guide else f' and guidance {guidance:g}'} the latents became "
                    "NaN or infinite; expected finite ones. Use fewer steps or less guidance, or audit the "
                    "weights."
                )
            return latents

        return torch.cat(in_batches(len(prompts), batch, work, halve=halve))


def _denoise(
    scheduler: Scheduler,
    predict: Callable[[Tensor, Any], Tensor],
    noise: Tensor,
    generators: list[torch.Generator],
    bar: Bar,
) -> Tensor:
    random = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    latents: Tensor = noise * scheduler.init_noise_sigma
    done = 0
    try:
        for timestep in scheduler.timesteps:
            predicted = predict(scheduler.scale_model_input(latents, timestep), timestep)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False, **random)[0]
            bar.update(len(latents))
            done += len(latents)
    except BaseException:
        bar.update(-done)  # a batch that ran out of memory is begun again
        raise
    return latents


def _started(scheduler: Scheduler, steps: int, device: torch.device) -> Scheduler:
    # a solver remembers its last predictions: each batch gets its own copy
    fresh = copy.deepcopy(scheduler)
    fresh.set_timesteps(steps, device=device)
    return fresh


def latent_shape(models: Models, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Channels, height and width of latents, of pictures of a size in pixels or as trained on."""
    config = config_of(models.unet)
    if size is not None:
        factor = scale_factor(models.vae)
        return config.in_channels, size[0] // factor, size[1] // factor
    side = config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    return config.in_channels, height, width


def _faults(
    models: Models,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    size: tuple[int, int] | None,
) -> list[str]:
    faults = []
    if not prompts or len(prompts) != len(seeds):
        faults.append(
            f"{len(prompts)} prompts and {len(seeds)} seeds; expected one seed for each picture's prompt, "
            "and at least one. Repeat the prompt for more pictures of it."
        )
    faults += sampler_faults(models, steps)
    if not math.isfinite(guidance):
        faults.append(f"guidance is {guidance}; expected a finite number. 5 is the default.")
    factor = scale_factor(models.vae)
    if size is not None and (min(size) < factor or size[0] % factor or size[1] % factor):
        faults.append(f"size is {size[0]}×{size[1]} pixels; expected multiples of {factor}. Round the size.")
    return faults


def sampler_faults(models: Models, steps: int) -> list[str]:
    """Why no sampler of so many steps can draw from a prompt with these models; nothing where it can."""
    faults = []
    most = getattr(models.scheduler.config, "num_train_timesteps", steps)
    if not 1 <= steps <= most:
        faults.append(f"steps is {steps}; expected 1 to {most}. 25 is the default.")
    unet, latent = config_of(models.unet), config_of(models.vae).latent_channels
    if unet.in_channels != latent:
        faults.append(
            f"the U-Net reads {unet.in_channels} channels and the VAE has {latent}; expected the same "
            "number. Inpainting checkpoints cannot draw from a prompt alone; use their text-to-image sibling."
        )
    if unet.time_cond_proj_dim is not None:
        faults.append(
            "the U-Net reads the guidance scale as an input (a consistency model); expected a plain one. "
            "Sample the checkpoint that it was distilled from."
        )
    return faults
