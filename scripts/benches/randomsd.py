"""Models of Stable Diffusion at full size, of random numbers: for what things cost, not what they draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch

from surgery.checkpoint.families import Family, family_files

FAMILIES: Final = {
    "sd15": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
}


def configurations(family: str) -> dict[str, Any]:
    """How the family's models are built, by component."""
    made = family_files(Family(name=FAMILIES[family], pictures=512, prediction="epsilon", inputs=4), {})
    return {
        path.partition("/")[0]: json.loads(text)
        for path, text in made.items()
        if path.endswith("/config.json")
    }


def text_encoder(family: str, component: str = "text_encoder", seed: int = 0) -> Any:
    """A text encoder as the library initialises it; ``text_encoder_2`` is SDXL's other one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(CLIPTextConfig(**configurations(family)[component]))
    return model.eval().requires_grad_(False)


def unet(family: str, device: str = "cpu", seed: int = 0) -> Any:
    """A U-Net as the library initialises it; on the device "meta" it takes no memory."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = UNet2DConditionModel.from_config(configurations(family)["unet"])
    return model.eval().requires_grad_(False)


def vae(family: str, device: str = "meta") -> Any:
    """A VAE as the library initialises it."""
    from diffusers import AutoencoderKL

    with torch.device(device):
        model = AutoencoderKL.from_config(configurations(family)["vae"])
    return model.eval().requires_grad_(False)


def tokenizer(vocabulary: Path) -> Any:
    """CLIP's tokenizer from its vocab.json and merges.txt; prompts are padded with the end token."""
    from transformers import CLIPTokenizerFast

    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    return CLIPTokenizerFast.from_pretrained(
        vocabulary, local_files_only=True, model_max_length=77, pad_token="<|endoftext|>", **specials
    )
