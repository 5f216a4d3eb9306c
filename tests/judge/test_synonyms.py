from surgery.judge import Trait
from surgery.judge.synonyms import labels_of


def test_every_name_in_a_label_and_the_label_itself_ask_for_its_class() -> None:
    labels, columns = labels_of(["tench, Tinca tinca", "cat", "great white shark, white shark, man-eater"])
    assert labels.concept == ("tench", "cat", "great white shark")
    assert columns == (0, 1, 2)
    for name in (
        "great white shark",
        "white shark",
        "man-eater",
        "great white shark, white shark, man-eater",
    ):
        assert labels.column(Trait(name)) == 2
    assert labels.column(Trait("Tinca tinca")) == 0


def test_classes_of_the_same_label_share_a_column() -> None:
    labels, columns = labels_of(["crane", "cat", "crane"])
    assert labels.concept == ("crane", "cat")
    assert columns == (0, 1, 0)


def test_a_name_in_several_labels_is_the_whole_labels() -> None:
    # ImageNet 638, 639, 657 and 744
    labels, _ = labels_of(["maillot", "maillot, tank suit", "missile", "projectile, missile"])
    assert labels.concept == ("maillot", "tank suit", "missile", "projectile")
    assert [labels.column(Trait(name)) for name in ("maillot", "missile")] == [0, 2]
    assert labels.column(Trait("maillot, tank suit")) == 1


def test_a_name_that_one_label_lists_first_is_that_labels() -> None:
    labels, _ = labels_of(["coach, bus", "bus, trolleybus"])
    assert labels.column(Trait("bus")) == 1


def test_a_name_that_could_be_any_of_several_is_not_known() -> None:
    labels, _ = labels_of(["robin, bird", "wren, bird"])
    assert labels.fault(Trait("bird")) is not None
    assert labels.fault(Trait("robin")) is None


def test_labels_without_a_name_of_their_own_keep_the_whole_label() -> None:
    labels, _ = labels_of(["bat, club", "bat,  club", "  ", "club, bat"])
    assert labels.concept == ("bat, club", "bat,  club", "  ", "club")
