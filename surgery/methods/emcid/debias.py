"""Debiasing as recipes ask for it: target shares to groups, and found mixtures back into the entry."""

from collections.abc import Mapping, Sequence
from typing import Final

from surgery.errors import MethodError
from surgery.methods import Group
from surgery.recipe import Concept, Emcid, Mixed
from surgery.recipe.combinations import Values, combinations, mixture
from surgery.record import JSON

# Of many lengths, with the name in many places: with three short ones a fifth of the change did not arrive in
# longer prompts.
DEBIAS_TEMPLATES: Final = (
    "a {}",
    "here is a {}",
    "a photo of a {}",
    "the picture shows a {}",
    "a simple image of a {}",
    "a close up of a {}",
)


def groups_of(concept: Concept, entry: Emcid) -> tuple[Group, ...]:
    """The combinations of values that a concept is to show; none unless it is debiased.

    Weights are the concept's own mixture, or its shares where none is known yet.
    """
    if concept.shares is None:
        return ()
    shares = combinations(concept)
    weights = mixture(concept) or tuple(shares.values())
    return tuple(
        Group(values=values, phrase=_phrase(concept.source, values, entry), share=share, weight=weight)
        for (values, share), weight in zip(shares.items(), weights, strict=True)
    )


def _phrase(source: str, values: Values, entry: Emcid) -> str:
    for _, value in values:
        source = entry.debias.phrases.get(value, f"{value} {{}}").replace("{}", source)
    return source


def is_debiasing(entry: Emcid) -> bool:
    """Whether any of the entry's concepts has target shares."""
    return any(concept.shares is not None for concept in entry.concepts)


def untuned(entry: Emcid) -> dict[str, tuple[Group, ...]]:
    """The groups of each debiased concept whose mixture is still to be found, by its source."""
    if entry.debias.tuning == "none":
        return {}
    return {
        concept.source: groups_of(concept, entry)
        for concept in entry.concepts
        if concept.shares is not None and concept.mixture is None
    }


def refuse_untuned(entry: Emcid) -> None:
    """Refuse an entry whose mixtures need pictures that nobody drew.

    Raises:
        MethodError: naming its concepts.
    """
    missing = untuned(entry)
    if missing:
        raise MethodError(
            f"{', '.join(missing)}: the mixture is to be tuned by pictures, which a method alone does not "
            "draw; expected one for each. Use 'surgery run', give a 'mixture', or set debias.tuning to "
            "distance."
        )


def with_mixtures(entry: Emcid, found: Mapping[str, Sequence[float]]) -> Emcid:
    """The entry with the mixtures of some sources filled in, weights in the order of their groups."""
    concepts = tuple(
        concept.model_copy(update={"mixture": _mixed(concept, entry, found[concept.source])})
        if concept.source in found and concept.shares is not None
        else concept
        for concept in entry.concepts
    )
    return entry.model_copy(update={"concepts": concepts})


def _mixed(concept: Concept, entry: Emcid, weights: Sequence[float]) -> tuple[Mixed, ...]:
    groups = groups_of(concept, entry)
    return tuple(
        Mixed(values=dict(group.values), weight=weight) for group, weight in zip(groups, weights, strict=True)
    )


def asked_as(phrase: str, entry: Emcid) -> str:
    """A phrase as it stands in prompts."""
    return entry.debias.asked_as.replace("{}", phrase)


def preserved(entry: Emcid) -> tuple[str, ...]:
    """What the entry preserves, with the phrases that name a group outright unless it says otherwise."""
    explicit = [
        asked_as(group.phrase, entry)
        for concept in entry.concepts
        for group in groups_of(concept, entry)
        if entry.debias.keep_explicit
    ]
    return tuple(dict.fromkeys([*entry.preserve, *explicit]))


def debias_json(entry: Emcid) -> dict[str, JSON]:
    """What the mixtures depend on besides the edits themselves."""
    plain: dict[str, JSON] = entry.debias.model_dump(mode="json", exclude={"phrases", "keep_explicit"})
    goals: dict[str, JSON] = {
        concept.source: [[*(value for _, value in g.values), g.share] for g in groups_of(concept, entry)]
        for concept in entry.concepts
        if concept.shares is not None
    }
    return {**plain, "goals": goals}
