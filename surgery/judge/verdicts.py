"""What a judge says about some pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from surgery.judge.labels import Axis, Labels, Trait


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Probabilities for each picture, one array for each axis with the columns of ``labels``.

    On every axis but the first each row sums to 1. Concepts are independent of each other (a picture may show
    two, or none), unless the labels are ``exclusive``: then they share one probability of 1 (a softmax), too.
    An axis that the judge does not know has no columns.

    Attributes:
        shown_from: A concept counts as shown from this probability on; means nothing to exclusive ones.
    """

    labels: Labels
    concept: Float[np.ndarray[Any, Any], "pictures concepts"]
    style: Float[np.ndarray[Any, Any], "pictures styles"]
    background: Float[np.ndarray[Any, Any], "pictures backgrounds"]
    gender: Float[np.ndarray[Any, Any], "pictures genders"]
    skin: Float[np.ndarray[Any, Any], "pictures skins"]
    shown_from: float = 0.5

    @classmethod
    def of(
        cls,
        labels: Labels,
        columns: Mapping[Axis, np.ndarray[Any, Any]],
        *,
        shown_from: float = 0.5,
    ) -> "Verdicts":
        """Verdicts from the probabilities of each axis that the judge knows; the others have no columns."""
        none = np.zeros((len(columns["concept"]), 0), np.float32)
        return cls(
            labels=labels,
            concept=columns["concept"],
            style=columns.get("style", none),
            background=columns.get("background", none),
            gender=columns.get("gender", none),
            skin=columns.get("skin", none),
            shown_from=shown_from,
        )

    def __len__(self) -> int:
        return len(self.concept)

    def probability(self, trait: Trait) -> Float[np.ndarray[Any, Any], " pictures"]:
        """How likely each picture shows a trait, 0 to 1.

        Raises:
            JudgeError: when the judge does not know the trait.
        """
        values: np.ndarray[Any, Any] = getattr(self, trait.axis)[:, self.labels.column(trait)]
        return values

    def shows(self, trait: Trait) -> Bool[np.ndarray[Any, Any], " pictures"]:
        """Whether each picture shows a trait: a concept by its probability, else the likeliest name.

        Raises:
            JudgeError: when the judge does not know the trait.
        """
        if trait.axis == "concept" and not self.labels.exclusive:
            return np.asarray(self.probability(trait) >= self.shown_from)
        column = self.labels.column(trait)
        return np.asarray(getattr(self, trait.axis).argmax(axis=1) == column)

    def likeliest(self, axis: Axis = "concept") -> list[str]:
        """The likeliest name on one axis for each picture."""
        names = self.labels.of(axis)
        return [names[column] for column in getattr(self, axis).argmax(axis=1)]
