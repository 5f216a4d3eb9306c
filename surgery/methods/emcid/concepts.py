"""Edits checked as a whole and turned into tokens; all faults are reported at once."""

from collections.abc import Sequence
from dataclasses import replace

from surgery.anatomy import Span, Tokenizer, fill, locate, locate_nothing, tokenize
from surgery.errors import ConceptError, raise_all
from surgery.methods.emcid.nouns import Concept, ConceptEdit, warning
from surgery.methods.emcid.relations import related, settle
from surgery.methods.emcid.settings import ConceptRules
from surgery.record import Finding

OBJECT_TEMPLATES = ("An image of {}", "A photo of {}", "{}")
STYLE_TEMPLATES = ("painting by {}", "artwork by {}", "style of {}")
# Where nothing is named. An empty destination leaves the template standing alone ("A photo of"), which asks
# for no concept at all; a superclass, given by hand, keeps more of the picture.
_NEUTRAL: dict[str, str] = {"forget": "", "style": "art"}
_SLACK = 1e-6  # of weights that add up to 1


def prepare(
    edits: Sequence[ConceptEdit],
    tokenizer: Tokenizer,
    *,
    limit: int = 77,
    rules: ConceptRules | None = None,
) -> tuple[tuple[Concept, ...], tuple[Finding, ...]]:
    """The edits as tokens in their order, and what was noticed about them.

    Edits whose source is their destination are skipped, equal ones merged; both are noted. Destinations
    always mean the unedited model, so that A → B and B → C are well defined together.

    Raises:
        ConceptError: all faults at once: placeholders, empty phrases, merged spans (by the rules), prompts
            that are too long, missing destinations or files, and sources with several destinations.
    """
    rules = rules or ConceptRules()
    faults: list[str] = []
    findings: list[Finding] = []
    concepts: list[Concept] = []
    if not edits:
        faults.append("there are no concepts to edit; expected at least one.")
    for edit in edits:
        resolved = _resolved(edit)
        own = _own_faults(resolved)
        concept = None if own else _tokenised(resolved, tokenizer, limit, rules, own, findings)
        faults += [f"{edit.label}: {fault}" for fault in own]
        if concept is not None:
            concepts.append(concept)
    concepts = settle(concepts, rules, faults, findings)
    raise_all(ConceptError, faults)
    return tuple(concepts), (*findings, *related(concepts))


def _resolved(edit: ConceptEdit) -> ConceptEdit:
    templates = edit.templates or (STYLE_TEMPLATES if edit.kind == "style" else OBJECT_TEMPLATES)
    neutral = None if edit.blend else _NEUTRAL.get(edit.kind)
    destination = neutral if edit.destination is None else edit.destination
    return replace(edit, templates=templates, destination=destination)


def _own_faults(edit: ConceptEdit) -> list[str]:
    faults = []
    if not edit.source.strip():
        faults.append(f"the source is {edit.source!r}; expected a name.")
    if edit.blend:
        faults += _blend_faults(edit)
    elif edit.destination is None and not edit.images:
        faults.append(f"{edit.kind} has neither a destination nor pictures; expected one of them.")
    if edit.destination is not None and not edit.destination.strip() and edit.kind != "forget":
        faults.append(
            f"the destination of {edit.kind} is empty; expected a name. To make the model forget, say so: "
            "kind forget takes the empty prompt."
        )
    if not edit.weight > 0:
        faults.append(f"the weight is {edit.weight}; expected a positive number. Leave the edit out instead.")
    faults += [
        f"picture {str(path)!r} is no file; expected one." for path in edit.images if not path.is_file()
    ]
    for template in edit.templates:
        try:
            fill(template, "")
        except ConceptError as fault:
            faults.append(str(fault))
    return faults


def _blend_faults(edit: ConceptEdit) -> list[str]:
    faults = []
    if edit.destination is not None or edit.images:
        faults.append("it has several destinations and another one or pictures; expected the several alone.")
    for phrase, _ in edit.blend:
        if phrase.split() == edit.source.split() or not phrase.strip():
            faults.append(
                f"the destination {phrase!r} says no more than the source; expected a phrase of its own."
            )
    total = sum(weight for _, weight in edit.blend)
    if not abs(total - 1) <= _SLACK:
        faults.append(f"the weights of its destinations add up to {total:g}; expected 1.")
    return faults


def _tokenised(
    edit: ConceptEdit,
    tokenizer: Tokenizer,
    limit: int,
    rules: ConceptRules,
    faults: list[str],
    findings: list[Finding],
) -> Concept | None:
    if edit.blend:
        return _blended(edit, tokenizer, limit, rules, faults, findings)
    strict = rules.merged_spans == "refuse"
    spans: list[Span] = []
    goals: list[Span] = []
    for template in edit.templates:
        try:
            spans.append(locate(tokenizer, template, edit.source, limit=limit, strict=strict))
            if edit.destination is not None:
                goals.append(_goal(edit.destination, template, tokenizer, limit))
        except ConceptError as fault:
            faults.append(str(fault))
    if faults:
        return None
    findings += _span_findings(edit, spans, limit)
    return Concept(
        edit=edit,
        spans=tuple(spans),
        goals=None if edit.destination is None else tuple(goals),
        source_ids=_bare(edit.source, tokenizer),
        goal_ids=None if edit.destination is None else _bare(edit.destination, tokenizer),
    )


def _blended(
    edit: ConceptEdit,
    tokenizer: Tokenizer,
    limit: int,
    rules: ConceptRules,
    faults: list[str],
    findings: list[Finding],
) -> Concept | None:
    parts, notes = [], findings
    for phrase, _ in edit.blend:
        single = replace(edit, destination=phrase, blend=())
        parts.append(_tokenised(single, tokenizer, limit, rules, faults, notes))
        if faults:
            return None
        notes = []  # the source's spans are the same in every part: noted once
    made = tuple(part for part in parts if part is not None)
    first = made[0]
    return replace(first, edit=edit, goals=None, goal_ids=None, parts=made)


def _bare(phrase: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    return tokenize(tokenizer, phrase).ids[1:-1]


def _goal(phrase: str, template: str, tokenizer: Tokenizer, limit: int) -> Span:
    if not phrase.strip():
        return locate_nothing(tokenizer, template, limit=limit)
    # where the destination ends inside a longer token does not matter: nothing is steered there
    return locate(tokenizer, template, phrase, limit=limit, strict=False)


def _span_findings(edit: ConceptEdit, spans: list[Span], limit: int) -> list[Finding]:
    found = []
    for template, span in zip(edit.templates, spans, strict=True):
        if span.merged:
            message = (
                f"in {template!r} the phrase shares a token with the template; the token that holds its "
            )
            found.append(warning("merged-span", edit.label, message + "end is steered."))
        if span.lost:
            message = (
                f"{template!r} is {span.lost} tokens longer than the {limit} that are read; its end is cut."
            )
            found.append(warning("long-prompt", edit.label, message))
    return found
