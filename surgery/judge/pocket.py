"""The network of pocket-judge: one small residual trunk, one head for each thing a picture can show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEADS = ("concept", "style", "background", "gender", "skin")


@dataclass(frozen=True, slots=True, kw_only=True)
class PocketJudgeConfig:
    """Sizes of the network.

    Attributes:
        widths: Channels of the four stages; each halves the picture.
        classes: Logits of each head in `HEADS`. `concept` counts the "none" logit, which is the last.
    """

    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    classes: Mapping[str, int]


class Residual(nn.Module):
    """Two 3×3 convolutions with batch norm around a projected shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, inputs, height, width) → (n, outputs, height / stride, width / stride)."""
        hidden = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(hidden)))


class PocketJudgeNet(nn.Module):
    """Classifies a picture by concept (several may be present), style, background, gender and skin tone."""

    def __init__(self, config: PocketJudgeConfig) -> None:
        super().__init__()
        first, *others = config.widths
        self.stem = nn.Sequential(nn.Conv2d(3, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        stages = [Residual(first, first, 1)]
        for inputs, outputs in zip(config.widths, others, strict=False):
            stages.append(Residual(inputs, outputs, 2))
        self.stages = nn.Sequential(*stages)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.widths[-1], config.classes[name]) for name in HEADS}
        )

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Pictures (n, 3, height, width) in [−1, 1] → logits (n, classes) by head.

        The concept head is read through a sigmoid for each concept and for "none" (last), the others through
        a softmax. It looks at every spot by itself, and the best spots count (log-mean-exp): of two concepts
        neither is diluted by the other. The other heads look at the mean of all spots.
        """
        spots = self._spots(pictures)
        whole = spots.mean(dim=1)
        logits = {name: head(whole) for name, head in self.heads.items() if name != "concept"}
        best = torch.logsumexp(self.heads["concept"](spots), dim=1) - math.log(spots.shape[1])
        return {"concept": best, **logits}

    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (n, 3, height, width) in [−1, 1] → the mean of all spots (n, width), before any head."""
        return self._spots(pictures).mean(dim=1)

    def _spots(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(pictures))
        return features.flatten(2).transpose(1, 2)
