"""A judge that is a local CLIP: it holds each picture against names that a person gives (zero-shot)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from surgery.errors import JudgeError, raise_all
from surgery.judge.batches import Prepare, prepared
from surgery.judge.labels import AXES, Axis, Labels
from surgery.judge.verdicts import Verdicts

_TEXTS: Final = 256  # prompts encoded at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What a judge without names of its own is asked.

    Attributes:
        concepts: The names that a picture's concept is chosen from; at least two.
        others: Names on other axes, such as gender; at least two on each.
        template: The prompt that every name is put into, with one ``{}``.
    """

    concepts: tuple[str, ...]
    others: Mapping[Axis, tuple[str, ...]] = field(default_factory=dict)
    template: str = "a photo of {}"

    def names(self) -> dict[Axis, tuple[str, ...]]:
        """All names by axis."""
        return {axis: self.concepts if axis == "concept" else self.others.get(axis, ()) for axis in AXES}

    def faults(self) -> list[str]:
        """Everything that keeps these questions from being asked."""
        found = []
        if self.template.count("{}") != 1:
            found.append(
                f"template {self.template!r} has {self.template.count('{}')} places for a name; "
                "expected one '{}'."
            )
        for axis, names in self.names().items():
            if len(names) == 1 or (axis == "concept" and not names):
                found.append(
                    f"{len(names)} names of {axis}; expected at least two to choose from. Add what else a "
                    "picture may show."
                )
            doubled = sorted({name for name in names if names.count(name) > 1})
            found += [f"{axis} {name!r} is named twice; expected each once." for name in doubled]
        unknown = sorted(set(self.others) - set(AXES[1:]))
        found += [f"{axis!r} is no axis; expected one of {', '.join(AXES[1:])}." for axis in unknown]
        return found


class ClipJudge:
    """Chooses one of the given names for each picture, on each axis by itself.

    The probabilities of an axis are CLIP's softmax over its names. They depend on which names there are, and
    a picture always shows one: the likeliest.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        prepare: Prepare,
        questions: Questions,
        *,
        accuracy: Mapping[str, float] | None = None,
    ) -> None:
        raise_all(JudgeError, questions.faults())
        self.name = name
        self.accuracy: Mapping[str, float] = dict(accuracy or {})
        names = questions.names()
        self.labels = Labels.by_axis(names, exclusive=True)
        self._model, self._prepare = model, prepare
        prompts = {
            axis: [questions.template.replace("{}", name) for name in names[axis]]
            for axis in AXES
            if names[axis]
        }
        raise_all(JudgeError, _too_long(prompts, tokenizer, model.config.text_config.max_position_embeddings))
        self._texts = {axis: _encoded(texts, tokenizer, model) for axis, texts in prompts.items()}

    @torch.no_grad()
    def score(self, pictures: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]) -> Verdicts:
        """Verdicts on pictures of values 0 to 255 of any size, made fit by the model's own preprocessing.

        Raises:
            JudgeError: when the pictures are no bytes in three colours.
        """
        seen = normalize(torch.from_numpy(self.features(pictures)))
        sharpness = self._model.logit_scale.exp().float().cpu()
        columns = {
            axis: (sharpness * seen @ texts.T).softmax(dim=1).numpy() for axis, texts in self._texts.items()
        }
        return Verdicts.of(self.labels, columns)

    @torch.no_grad()
    def features(
        self, pictures: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]
    ) -> Float32[np.ndarray[Any, Any], "pictures width"]:
        """CLIP's image embedding of each picture: projected, not scaled to length 1.

        Raises:
            JudgeError: when the pictures are no bytes in three colours.
        """
        rows = [np.zeros((0, self._model.config.projection_dim), np.float32)]
        device = next(self._model.parameters()).device
        for values in prepared(pictures, self._prepare, self.name, device):
            pooled = self._model.vision_model(pixel_values=values).pooler_output
            rows.append(self._model.visual_projection(pooled).float().cpu().numpy())
        return np.concatenate(rows)


@torch.no_grad()
def _encoded(prompts: list[str], tokenizer: Any, model: Any) -> Tensor:
    """The embeddings of prompts (n, width), each of length 1."""
    device, rows = next(model.parameters()).device, []
    for start in range(0, len(prompts), _TEXTS):
        tokens = tokenizer(prompts[start : start + _TEXTS], padding=True, return_tensors="pt").to(device)
        pooled = model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        rows.append(model.text_projection(pooled).float().cpu())
    return normalize(torch.cat(rows))


def _too_long(prompts: Mapping[Axis, list[str]], tokenizer: Any, room: int) -> list[str]:
    lengths = {text: len(tokenizer(text)["input_ids"]) for texts in prompts.values() for text in texts}
    return [
        f"prompt {text!r} takes {length} tokens; this CLIP reads {room}. Shorten the name or the template."
        for text, length in lengths.items()
        if length > room
    ]
