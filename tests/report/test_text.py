import pytest

from surgery.report.text import font, wrapped

FACE = font(14)


def test_a_short_text_stays_on_one_line() -> None:
    assert wrapped("cat → pizza", FACE, 200, 3) == ["cat → pizza"]


def test_no_text_has_no_lines() -> None:
    assert wrapped("  ", FACE, 200, 3) == []


@pytest.mark.parametrize("width", [30, 60, 100, 190])
@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize(
    "text", ["a photo of a very small cat", "Donaudampfschifffahrtsgesellschaft", "a b c d e f g"]
)
def test_lines_keep_within_their_place(text: str, width: int, lines: int) -> None:
    made = wrapped(text, FACE, width, lines)
    assert 1 <= len(made) <= lines
    assert all(FACE.getlength(line) <= width for line in made)


def test_wrapping_loses_no_word_where_there_is_room() -> None:
    text = "a photo of a very small cat on a red sofa"
    assert " ".join(wrapped(text, FACE, 100, 9)) == text


def test_what_does_not_fit_ends_in_an_ellipsis() -> None:
    made = wrapped("a photo of a very small cat on a red sofa", FACE, 100, 2)
    assert len(made) == 2
    assert made[-1].endswith("…")


def test_the_font_has_the_letters_that_labels_use() -> None:
    # a missing letter is drawn as a box: all boxes look alike
    missing = bytes(FACE.getmask("\uffff"))
    assert all(bytes(FACE.getmask(letter)) != missing for letter in "→–×…%éüßЖλ")
