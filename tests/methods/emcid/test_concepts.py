"""Edits checked as a whole: the rows of the failure table (8.4 of the study) on names and prompts."""

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from surgery.errors import ConceptError
from surgery.methods.emcid import OBJECT_TEMPLATES, STYLE_TEMPLATES, ConceptEdit, ConceptRules, prepare
from tests.support.concepts import CAT, PIZZA


def kinds(findings: Any) -> set[tuple[str, str]]:
    return {(finding.kind, finding.severity) for finding in findings}


def test_each_kind_has_its_published_templates(tokenizer: Any) -> None:
    style = ConceptEdit(source="fish", kind="style")
    concepts, _ = prepare([CAT, style], tokenizer)
    assert concepts[0].edit.templates == OBJECT_TEMPLATES
    assert concepts[1].edit.templates == STYLE_TEMPLATES


def test_forgetting_without_a_destination_is_the_empty_prompt(tokenizer: Any) -> None:
    concepts, _ = prepare([ConceptEdit(source="cat", kind="forget", templates=("a photo of {}",))], tokenizer)
    goals = concepts[0].goals
    assert goals is not None
    assert goals[0].ids == tuple(tokenizer("a photo of").input_ids)
    assert (goals[0].start, goals[0].end) == (4, 4)


def test_a_style_without_a_destination_becomes_art(tokenizer: Any) -> None:
    concepts, _ = prepare([ConceptEdit(source="fish", kind="style")], tokenizer)
    assert concepts[0].edit.destination == "art"


def test_a_placeholder_missing_or_repeated_names_the_edit_and_the_prompt(tokenizer: Any) -> None:
    broken = replace(CAT, templates=("a photo", "{} and {}"))
    with pytest.raises(ConceptError) as caught:
        prepare([broken], tokenizer)
    assert caught.value.faults == (
        "cat → 'dog': template 'a photo' has 0 placeholders; expected exactly one {}. "
        "Write it where the concept's name stands.",
        "cat → 'dog': template '{} and {}' has 2 placeholders; expected exactly one {}. "
        "Write it where the concept's name stands.",
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ConceptEdit(source=" ", destination="dog"), "the source is ' '"),
        (ConceptEdit(source="cat", destination="  "), "destination of update is empty"),
        (ConceptEdit(source="cat"), "neither a destination nor pictures"),
        (replace(CAT, weight=0.0), "the weight is 0.0"),
        (replace(CAT, weight=float("nan")), "the weight is nan"),
        (replace(CAT, images=(Path("nowhere.png"),)), "'nowhere.png' is no file"),
    ],
)
def test_an_empty_phrase_or_a_missing_part_is_an_error(
    tokenizer: Any, edit: ConceptEdit, message: str
) -> None:
    with pytest.raises(ConceptError, match=message):
        prepare([edit], tokenizer)


def test_no_edits_are_an_error(tokenizer: Any) -> None:
    with pytest.raises(ConceptError, match="no concepts"):
        prepare([], tokenizer)


def test_all_faults_of_all_edits_are_told_at_once(tokenizer: Any) -> None:
    broken = [replace(CAT, templates=("a",)), ConceptEdit(source="fish"), replace(PIZZA, weight=-1.0)]
    with pytest.raises(ConceptError, match="^3 faults"):
        prepare(broken, tokenizer)


def test_a_phrase_merged_with_its_neighbours_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(ConceptError, match="shares a token"):
        prepare([ConceptEdit(source="a", destination="dog", templates=("{}n image",))], tokenizer)


def test_a_merged_phrase_is_steered_at_the_token_that_holds_its_end_on_request(tokenizer: Any) -> None:
    edit = ConceptEdit(source="a", destination="dog", templates=("{}n image",))
    concepts, findings = prepare([edit], tokenizer, rules=ConceptRules(merged_spans="nearest"))
    assert concepts[0].spans[0].last == 1
    assert ("merged-span", "warning") in kinds(findings)


def test_a_prompt_whose_subject_lies_beyond_the_encoder_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(ConceptError, match="outside"):
        prepare([replace(CAT, templates=("a " * 80 + "{}",))], tokenizer)


def test_a_prompt_of_which_only_the_end_is_cut_is_a_warning(tokenizer: Any) -> None:
    _, findings = prepare([replace(CAT, templates=("{}" + " a" * 80,))], tokenizer)
    assert kinds(findings) == {("long-prompt", "warning")}


def test_a_subject_that_equals_its_destination_is_skipped_with_a_note(tokenizer: Any) -> None:
    concepts, findings = prepare([replace(CAT, destination=" CAT"), PIZZA], tokenizer)
    assert [concept.edit.source for concept in concepts] == ["pizza"]
    assert kinds(findings) == {("identity", "info")}


def test_one_source_with_different_destinations_is_an_error_that_lists_all(tokenizer: Any) -> None:
    edits = [CAT, ConceptEdit(source="Cat", destination="fish"), PIZZA, replace(PIZZA, destination="dog")]
    with pytest.raises(ConceptError, match="^2 faults") as caught:
        prepare(edits, tokenizer)
    assert "cat → 'dog', Cat → 'fish'" in str(caught.value)


def test_of_different_destinations_the_last_one_wins_on_request(tokenizer: Any) -> None:
    edits = [CAT, replace(CAT, destination="fish")]
    concepts, findings = prepare(edits, tokenizer, rules=ConceptRules(conflicts="last"))
    assert [concept.edit.destination for concept in concepts] == ["fish"]
    assert kinds(findings) == {("conflict", "warning")}


def test_the_same_edit_twice_is_merged_with_the_templates_of_both(tokenizer: Any) -> None:
    one = replace(CAT, templates=("a {}", "{}"))
    other = replace(CAT, source="CAT ", templates=("{}", "the {}"), weight=2.0)
    concepts, findings = prepare([one, other], tokenizer)
    assert [(concept.edit.templates, concept.edit.weight) for concept in concepts] == [
        (("a {}", "{}", "the {}"), 2.0)
    ]
    assert len(concepts[0].spans) == len(concepts[0].goals or ()) == 3
    assert kinds(findings) == {("duplicate", "info")}


def test_doubles_merge_to_the_same_in_every_order(tokenizer: Any) -> None:
    several = [
        replace(CAT, templates=("a {}",), seed=3),
        replace(CAT, templates=("the {}", "{}"), seed=1),
        replace(CAT, templates=("my {}",), seed=2, weight=2.0),
    ]
    first, *others = [prepare(order, tokenizer)[0] for order in permutations(several)]
    assert first[0].edit.seed == 3
    assert all(other == first for other in others)


def test_a_chain_is_a_warning(tokenizer: Any) -> None:
    _, findings = prepare([CAT, ConceptEdit(source="dog", destination="fish")], tokenizer)
    assert [(finding.kind, finding.subject) for finding in findings] == [("chain", "cat → 'dog'")]


def test_a_phrase_inside_of_another_is_a_warning(tokenizer: Any) -> None:
    edits = [
        ConceptEdit(source="female doctor", destination="dog"),
        ConceptEdit(source="female", destination="cat"),
    ]
    _, findings = prepare(edits, tokenizer)
    assert [(finding.kind, finding.subject) for finding in findings] == [("contained", "female → 'cat'")]
    assert "and ends it" not in findings[0].message


def test_a_phrase_that_ends_another_is_named_as_such_and_shares_its_last_token(tokenizer: Any) -> None:
    edits = [
        ConceptEdit(source="female doctor", destination="dog"),
        ConceptEdit(source="doctor", destination="cat"),
    ]
    _, findings = prepare(edits, tokenizer)
    assert kinds(findings) == {("contained", "warning"), ("shared-end", "info")}
    assert "and ends it" in findings[0].message
    assert sum(finding.kind == "shared-end" for finding in findings) == 2


def test_names_unsafe_for_files_are_names_like_any_other(tokenizer: Any) -> None:
    edits = [ConceptEdit(source="a/b", destination="dog"), ConceptEdit(source="../" * 20, destination="cat")]
    concepts, _ = prepare(edits, tokenizer)
    assert len(concepts) == 2
