"""How concepts stand to each other: identical, doubled, in conflict, in a chain, one inside of another."""

from collections import Counter
from dataclasses import replace
from functools import reduce

from surgery.methods.emcid.nouns import Concept, warning
from surgery.methods.emcid.settings import ConceptRules
from surgery.record import Finding


def settle(
    concepts: list[Concept], rules: ConceptRules, faults: list[str], findings: list[Finding]
) -> list[Concept]:
    """The concepts that remain: identities left out, doubles merged, conflicts refused or decided.

    What was done is appended to ``findings``, what cannot be decided to ``faults``.
    """
    concepts = _merged(_without_identities(concepts, findings), findings)
    return _without_conflicts(concepts, rules, faults, findings)


def related(concepts: list[Concept]) -> list[Finding]:
    """Chains, names inside of names, and shared last tokens: all allowed, all worth knowing."""
    return [*_chains(concepts), *_contained(concepts), *_shared_ends(concepts)]


def _without_identities(concepts: list[Concept], findings: list[Finding]) -> list[Concept]:
    kept = []
    for concept in concepts:
        if concept.goal_ids == concept.source_ids and not concept.edit.images:
            message = "the destination is the source itself; skipped."
            findings.append(Finding(kind="identity", subject=concept.label, message=message))
        else:
            kept.append(concept)
    return kept


def _merged(concepts: list[Concept], findings: list[Finding]) -> list[Concept]:
    alike: dict[tuple[object, ...], list[Concept]] = {}
    for concept in concepts:
        key = (concept.source_ids, concept.goal_ids, concept.edit.images, concept.edit.blend)
        alike.setdefault(key, []).append(concept)
        if len(alike[key]) > 1:
            message = "given twice; merged into one with the templates of both and the larger weight."
            findings.append(Finding(kind="duplicate", subject=concept.label, message=message))
    return [reduce(_joined, sorted(group, key=_by_settings)) for group in alike.values()]


def _by_settings(concept: Concept) -> tuple[tuple[str, ...], int, float]:
    """An order of doubles that does not depend on where they stand."""
    return concept.edit.templates, concept.edit.seed, concept.edit.weight


def _joined(one: Concept, other: Concept) -> Concept:
    new = [index for index, template in enumerate(other.edit.templates) if template not in one.edit.templates]
    edit = replace(
        one.edit,
        templates=(*one.edit.templates, *(other.edit.templates[index] for index in new)),
        weight=max(one.edit.weight, other.edit.weight),
    )
    goals = one.goals
    if goals is not None and other.goals is not None:
        goals = (*goals, *(other.goals[index] for index in new))
    spans = (*one.spans, *(other.spans[index] for index in new))
    parts = tuple(_joined(part, twin) for part, twin in zip(one.parts, other.parts, strict=True))
    return replace(one, edit=edit, spans=spans, goals=goals, parts=parts)


def _without_conflicts(
    concepts: list[Concept], rules: ConceptRules, faults: list[str], findings: list[Finding]
) -> list[Concept]:
    by_source: dict[tuple[int, ...], list[Concept]] = {}
    for concept in concepts:
        by_source.setdefault(concept.source_ids, []).append(concept)
    dropped: set[int] = set()
    for group in by_source.values():
        if len(group) == 1:
            continue
        names = ", ".join(concept.label for concept in group)
        if rules.conflicts == "refuse":
            faults.append(f"one source is edited in several ways ({names}); expected one. Keep one of them.")
        else:
            dropped.update(id(concept) for concept in group[:-1])
            message = f"{names}: one source in several ways; the last one wins."
            findings.append(warning("conflict", group[-1].label, message))
    return [concept for concept in concepts if id(concept) not in dropped]


def _chains(concepts: list[Concept]) -> list[Finding]:
    sources = {concept.source_ids: concept for concept in concepts}
    found = []
    for concept in concepts:
        following = None if concept.goal_ids is None else sources.get(concept.goal_ids)
        if following is not None and following is not concept:
            message = (
                f"its destination is the source of {following.label}; it gets what the unedited model draws "
                "for it."
            )
            found.append(warning("chain", concept.label, message))
    return found


def _contained(concepts: list[Concept]) -> list[Finding]:
    sources = {concept.source_ids: concept for concept in concepts}
    found = []
    for long in concepts:
        for part in sorted(_proper_parts(long.source_ids) & sources.keys()):
            ends = " and ends it" if long.source_ids[-1] == part[-1] else ""
            message = (
                f"its name lies inside of {long.label}{ends}; editing it may change the longer name too."
            )
            found.append(warning("contained", sources[part].label, message))
    return found


def _proper_parts(ids: tuple[int, ...]) -> set[tuple[int, ...]]:
    count = len(ids)
    parts = {ids[start:end] for start in range(count) for end in range(start + 1, count + 1)}
    return parts - {ids}


def _shared_ends(concepts: list[Concept]) -> list[Finding]:
    count = Counter(concept.source_ids[-1] for concept in concepts)
    return [
        Finding(
            kind="shared-end",
            subject=concept.label,
            message=f"its last token is shared by {count[concept.source_ids[-1]]} of the concepts.",
        )
        for concept in concepts
        if count[concept.source_ids[-1]] > 1
    ]
