"""The work of Stage I for one concept at SD 1.5 shapes, counted by torch on models without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from randomsd import configurations, unet, vae
from torch.utils.flop_counter import FlopCounterMode

from surgery.methods.emcid import OffsetSettings

if TYPE_CHECKING:
    from stageone import Way

ROWS = 3  # templates of a concept
CONCEPT_TOKENS = 10  # of a prompt padded to the longest of its concept


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Float operations of one picture of 512 × 512, or of one prompt."""

    unet: float
    unet_and_gradient: float
    encode: float
    decode: float
    text: float
    text_block: float


def counted(work: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def prices(tokens: int = 77) -> Prices:
    """Of SD 1.5; the text encoder's are those of its matrices."""
    with torch.device("meta"):
        network, coder = unet("sd15", "meta"), vae("sd15")
        latents, pixels = torch.empty(1, 4, 64, 64), torch.empty(1, 3, 512, 512)
        features = torch.empty(1, tokens, 768)
        time = torch.zeros(1)

        def told(text: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = network(latents, time, encoder_hidden_states=text, return_dict=False)[0]
            return found

        with torch.no_grad():
            plain = counted(lambda: told(features))
            encode = counted(lambda: coder.encode(pixels))
            decode = counted(lambda: coder.decode(latents))
        asked = features.clone().requires_grad_(True)
        both = counted(lambda: told(asked * 1.0).sum().backward())
    table = configurations("sd15")["text_encoder"]
    width, inner = table["hidden_size"], table["intermediate_size"]
    block = 2.0 * tokens * (4 * width**2 + 2 * width * inner)
    return Prices(
        unet=plain,
        unet_and_gradient=both,
        encode=encode,
        decode=decode,
        text=block * table["num_hidden_layers"],
        text_block=block,
    )


def plainly(settings: OffsetSettings, price: Prices) -> float:
    """The published way: everything at every step, and the text encoder three times."""
    share = CONCEPT_TOKENS / 77
    drawn = 2 * settings.sampling_steps * price.unet + price.decode
    step = price.encode + price.unet + price.unet_and_gradient + share * (3 * price.text + price.text_block)
    return ROWS * (drawn + settings.steps * step)


def ours(settings: OffsetSettings, steps: float, behind: int, price: Prices) -> float:
    """Our way with so many steps on the mean, ``behind`` blocks behind the offset."""
    once = ROWS * 2 * price.text
    tail = 2 * behind * price.text_block
    if settings.mode == "text":
        return once + steps * settings.rows_at_once(ROWS) * tail
    drawn = 2 * settings.sampling_steps * price.unet
    taught = settings.bank_size * price.unet
    at_once, asked = settings.rows_at_once(ROWS), steps - settings.text_steps
    return once + ROWS * (drawn + taught) + at_once * (asked * price.unet_and_gradient + steps * tail)


def report_flops(steps: Mapping[str, float], asked: list[Way], behind: int) -> None:
    """One row for each way in float32."""
    price = prices()
    print(
        f"\nat SD 1.5 shapes, TFLOP: U-Net {price.unet / 1e12:.3f}, with the gradient to the text "
        f"{price.unet_and_gradient / 1e12:.3f}, VAE in {price.encode / 1e12:.3f}, "
        f"out {price.decode / 1e12:.3f}"
    )
    published = None
    for way in asked:
        if way.dtype != torch.float32:
            continue
        if way.plain:
            total = published = plainly(way.settings, price)
        else:
            total = ours(way.settings, steps[way.name], behind, price)
        ratio = f"{published / total:8.1f}" if published else ""
        print(f"{way.name:28}{total / 1e12:12.1f} TFLOP a concept{ratio}", flush=True)
