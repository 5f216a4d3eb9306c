"""A judge that is an image classifier of transformers in a local folder."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from surgery.anatomy import reading_inputs
from surgery.errors import JudgeError
from surgery.judge.batches import Prepare, prepared
from surgery.judge.synonyms import labels_of
from surgery.judge.verdicts import Verdicts

_UNNAMED: Final = re.compile(r"LABEL_\d+")
_HEAD: Final = "head"


class ClassifierJudge:
    """Names each picture by the classes of its model.

    The classes exclude each other, and a picture shows the likeliest (top-1, as the field counts with
    ResNet-50); it always shows one. Only a model that was trained for several labels at once
    (``problem_type: multi_label_classification``) sees each class by itself, from one half on.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        prepare: Prepare,
        classes: Mapping[int, str],
        *,
        exclusive: bool = True,
        accuracy: Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self.accuracy: Mapping[str, float] = dict(accuracy or {})
        labels = [classes[number] for number in sorted(classes)]
        if all(_UNNAMED.fullmatch(label) for label in labels):
            raise JudgeError(
                f"judge {name!r} has {len(labels)} classes without names ({labels[0]!r} is the first); "
                "expected what each shows. Write the names into 'id2label' of its config.json."
            )
        told, columns = labels_of(labels)
        self.labels = replace(told, exclusive=exclusive)
        self._columns = torch.tensor(columns)
        self._model, self._prepare = model, prepare
        self._head = _last_linear(model, len(labels), name)

    @torch.no_grad()
    def score(self, pictures: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]) -> Verdicts:
        """Verdicts on pictures of values 0 to 255 of any size, made fit by the model's own preprocessing.

        Raises:
            JudgeError: when the pictures are no bytes in three colours.
        """
        rows = [self._probabilities(values) for values in self._values(pictures)]
        concept = np.concatenate([np.zeros((0, len(self.labels.concept)), np.float32), *rows])
        return Verdicts.of(self.labels, {"concept": concept})

    @torch.no_grad()
    def features(
        self, pictures: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]
    ) -> Float32[np.ndarray[Any, Any], "pictures width"]:
        """What the last linear layer reads of each picture; the mean of all spots where it reads each.

        Raises:
            JudgeError: when the pictures are no bytes in three colours.
        """
        rows = [np.zeros((0, self._head.in_features), np.float32)]
        with reading_inputs({_HEAD: self._head}) as seen:
            for values in self._values(pictures):
                self._model(pixel_values=values)
                spots = seen[_HEAD].reshape(len(values), -1, self._head.in_features)
                rows.append(spots.mean(dim=1).float().cpu().numpy())
        return np.concatenate(rows)

    def _values(self, pictures: np.ndarray[Any, Any]) -> Any:
        return prepared(pictures, self._prepare, self.name, next(self._model.parameters()).device)

    def _probabilities(self, values: Tensor) -> np.ndarray[Any, Any]:
        logits = self._model(pixel_values=values).logits.float().cpu()
        shares = logits.softmax(dim=1) if self.labels.exclusive else logits.sigmoid()
        summed = torch.zeros(len(values), len(self.labels.concept)).index_add_(1, self._columns, shares)
        return summed.clamp(max=1).numpy()


def _last_linear(model: nn.Module, classes: int, name: str) -> nn.Linear:
    found = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == classes]
    if not found:
        raise JudgeError(
            f"judge {name!r} has no linear layer that gives its {classes} classes; expected one at its end, "
            "whose input is what it sees in a picture. Use another classifier."
        )
    return found[-1]
