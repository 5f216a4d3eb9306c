"""The judge that ships: a small classifier trained on the drawings that pocket-sd was made from."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from surgery.errors import JudgeError
from surgery.judge.labels import AXES, Axis, Labels
from surgery.judge.pocket import PocketJudgeNet
from surgery.judge.verdicts import Verdicts

#: Where config.json lists the names of each axis.
LISTS: Final[Mapping[Axis, str]] = {
    "concept": "concepts",
    "style": "styles",
    "background": "backgrounds",
    "gender": "genders",
    "skin": "skins",
}
_BATCH = 256


class PocketJudge:
    """The small classifier that was trained on pocket-sd's drawings."""

    def __init__(self, name: str, config: Mapping[str, Any], network: PocketJudgeNet) -> None:
        names = {axis: tuple(config[key]) for axis, key in LISTS.items()}
        merged: Mapping[str, str] = config["merged"]
        trained, names["concept"] = names["concept"], tuple(n for n in names["concept"] if n not in merged)
        place = {concept: column for column, concept in enumerate(names["concept"])}
        self.name = name
        self.labels = Labels.by_axis(names, merged=merged)
        self.accuracy: Mapping[str, float] = config["accuracy"]
        self._size: int = config["size"]
        self._width: int = config["widths"][-1]
        self._shown_from: float = config["shown_from"]
        self._network = network
        self._columns = torch.tensor([place[merged.get(concept, concept)] for concept in trained])

    @torch.no_grad()
    def score(self, pictures: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]) -> Verdicts:
        """Verdicts on square pictures of values 0 to 255, scaled to the size that the judge was trained on.

        Raises:
            JudgeError: when the pictures are not square or no bytes.
        """
        parts = [self._probabilities(values) for values in self._values(pictures)]
        empty = {axis: np.zeros((0, len(self.labels.of(axis))), np.float32) for axis in AXES}
        columns = {axis: np.concatenate([empty[axis], *(part[axis] for part in parts)]) for axis in AXES}
        return Verdicts.of(self.labels, columns, shown_from=self._shown_from)

    @torch.no_grad()
    def features(
        self, pictures: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]
    ) -> Float32[np.ndarray[Any, Any], "pictures width"]:
        """The mean over all spots of what the heads read, of square pictures as ``score`` takes them.

        Raises:
            JudgeError: when the pictures are not square or no bytes.
        """
        parts = [self._network.features(values).cpu().numpy() for values in self._values(pictures)]
        return np.concatenate([np.zeros((0, self._width), np.float32), *parts])

    def _values(self, pictures: np.ndarray[Any, Any]) -> Iterator[Tensor]:
        """Batches of pictures as the network takes them."""
        side = pictures.shape[1]
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (side, side, 3):
            raise JudgeError(
                f"pictures of shape {pictures.shape[1:]} and type {pictures.dtype}; judge {self.name!r} "
                f"expects squares such as {(self._size, self._size, 3)} of uint8. Sample square pictures."
            )
        device = next(self._network.parameters()).device
        for start in range(0, len(pictures), _BATCH):
            part = torch.from_numpy(pictures[start : start + _BATCH]).to(device)
            values = part.permute(0, 3, 1, 2).float() / 127.5 - 1
            if side != self._size:
                values = interpolate(values, size=self._size, mode="bicubic", antialias=True).clamp(-1, 1)
            yield values

    def _probabilities(self, values: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        logits = {axis: head.cpu() for axis, head in self._network(values).items()}
        shares = {axis: head.softmax(dim=1).numpy() for axis, head in logits.items()}
        # the network splits its belief between look-alikes, which exclude each other: so add it up
        merged = torch.zeros(len(values), len(self.labels.concept))
        merged.index_add_(1, self._columns, logits["concept"].sigmoid())
        shares["concept"] = merged.clamp(max=1).numpy()
        return shares
