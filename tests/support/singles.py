"""Single files of a few narrow tensors under the keys of each family, made by hand."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = Mapping[str, Tensor]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
SD1_TEXT = "cond_stage_model.transformer."
SD2_TEXT = "cond_stage_model.model."
WIDTH = 4


class Random:
    """Small random tensors, one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(dtype)


def sd1_tensors(seed: int = 0) -> dict[str, Tensor]:
    """A text block, two layers of the U-Net and one of the VAE, under the keys of SD 1.x."""
    random = Random(seed)
    block = f"{SD1_TEXT}text_model.encoder.layers.0."
    return {
        f"{block}mlp.fc2.weight": random(3, 5),
        f"{block}mlp.fc2.bias": random(3),
        f"{SD1_TEXT}text_model.embeddings.position_ids": torch.arange(4)[None],
        f"{UNET}input_blocks.1.1.proj_in.weight": random(2, 2, 1, 1),
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": random(4, 3),
        f"{UNET}input_blocks.0.0.weight": random(2, 4, 3, 3),
        f"{UNET}out.2.bias": random(4),
        f"{VAE}decoder.mid.attn_1.q.weight": random(2, 2, 1, 1),
        "alphas_cumprod": torch.linspace(1, 0, 5),
    }


def sd2_tensors(seed: int = 0) -> dict[str, Tensor]:
    """All 24 text blocks and what else its text encoder has in a single file, and a layer of the others."""
    random = Random(seed)
    tensors = {
        f"{UNET}input_blocks.1.1.proj_in.weight": random(2, 2),
        f"{VAE}decoder.conv_in.weight": random(2, 2, 3, 3),
        f"{SD2_TEXT}positional_embedding": random(7, WIDTH),
        f"{SD2_TEXT}token_embedding.weight": random(9, WIDTH),
        f"{SD2_TEXT}ln_final.weight": random(WIDTH),
        f"{SD2_TEXT}ln_final.bias": random(WIDTH),
        f"{SD2_TEXT}text_projection": random(WIDTH, WIDTH),
        f"{SD2_TEXT}logit_scale": random(dtype=torch.float32),
    }
    for number in range(24):
        tensors |= open_clip_block(f"{SD2_TEXT}transformer.resblocks.{number}.", random)
    return tensors


def open_clip_block(prefix: str, random: Random) -> dict[str, Tensor]:
    """One block of a text encoder as open_clip stores it."""
    shapes = {
        "attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "attn.in_proj_bias": (3 * WIDTH,),
        "attn.out_proj.weight": (WIDTH, WIDTH),
        "attn.out_proj.bias": (WIDTH,),
        "ln_1.weight": (WIDTH,),
        "ln_1.bias": (WIDTH,),
        "ln_2.weight": (WIDTH,),
        "ln_2.bias": (WIDTH,),
        "mlp.c_fc.weight": (2 * WIDTH, WIDTH),
        "mlp.c_fc.bias": (2 * WIDTH,),
        "mlp.c_proj.weight": (WIDTH, 2 * WIDTH),
        "mlp.c_proj.bias": (WIDTH,),
    }
    return {f"{prefix}{name}": random(*shape) for name, shape in shapes.items()}


def averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An averaged copy of the U-Net in single precision, under the keys of CompVis's ``LitEma``."""
    copies = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value.float() + 0.5
        for key, value in tensors.items()
        if key.startswith(UNET)
    }
    return {**copies, "model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def write_single(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """The file as the safetensors library writes it."""
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    return path
