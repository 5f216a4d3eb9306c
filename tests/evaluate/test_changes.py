from surgery.evaluate import Change, Probe
from surgery.evaluate.changes import faults
from surgery.judge import Labels, Trait

LABELS = Labels(concept=("cat", "dog", "pizza"), style=("plain", "mosaic"), merged={"hound": "dog"})
TEMPLATES = ["a photo of {}"]


def change(old: Trait | None, new: Trait | None, templates: tuple[str, ...] = ()) -> Change:
    return Change(subject="a cat", old=old, new=new, templates=templates)


def test_a_sound_measurement_has_no_faults() -> None:
    changes = [
        change(Trait("cat"), Trait("pizza")),
        change(Trait("cat"), None),
        change(Trait("mosaic", "style"), None),
    ]
    assert faults(changes, [Probe(subject="dog", shows=Trait("dog"))], TEMPLATES, LABELS) == []


def test_all_faults_are_found_at_once() -> None:
    changes = [change(Trait("cta"), Trait("pizza")), change(Trait("cat"), Trait("moon"), ("no place",))]
    found = faults(changes, [Probe(subject="x", shows=Trait("dgo"))], ["{} and {}"], LABELS)
    text = "\n".join(found)
    assert len(found) == 5
    for part in ("'{} and {}' has 2", "'no place' has 0", "'cta'", "'moon'", "'dgo'"):
        assert part in text


def test_nothing_to_measure_is_a_fault() -> None:
    assert "nothing to measure" in faults([], [], TEMPLATES, LABELS)[0]


def test_templates_may_come_with_each_phrase_but_must_come_from_somewhere() -> None:
    own = change(Trait("cat"), None, ("a {}",))
    assert faults([own], [], [], LABELS) == []
    assert "no templates for 'a cat'" in faults([own, change(Trait("cat"), None)], [], [], LABELS)[0]


def test_a_change_between_look_alikes_cannot_be_measured() -> None:
    (fault,) = faults([change(Trait("dog"), Trait("hound"))], [], TEMPLATES, LABELS)
    assert "cannot tell 'dog' from 'hound'" in fault


def test_titles_say_what_becomes_what() -> None:
    cat, pizza = Trait("cat"), Trait("pizza")
    assert Change(subject="cat", old=cat, new=pizza, destination="a pizza").title == "cat → a pizza"
    assert Change(subject="cat", old=cat, new=pizza).title == "cat → pizza"
    assert Change(subject="cat", old=cat).title == "cat → nothing"
