"""What each suite asks, made from a small material by hand."""

from dataclasses import replace

import pytest

from surgery.errors import JudgeError
from surgery.evaluate import SUITES, Edited, Material, Sampling, sections_of
from surgery.evaluate.changes import Section
from surgery.judge import Trait

CAT, PIZZA, DOG = Trait("cat"), Trait("pizza"), Trait("dog")
SAMPLING = Sampling(templates=("unused {}",), samples=1)
MATERIAL = Material(
    edited=(
        Edited(
            subject="cat",
            old=CAT,
            new=PIZZA,
            destination="pizza",
            taught=("A photo of {}",),
            aliases=("kitty",),
            given=("feline",),
        ),
    ),
    held_out=("dog", "tree"),
    unseen=("here is {}", "look: {}"),
    neighbours={"cat": ("dog",)},
    styles=("neon",),
    style_templates=("a {style} of {subject}",),
)


def measured(*names: str, material: Material = MATERIAL) -> dict[str, Section]:
    return {section.name: section for section in sections_of(names, material, SAMPLING)[0]}


def test_update_asks_taught_and_unseen_prompts_aliases_and_held_out_names() -> None:
    found = measured("update")
    assert list(found) == ["efficacy", "generalisation", "aliases", "aliases given", "held out"]
    (efficacy,), (general,) = found["efficacy"].changes, found["generalisation"].changes
    assert (efficacy.templates, general.templates) == (("A photo of {}",), ())
    assert found["generalisation"].sampling.templates == ("here is {}", "look: {}")
    (alias,), (given,) = found["aliases"].changes, found["aliases given"].changes
    assert (alias.subject, alias.old, alias.destination) == ("kitty", CAT, "pizza")
    assert given.subject == "feline"
    assert [probe.subject for probe in found["held out"].probes] == ["dog", "tree"]


def test_composition_puts_an_unedited_name_beside_the_edited_one() -> None:
    section = measured("composition")["composition"]
    (change,), (probe,) = section.changes, section.probes
    assert (change.templates, change.beside) == (("here is {} and dog", "look: {} and dog"), DOG)
    assert (probe.subject, probe.templates) == ("dog", ("here is cat and {}", "look: cat and {}"))


def test_conditions_skip_blocks_and_fill_the_prompt() -> None:
    found = measured("conditions")
    assert found["clip-skip 2"].sampling.clip_skip == 1  # as the stock pipeline counts
    long = found["past 77 tokens"].sampling.templates
    assert all(len(template.split()) > 77 and template.index("{}") < 12 for template in long)
    pieces = found["in pieces"].sampling
    assert pieces.in_pieces
    first, last = pieces.templates[: len(long)], pieces.templates[len(long) :]
    assert first == long
    assert all(len(template.split("{}")[0].split()) > 77 for template in last)


def test_of_xl_people_skip_no_block() -> None:
    assert "clip-skip 2" not in measured("conditions", material=replace(MATERIAL, skips=False))


def test_quality_compares_and_neighbours_are_probes() -> None:
    found = measured("quality", "neighbours")
    assert found["quality"].compared
    assert [probe.subject for probe in found["neighbours"].probes] == ["dog"]


def test_styles_are_tried_on_contents_and_contents_on_styles() -> None:
    mosaic = Edited(subject="mosaic", old=Trait("mosaic", "style"))
    found = measured("style", material=replace(MATERIAL, edited=(mosaic,)))
    (change, *_), (content, *_) = found["styles"].changes, found["content of edited styles"].probes
    assert (change.subject, change.templates) == ("mosaic", ("a {} of dog",))
    assert (content.subject, content.templates) == ("dog", ("a mosaic of {}",))
    (other, *_) = found["other styles"].probes
    assert (other.subject, other.shows, other.templates) == ("neon", Trait("neon", "style"), ("a {} of dog",))


def test_sections_that_suites_share_are_measured_once() -> None:
    sections, _ = sections_of(["update", "erase"], MATERIAL, SAMPLING)
    names = [section.name for section in sections]
    assert len(names) == len(set(names))


def test_suites_without_words_and_unknown_suites_are_refused() -> None:
    bare = Material(edited=MATERIAL.edited, unseen=MATERIAL.unseen)
    with pytest.raises(JudgeError, match=r"(?s)'style' has nothing.*'neighbours' has nothing"):
        sections_of(["style", "neighbours"], bare, SAMPLING)
    with pytest.raises(JudgeError, match="no suite 'updat'. Did you mean 'update'"):
        sections_of(["updat"], MATERIAL, SAMPLING)


def test_a_section_with_nothing_in_it_is_named() -> None:
    bare = Material(edited=MATERIAL.edited, unseen=MATERIAL.unseen)
    _, empty = sections_of(["update"], bare, SAMPLING)
    assert [finding.subject for finding in empty] == ["held out"]


def test_every_suite_says_what_it_is() -> None:
    assert all(suite.says and suite.name == name for name, suite in SUITES.items())
