"""The combinations of attributes' values that a concept's shares speak of, and what is wrong with them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import TypeAlias

from surgery.recipe.debias import Joint, Mixed
from surgery.recipe.emcid import Concept

Values: TypeAlias = tuple[tuple[str, str], ...]
"""(attribute, value) in the order of the concept's attributes."""

_SLACK = 1e-3
_MOST = 64


def combinations(concept: Concept) -> dict[Values, float]:
    """Each combination with its share: the product of its values' shares, or what ``joint`` says.

    Combinations that are never to be drawn are left out.
    """
    shares = concept.shares or {}
    if concept.joint is not None:
        total = sum(joint.share for joint in concept.joint)
        found = {_ordered(joint.values, shares): joint.share / total for joint in concept.joint}
    else:
        found = {
            tuple(zip(shares, values, strict=True)): prod(
                shares[attribute][value] for attribute, value in zip(shares, values, strict=True)
            )
            for values in product(*shares.values())
        }
    return {values: share for values, share in found.items() if share > 0}


def mixture(concept: Concept) -> tuple[float, ...] | None:
    """The weights that the concept gives itself, in the order of its combinations."""
    if concept.mixture is None:
        return None
    given = {_ordered(mixed.values, concept.shares or {}): mixed.weight for mixed in concept.mixture}
    total = sum(given.values())
    return tuple(given[values] / total for values in combinations(concept))


def share_faults(concept: Concept, kind: str) -> Iterator[str]:
    """What is wrong with a concept's shares, each by itself."""
    if kind != "debias":
        for key in ("shares", "joint", "mixture"):
            if getattr(concept, key) is not None:
                yield f"{key!r} belongs to kind 'debias', and the kind is {kind!r}. Change one of them."
        return
    if concept.shares is None:
        yield "kind 'debias' needs 'shares', such as {gender: {woman: 0.5, man: 0.5}}. Add them."
        return
    for key in ("destination", "images"):
        if getattr(concept, key):
            yield f"kind 'debias' has no {key!r}: its destinations follow from 'shares'. Take it out."
    yield from _joint_faults(concept)


def _joint_faults(concept: Concept) -> Iterator[str]:
    shares = concept.shares or {}
    found = list(_listed_faults("joint", concept.joint or (), shares))
    total = sum(joint.share for joint in concept.joint or ())
    if concept.joint is not None and abs(total - 1) > _SLACK:
        found.append(f"the shares of 'joint' add up to {total:g}, expected 1. Mend them.")
    found += _listed_faults("mixture", concept.mixture or (), shares)
    yield from found
    if found:
        return
    wanted = combinations(concept)
    if not 2 <= len(wanted) <= _MOST:
        yield f"the shares leave {len(wanted)} combinations of values, expected 2 to {_MOST}. Change them."
    if concept.mixture is not None:
        given = {_ordered(mixed.values, shares) for mixed in concept.mixture}
        if given != set(wanted):
            yield "'mixture' has other combinations of values than the shares leave. Give each one a weight."
        weight = sum(mixed.weight for mixed in concept.mixture)
        if abs(weight - 1) > _SLACK:
            yield f"the weights of 'mixture' add up to {weight:g}, expected 1. Mend them."


def _listed_faults(
    key: str, listed: Sequence[Joint | Mixed], shares: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    seen = set()
    for entry in listed:
        text = ", ".join(entry.values.values())
        if set(entry.values) != set(shares):
            wanted = ", ".join(shares)
            yield f"{key!r} has an entry ({text}) of other attributes than {wanted}. Name each of them."
            continue
        for attribute, value in entry.values.items():
            if value not in shares[attribute]:
                known = ", ".join(shares[attribute])
                yield f"{key!r} has {attribute} {value!r}, and 'shares' has {known}. Change one of them."
        values = _ordered(entry.values, shares)
        if values in seen:
            yield f"{key!r} has {text} twice. Keep one of them."
        seen.add(values)


def _ordered(values: Mapping[str, str], shares: Mapping[str, Mapping[str, float]]) -> Values:
    return tuple((attribute, values[attribute]) for attribute in shares)
