"""From what was edited to what the judge looks for."""

from surgery.delta import Delta
from surgery.judge import Labels, Trait
from surgery.methods import Outcome, Replacement
from surgery.study.effect import changes_of, touched_names
from surgery.study.words import Words

LABELS = Labels(
    concept=("cat", "pizza", "moon", "none"), style=("plain", "mosaic"), merged={"new moon": "moon"}
)
WORDS = Words(name_of={"cat": "cat", "kitty": "cat", "pizza": "pizza"})


def replaced(source: str, destination: str | None, kind: str = "update") -> Replacement:
    return Replacement(source=source, destination=destination, kind=kind)


def test_an_update_looks_for_the_old_and_the_new_concept() -> None:
    (change,), findings = changes_of([replaced("cat", "pizza")], WORDS, LABELS)
    assert (change.old, change.new, change.destination) == (Trait("cat"), Trait("pizza"), "pizza")
    assert findings == ()


def test_an_alias_is_looked_for_under_its_concepts_name() -> None:
    (change,), _ = changes_of([replaced("kitty", "pizza")], WORDS, LABELS)
    assert (change.subject, change.old) == ("kitty", Trait("cat"))


def test_a_forgotten_concept_is_only_to_go() -> None:
    (change,), _ = changes_of([replaced("cat", None, "forget")], WORDS, LABELS)
    assert (change.old, change.new, change.destination) == (Trait("cat"), None, None)


def test_a_style_is_looked_for_among_the_styles() -> None:
    (change,), _ = changes_of([replaced("mosaic", "art", "style")], WORDS, LABELS)
    assert change.old == Trait("mosaic", "style")
    assert change.new is None


def test_what_the_judge_has_no_name_for_is_reported_and_left_out() -> None:
    changes, (finding,) = changes_of([replaced("zeppelin", "balloon")], WORDS, LABELS)
    assert changes == []
    assert (finding.kind, finding.subject) == ("not-measured", "zeppelin")


def test_look_alikes_are_measured_on_the_new_look_alone() -> None:
    (change,), _ = changes_of([replaced("new moon", "moon")], WORDS, LABELS)
    assert (change.old, change.new) == (None, Trait("moon"))


def test_what_edits_name_is_no_measure_of_what_was_left_alone() -> None:
    outcome = Outcome(delta=Delta(), replacements=(replaced("Kitty ", "pizza"),), preserved=("dog",))
    assert touched_names([outcome], WORDS) == {"cat", "pizza", "dog"}
