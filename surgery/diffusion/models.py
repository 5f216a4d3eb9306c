"""What sampling needs of a pipeline; a ``StableDiffusionPipeline`` fits as it is."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Tokenizer(Protocol):
    """A CLIP tokenizer of transformers."""

    @property
    def model_max_length(self) -> int:
        """Positions of the text encoder that belongs to it (77)."""

    @property
    def bos_token_id(self) -> int:
        """Id of the token that opens every prompt."""

    @property
    def eos_token_id(self) -> int:
        """Id of the token that closes every prompt."""

    def pad(self, encoded: Any, **options: Any) -> Any:
        """Token ids filled up to one length."""

    def __call__(self, text: Sequence[str], **options: Any) -> Any:
        """Token ids of some texts."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some token ids."""


class Scheduler(Protocol):
    """A scheduler object of diffusers: the solver and the noise schedule in one."""

    @property
    def config(self) -> Any:
        """Its settings, a mapping."""

    @property
    def timesteps(self) -> Tensor:
        """Timesteps of the solver, from noisy to clean."""

    @property
    def init_noise_sigma(self) -> Any:
        """Standard deviation of the noise that the solver starts from."""

    def set_timesteps(self, num_inference_steps: int, *, device: torch.device) -> None:
        """Begin a new solution with so many steps."""

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """The latents as the model wants to see them at this timestep."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        """One step of the solver."""


class Models(Protocol):
    """The five parts of a Stable Diffusion pipeline that draw a picture."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts to token ids."""

    @property
    def text_encoder(self) -> nn.Module:
        """Token ids to features."""

    @property
    def unet(self) -> nn.Module:
        """Noisy latents, timestep and features to noise."""

    @property
    def vae(self) -> nn.Module:
        """Latents to pixels."""

    @property
    def scheduler(self) -> Scheduler:
        """The checkpoint's own solver; it is copied before use."""


def config_of(model: nn.Module) -> Any:
    """A model's configuration as diffusers and transformers keep it."""
    return model.config
