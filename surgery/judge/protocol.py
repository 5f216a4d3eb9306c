"""The judge protocols: all that evaluation asks of a judge, and of a judge whose features it compares."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from surgery.judge.labels import Labels
from surgery.judge.verdicts import Verdicts


class Judge(Protocol):
    """Says what pictures show. The one that a person chose is used, or none: there is no stand-in."""

    @property
    def name(self) -> str:
        """What a report calls this judge."""

    @property
    def labels(self) -> Labels:
        """What it can tell."""

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Its own accuracy by question (0 to 1), as measured when it was made; empty when nobody did."""

    def score(self, pictures: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]) -> Verdicts:
        """Verdicts on pictures of values 0 to 255.

        Raises:
            JudgeError: when the pictures have a size that it was not made for.
        """


class FeatureJudge(Judge, Protocol):
    """A judge that also says how pictures look to it, for distances between sets of pictures."""

    def features(
        self, pictures: UInt8[np.ndarray[Any, Any], "pictures rows columns 3"]
    ) -> Float32[np.ndarray[Any, Any], "pictures width"]:
        """What the last layer of the judge sees of each picture.

        Raises:
            JudgeError: when the pictures have a size that it was not made for.
        """
