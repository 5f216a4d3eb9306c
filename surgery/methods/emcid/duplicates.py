"""Sources that the encoder can hardly tell apart: averaged when they agree, refused when they do not."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import ConceptError, raise_all
from surgery.methods.emcid.nouns import warning
from surgery.methods.emcid.offsets import Target
from surgery.record import Finding

_SAME_KEY = 0.98
# Distance of two offsets in lengths of the longer one: close enough to average, too far to serve both.
_AGREE, _DISAGREE = 0.5, 1.0


def reconcile(
    targets: Sequence[Target], keys: Sequence[Float[Tensor, "concepts d_in"]]
) -> tuple[list[Target], list[Finding]]:
    """The targets with those of near-duplicate sources averaged, and a finding for every such pair.

    Two sources are near-duplicates when their keys have a cosine above 0.98 in every edited layer: one key
    cannot be sent to two places.

    Args:
        targets: What Stage I found.
        keys: For each edited layer the unedited keys, one row per target.

    Raises:
        ConceptError: when near-duplicates have very different offsets; all pairs at once.
    """
    pairs = _close_pairs(keys)
    faults, findings = [], []
    group = list(range(len(targets)))
    for one, other in pairs:
        names = f"{targets[one].concept.label} and {targets[other].concept.label}"
        distance = _distance(targets[one].offset, targets[other].offset)
        if distance > _DISAGREE:
            faults.append(
                f"{names}: the encoder can hardly tell the sources apart, but they shall become different "
                "things. Keep one of them, or use templates that set them apart."
            )
        elif distance <= _AGREE:
            low, high = sorted((group[one], group[other]))
            group = [low if member == high else member for member in group]
            message = f"{names}: sources with nearly the same keys; they get the mean of their offsets."
            findings.append(warning("near-duplicate", targets[one].concept.label, message))
        else:
            message = f"{names}: sources with nearly the same keys and unlike offsets; expect a compromise."
            findings.append(warning("near-duplicate", targets[one].concept.label, message))
    raise_all(ConceptError, faults)
    means = {
        head: torch.stack(
            [target.offset for target, own in zip(targets, group, strict=True) if own == head]
        ).mean(0)
        for head in set(group)
    }
    return [
        replace(target, offset=means[head]) for target, head in zip(targets, group, strict=True)
    ], findings


def _close_pairs(keys: Sequence[Tensor]) -> list[tuple[int, int]]:
    cosines = []
    for layer in keys:
        unit = layer.double() / layer.double().norm(dim=1, keepdim=True)
        cosines.append(unit @ unit.T)
    close = torch.stack(cosines).amin(0) > _SAME_KEY
    return [(one, other) for one, other in torch.nonzero(close.triu(1)).tolist()]


def _distance(one: Tensor, other: Tensor) -> float:
    longer = max(float(one.norm()), float(other.norm()))
    return 0.0 if longer == 0 else float((one - other).norm()) / longer
