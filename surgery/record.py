"""Plain data that audit, evaluation and report exchange, and its one spelling as text."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

Severity: TypeAlias = Literal["info", "warning", "fault"]


def canonical_json(value: JSON) -> str:
    """The one JSON text of ``value``, for digests: sorted keys, no spaces, no NaN.

    Raises:
        TypeError: when ``value`` holds something that is no JSON.
        ValueError: when it holds a number that is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_digest(value: JSON) -> str:
    """The sha256 of ``value``'s canonical JSON, lower-case hexadecimal.

    Raises:
        TypeError: when ``value`` holds something that is no JSON.
        ValueError: when it holds a number that is not finite.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file, lower-case hexadecimal; read in pieces.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was noticed about one subject (a tensor, an edit, a file)."""

    kind: str
    subject: str
    message: str
    severity: Severity = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A measured number with its 95 % interval ``[low, high]`` and the number of samples behind it."""

    name: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one edit of a recipe asks of its method.

    Attributes:
        method: Name of the method, the edit's only key in the recipe.
        meaning: Everything that the edit's result depends on besides the base.
        sites: Canonical names of the tensors that may change.
        batches: Numbers of concepts worked on together; a killed run loses one batch.
        cost: Estimated operations by stage, in units that the key names (``unet_forwards``, …).
        masks: Whether weights are taken away rather than changed by an addition; the two do not mix.
    """

    method: str
    meaning: Mapping[str, JSON]
    sites: tuple[str, ...]
    batches: tuple[int, ...]
    cost: Mapping[str, int] = field(default_factory=dict)
    masks: bool = False
