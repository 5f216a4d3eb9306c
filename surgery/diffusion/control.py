"""A ControlNet beside the U-Net: what a picture (edges, depth, poses …) adds to its skip connections."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from surgery.diffusion.offload import device_and_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A ControlNet of the checkpoint's family, and the picture it reads.

    Attributes:
        net: ``diffusers.ControlNetModel``.
        picture: Values from 0 to 1, of the size that is drawn; the same for all pictures of a batch.
        scale: Of what it adds.
    """

    net: nn.Module
    picture: Float[Tensor, "1 3 rows columns"]
    scale: float = 1.0

    def residuals(
        self,
        noisy: Float[Tensor, "pictures channels height width"],
        timestep: Any,
        text: Float[Tensor, "pictures tokens width"],
        added: Mapping[str, Tensor] | None,
    ) -> dict[str, Any]:
        """What it adds for some latents, as the U-Net's arguments.

        Source: Zhang et al. 2023, eq. 2; ``StableDiffusionControlNetPipeline`` of diffusers 0.42.
        """
        device, dtype = device_and_dtype(self.net)
        given = None if added is None else {name: one.to(device, dtype) for name, one in added.items()}
        down, mid = self.net(
            noisy.to(device, dtype),
            timestep,
            encoder_hidden_states=text.to(device, dtype),
            controlnet_cond=self.picture.to(device, dtype).expand(len(noisy), -1, -1, -1),
            conditioning_scale=self.scale,
            added_cond_kwargs=given,
            return_dict=False,
        )
        return {
            "down_block_additional_residuals": tuple(one.to(noisy) for one in down),
            "mid_block_additional_residual": mid.to(noisy),
        }
