"""The evaluation suites: which prompts each one draws, by the protocols of the field."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from types import MappingProxyType
from typing import Final

from surgery.errors import JudgeError, nearest, raise_all
from surgery.evaluate.changes import Change, Probe, Section
from surgery.evaluate.material import Edited, Material
from surgery.evaluate.pictures import Sampling
from surgery.judge import Trait
from surgery.record import Finding

# more than the 77 tokens of a CLIP encoder in any vocabulary
_FILLER: Final = "a nice picture, " * 40
# contents that each edited style is tried on, and styles that each content is
_CONTENTS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A named set of questions about an edit; ``sections`` makes them of what there is.

    One that is ``balanced`` asks for the shares of groups as well, which ``measure_balance`` finds.
    """

    name: str
    says: str
    sections: Callable[[Material, Sampling], list[Section]]
    balanced: bool = False


def sections_of(
    names: Iterable[str], material: Material, sampling: Sampling
) -> tuple[list[Section], tuple[Finding, ...]]:
    """The sections of some suites, and those with nothing to measure.

    A section that two suites ask for is measured once.

    Raises:
        JudgeError: when there is no suite of a name, or nothing to measure for one; all faults at once.
    """
    found: dict[str, Section] = {}
    empty, faults = [], []
    for name in names:
        fault = suite_fault(name)
        if fault is not None:
            faults.append(fault)
            continue
        asked = SUITES[name].sections(material, sampling)
        own = [section for section in asked if section.items]
        if not own:
            what = SUITES[name].says
            missing = "a debiased phrase" if SUITES[name].balanced else "more words"
            faults.append(f"suite {name!r} has nothing to measure here: {what} needs {missing}.")
        found.update({section.name: section for section in own})
        empty += [_empty(section.name) for section in asked if not section.items]
    raise_all(JudgeError, faults)
    return list(found.values()), tuple(dict.fromkeys(empty))


def suite_fault(name: str) -> str | None:
    """Why there is no suite of that name, with the nearest one, or None when there is."""
    if name in SUITES:
        return None
    guess = nearest(name, SUITES)
    hint = f"Did you mean {guess!r}?" if guess else f"There are: {', '.join(SUITES)}."
    return f"no suite {name!r}. {hint}"


def _empty(name: str) -> Finding:
    message = "the words of this checkpoint and the edits leave nothing to look at; --words may say more"
    return Finding(kind="not-measured", subject=name, message=message)


def _update(material: Material, sampling: Sampling) -> list[Section]:
    return [
        _section("efficacy", material, sampling, (e.change(e.subject, e.taught) for e in material.edited)),
        _generalisation(material, sampling),
        *_aliases(material, sampling),
        _held_out(material, sampling),
    ]


def _erase(material: Material, sampling: Sampling) -> list[Section]:
    return [_generalisation(material, sampling), *_aliases(material, sampling), _held_out(material, sampling)]


def _generalisation(material: Material, sampling: Sampling) -> Section:
    changes = (edited.change(edited.subject, edited.unseen) for edited in material.edited)
    return _section("generalisation", material, sampling, changes)


def _aliases(material: Material, sampling: Sampling) -> list[Section]:
    return [
        _section(
            "aliases", material, sampling, (e.change(a, e.unseen) for e in material.edited for a in e.aliases)
        ),
        _section(
            "aliases given",
            material,
            sampling,
            (e.change(a, e.unseen) for e in material.edited for a in e.given),
        ),
    ]


def _held_out(material: Material, sampling: Sampling) -> Section:
    return _section("held out", material, sampling, probes=map(_probe, material.held_out))


def _neighbours(material: Material, sampling: Sampling) -> list[Section]:
    near = dict.fromkeys(name for names in material.neighbours.values() for name in names)
    return [_section("neighbours", material, sampling, probes=map(_probe, near))]


def _debias(material: Material, sampling: Sampling) -> list[Section]:
    return [_held_out(material, sampling)] if material.balances else []


def _quality(material: Material, sampling: Sampling) -> list[Section]:
    return [replace(_held_out(material, sampling), name="quality", compared=True)]


def _composition(material: Material, sampling: Sampling) -> list[Section]:
    if not material.held_out:
        return []
    changes, probes = [], []
    partners = cycle(material.held_out)
    for edited, partner in zip(_objects(material.edited), partners, strict=False):
        pairs = tuple(t.replace("{}", f"{{}} and {partner}") for t in material.unseen)
        changes.append(edited.change(edited.subject, pairs, beside=Trait(partner)))
        behind = tuple(t.replace("{}", f"{edited.subject} and {{}}") for t in material.unseen)
        probes.append(Probe(subject=partner, shows=Trait(partner), templates=behind))
    return [_section("composition", material, sampling, changes, probes)]


def _conditions(material: Material, sampling: Sampling) -> list[Section]:
    skipped = replace(sampling, clip_skip=1)  # people count the last block in
    behind = tuple(f"{template}, {_FILLER}" for template in material.unseen)
    before = tuple(f"{_FILLER}{template}" for template in material.unseen)
    changes = [edited.change(edited.subject, edited.unseen) for edited in _objects(material.edited)]
    probes = [_probe(name) for name in material.held_out]
    return [
        *([_section("clip-skip 2", material, skipped, changes, probes)] if material.skips else []),
        replace(
            _section("past 77 tokens", material, sampling, changes, probes),
            sampling=replace(sampling, templates=behind),
        ),
        replace(
            _section("in pieces", material, sampling, changes, probes),
            sampling=replace(sampling, templates=(*behind, *before), in_pieces=True),
        ),
    ]


def _style(material: Material, sampling: Sampling) -> list[Section]:
    styles = [e for e in material.edited if e.old is not None and e.old.axis == "style"]
    contents = material.held_out[:_CONTENTS]
    content = [
        Probe(subject=name, shows=Trait(name), templates=_styled(material, style=edited.subject))
        for edited in styles
        for name in contents
    ]
    others = [
        Probe(subject=style, shows=Trait(style, "style"), templates=_styled(material, subject=name))
        for style in material.styles
        for name in contents
    ]
    changes = [
        edited.change(edited.subject, _styled(material, subject=name))
        for edited in styles
        for name in contents
    ]
    return [
        _section("styles", material, sampling, changes),
        _section("content of edited styles", material, sampling, probes=content),
        replace(_section("other styles", material, sampling, probes=others), compared=True),
    ]


def _styled(material: Material, **words: str) -> tuple[str, ...]:
    """The style templates with the style or the subject filled in, and a place for the other."""
    filled = {"style": "{}", "subject": "{}", **words}
    return tuple(template.format(**filled) for template in material.style_templates)


def _objects(edited: Iterable[Edited]) -> list[Edited]:
    return [one for one in edited if one.old is None or one.old.axis == "concept"]


def _probe(name: str) -> Probe:
    return Probe(subject=name, shows=Trait(name))


def _section(
    name: str,
    material: Material,
    sampling: Sampling,
    changes: Iterable[Change] = (),
    probes: Iterable[Probe] = (),
) -> Section:
    return Section(
        name=name,
        sampling=replace(sampling, templates=material.unseen),
        changes=tuple(dict.fromkeys(changes)),  # aliases of two sources may be the same
        probes=tuple(dict.fromkeys(probes)),
    )


#: All suites by name, in the order in which they are shown.
SUITES: Final[Mapping[str, Suite]] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            Suite(
                name="update",
                says="old concept gone and new one there, on taught and on unseen prompts and for aliases "
                "(ICEB of arXiv 2403.13807)",
                sections=_update,
            ),
            Suite(
                name="erase",
                says="what is erased, what is left of its aliases, and what stays (MACE, arXiv 2403.06135)",
                sections=_erase,
            ),
            Suite(
                name="debias",
                says="shares of groups against the wanted ones, what is recognised within each, prompts that "
                "ask outright, and what stays",
                sections=_debias,
                balanced=True,
            ),
            Suite(name="style", says="edited styles gone, contents and other styles kept", sections=_style),
            Suite(
                name="quality",
                says="pictures of held-out names against those of the unedited model, and against drawings",
                sections=_quality,
            ),
            Suite(
                name="neighbours",
                says="names nearest to the edited ones, by embedding and by group",
                sections=_neighbours,
            ),
            Suite(
                name="composition",
                says="an edited concept and an unedited one in one picture",
                sections=_composition,
            ),
            Suite(
                name="conditions",
                says="the settings that people use: clip-skip 2; prompts past 77 tokens, cut as diffusers "
                "cuts them, or read in pieces as others do, the subject in the first or in the last",
                sections=_conditions,
            ),
        )
    }
)
