"""A trained U-Net goes on in other widths: channels are doubled up where it grows, left out where it shrinks.

Copies of a channel share its outgoing weights in unequal parts (Net2WiderNet, Chen et al. 2016), so a wider
level computes nearly what the narrower one did: a group norm over two levels' channels put side by side
groups them anew, the rest is exact up to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

HALVES_OF_GATED = 8  # a gated feed-forward projects to eight times the width, and reads back four times


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Which old channel each new one copies, and its part of that channel's outgoing weights; both (new,)."""

    sources: Tensor
    parts: Tensor
    old: int

    @property
    def growth(self) -> float:
        return len(self.sources) / self.old

    def times(self, count: int) -> Channels:
        """The same choice for `count` stretches of channels, one behind the other."""
        return joined([self] * count)


def joined(several: Sequence[Channels]) -> Channels:
    """Channels put side by side, as a skip connection puts two levels' side by side."""
    starts = [sum(c.old for c in several[:n]) for n in range(len(several))]
    return Channels(
        sources=torch.cat([c.sources + start for c, start in zip(several, starts, strict=True)]),
        parts=torch.cat([c.parts for c in several]),
        old=sum(c.old for c in several),
    )


def choose(old: int, new: int, groups: int, weight: Tensor, generator: torch.Generator) -> Channels:
    """Channels of one level, group by group; where it shrinks, those with the least of `weight` (old,) go."""
    within, wanted = old // groups, new // groups
    chosen = []
    for group in range(groups):
        start = group * within
        order = weight[start : start + within].argsort(descending=True)
        copies = torch.cat([order] * -(-wanted // within))[:wanted]
        chosen.append(start + copies.sort().values)
    sources = torch.cat(chosen)
    raw = torch.rand(new, generator=generator) * 0.4 + 0.3
    total = torch.zeros(old).index_add(0, sources, raw)
    return Channels(sources=sources, parts=raw / total[sources], old=old)


def widened(unet: UNet2DConditionModel, widths: Sequence[int], seed: int = 0) -> UNet2DConditionModel:
    """The same network with `widths` channels in its four levels."""
    before = list(unet.config.block_out_channels)
    if list(widths) == before:
        return unet
    generator = torch.Generator().manual_seed(seed)
    old = {name: tensor.float() for name, tensor in unet.state_dict().items()}
    groups = int(unet.config.norm_num_groups)
    levels = []
    for level, (was, wanted) in enumerate(zip(before, widths, strict=True)):
        weight = old[f"down_blocks.{level}.resnets.1.conv2.weight"].flatten(1).norm(dim=1)
        levels.append(choose(was, wanted, groups, weight, generator))
    weight = old["time_embedding.linear_2.weight"].norm(dim=1)
    time = choose(len(weight), len(weight) * widths[0] // before[0], 1, weight, generator)
    new = UNet2DConditionModel.from_config({**unet.config, "block_out_channels": tuple(widths)})
    tensors = {name: _wider(name, tensor, levels, time) for name, tensor in old.items()}
    tensors["time_embedding.linear_1.weight"] = _read_anew(unet, new)[time.sources]
    new.load_state_dict(tensors)
    return new


@torch.no_grad()
def _read_anew(unet: UNet2DConditionModel, new: UNet2DConditionModel) -> Tensor:
    """What the first layer of the time embedding reads from as many waves as `new` has: least squares."""
    times = torch.arange(1000)
    before, after = unet.time_proj(times).double(), new.time_proj(times).double()
    wanted = before @ unet.time_embedding.linear_1.weight.double().T
    ridge = 1e-6 * len(times) * torch.eye(after.shape[1], dtype=torch.float64)
    found: Tensor = torch.linalg.solve(after.T @ after + ridge, after.T @ wanted)
    return found.T.float()


def _wider(name: str, tensor: Tensor, levels: Sequence[Channels], time: Channels) -> Tensor:
    outgoing, incoming = _sides(name, levels, time)
    if outgoing is not None:
        tensor = tensor[outgoing.sources]
    if incoming is not None and tensor.ndim > 1:
        shape = (1, -1) + (1,) * (tensor.ndim - 2)
        tensor = tensor[:, incoming.sources] * incoming.parts.reshape(shape)
    if outgoing is not None and ".to_q." in name:  # a wider head adds up more, and divides by a larger root
        tensor = tensor * outgoing.growth**-0.5
    return tensor


def _sides(name: str, levels: Sequence[Channels], time: Channels) -> tuple[Channels | None, Channels | None]:
    """The channels of a tensor's first and second axis; None for an axis whose size stays."""
    if name.startswith("time_embedding."):
        return time, time if ".linear_2." in name else None
    if name.startswith(("conv_in.", "conv_norm_out.")):
        return levels[0], None
    if name.startswith("conv_out."):
        return None, levels[0]
    own, before = _level(name), _before(name, levels)
    here = levels[own]
    if ".time_emb_proj." in name:
        return here, time
    if ".attn2.to_k." in name or ".attn2.to_v." in name:
        return here, None
    if ".norm1." in name and ".resnets." in name:
        return before, None
    if ".conv1." in name or ".conv_shortcut." in name:
        return here, before
    if ".ff.net.0." in name:
        return here.times(HALVES_OF_GATED), here
    if ".ff.net.2." in name:
        return here, here.times(HALVES_OF_GATED // 2)
    return here, here


def _level(name: str) -> int:
    """Which level a tensor of a block belongs to."""
    found = re.match(r"(down_blocks|up_blocks|mid_block)\.(\d*)", name)
    if found is None:
        raise ValueError(f"{name} belongs to no block")
    kind, number = found.groups()
    return int(number) if kind == "down_blocks" else 3 if kind == "mid_block" else 3 - int(number)


def _before(name: str, levels: Sequence[Channels]) -> Channels:
    """What a resnet reads: the level before it, and in an up block a skip connection beside it."""
    own = _level(name)
    found = re.search(r"resnets\.(\d+)\.", name)
    number = int(found.group(1)) if found else 1
    if name.startswith("down_blocks."):
        return levels[max(own - 1, 0)] if number == 0 else levels[own]
    if name.startswith("mid_block."):
        return levels[own]
    hidden = levels[min(own + 1, 3)] if number == 0 else levels[own]
    skip = levels[max(own - 1, 0)] if number == 2 else levels[own]
    return joined([hidden, skip])
