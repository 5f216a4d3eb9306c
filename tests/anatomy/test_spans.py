"""Phrases among tokens, by the placeholder's place.

The tiny vocabulary has one token for each of the words a, an, the, of, in, and, photo, image, picture,
painting, style, cat, dog, fish, pizza, doctor, female, male; everything else falls apart into its bytes,
but for the beginnings of these words.
"""

from typing import Any

import pytest

from surgery.anatomy import fill, locate, locate_nothing
from surgery.errors import ConceptError


def place(tokenizer: Any, template: str, phrase: str, **options: Any) -> tuple[int, int]:
    span = locate(tokenizer, template, phrase, **options)
    assert span.ids == tuple(tokenizer(fill(template, phrase)).input_ids)
    return span.start, span.end


def test_a_word_at_the_end(tokenizer: Any) -> None:
    assert place(tokenizer, "a photo of a {}", "cat") == (5, 6)


def test_a_phrase_of_several_tokens(tokenizer: Any) -> None:
    span = locate(tokenizer, "a photo of a {} in the style", "female doctor")
    assert (span.start, span.end, span.last, span.eos) == (5, 7, 6, 10)


def test_a_template_that_repeats_the_phrase(tokenizer: Any) -> None:
    assert place(tokenizer, "cat and {} and cat", "cat") == (3, 4)


@pytest.mark.parametrize(("phrase", "tokens"), [("art", 3), ("start", 4), ("text", 4), ("of", 1)])
def test_phrases_inside_of_special_tokens_and_templates_are_not_mistaken(
    tokenizer: Any, phrase: str, tokens: int
) -> None:
    # "st" is a merge on the way to "style"
    assert place(tokenizer, "painting of {}", phrase) == (3, 3 + tokens)


def test_capitals_and_spaces_do_not_shift_the_span(tokenizer: Any) -> None:
    assert place(tokenizer, "A   photo \n of\t{}  in", "  CAT ") == (4, 5)


def test_accents_count_with_all_their_bytes(tokenizer: Any) -> None:
    # b, two bytes of ō, a; then the end
    assert place(tokenizer, "painting of {}", "bōa") == (3, 7)


def test_composed_accents_are_one_letter_however_they_are_written(tokenizer: Any) -> None:
    composed = locate(tokenizer, "painting of {} in", "cafe\u0301")
    assert composed == locate(tokenizer, "painting of {} in", "café")


def test_emoji_count_with_all_their_bytes(tokenizer: Any) -> None:
    # 4 bytes of the person, 4 of the skin tone
    assert place(tokenizer, "a {} photo", "🧑🏽") == (2, 10)


def test_a_letter_that_grows_when_lowered_belongs_to_the_phrase(tokenizer: Any) -> None:
    # İ becomes i and a combining dot of two bytes
    start, end = place(tokenizer, "a {} photo", "İ")
    assert (start, end) == (2, 5)


def test_punctuation_of_the_phrase_belongs_to_it(tokenizer: Any) -> None:
    assert place(tokenizer, "a {} photo", "cat (dog)") == (2, 6)


def test_a_plural_that_merges_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConceptError, match="shares a token with its neighbours"):
        locate(tokenizer, "the {}n image", "a")


def test_a_plural_that_merges_is_found_on_request(tokenizer: Any) -> None:
    # "an" is one token
    span = locate(tokenizer, "the {}n image", "a", strict=False)
    assert (span.start, span.end, span.merged) == (2, 3, True)


def test_a_template_that_merges_from_the_left_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConceptError, match="'an'"):
        locate(tokenizer, "the a{} image", "n")


def test_an_accent_of_the_template_that_melts_into_the_phrase_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConceptError, match="shares a token"):
        locate(tokenizer, "a {}\u0301 photo", "cafe")


def test_a_genitive_is_no_merge(tokenizer: Any) -> None:
    assert place(tokenizer, "a {}'s photo", "cat") == (2, 3)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", ""])
def test_a_placeholder_that_is_missing_or_repeated_is_refused(tokenizer: Any, template: str) -> None:
    with pytest.raises(ConceptError, match="placeholders; expected exactly one"):
        locate(tokenizer, template, "cat")


@pytest.mark.parametrize("phrase", ["", "  ", "\n"])
def test_an_empty_phrase_is_refused(tokenizer: Any, phrase: str) -> None:
    with pytest.raises(ConceptError, match="expected a name"):
        locate(tokenizer, "a {}", phrase)


def test_a_phrase_beyond_the_encoder_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConceptError, match="outside"):
        locate(tokenizer, "a " * 76 + "{}", "cat")


def test_a_phrase_at_the_last_place_before_the_end_fits(tokenizer: Any) -> None:
    span = locate(tokenizer, "a " * 74 + "{}", "cat")
    assert (span.last, span.eos, span.lost) == (75, 76, 0)


def test_a_template_that_is_cut_behind_the_phrase_keeps_its_end_token(tokenizer: Any) -> None:
    span = locate(tokenizer, "a {}" + " a" * 100, "cat")
    assert (span.last, span.eos, span.lost) == (2, 76, 27)
    assert span.ids[-1] == tokenizer.eos_token_id


def test_a_special_token_in_the_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ConceptError, match="start or end token"):
        locate(tokenizer, "a {}", "cat <|endoftext|>")


def test_nothing_has_an_empty_span_at_its_place(tokenizer: Any) -> None:
    span = locate_nothing(tokenizer, "a photo of {} in the style")
    assert (span.start, span.end, len(span.ids)) == (4, 4, 8)


def test_nothing_alone_is_the_empty_prompt(tokenizer: Any) -> None:
    span = locate_nothing(tokenizer, "{}")
    assert (span.start, span.end, span.eos) == (1, 1, 1)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False
        bos_token_id = eos_token_id = pad_token_id = 0

        def __call__(self, text: str, **options: Any) -> Any:
            raise AssertionError

    with pytest.raises(ConceptError, match="CLIPTokenizerFast"):
        locate(Slow(), "a {}", "cat")
