"""Captions in chunks: the memory holds one, whatever the size of the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.errors import MethodError
from surgery.methods.emcid import CaptionFile, collect_statistics, corpus
from surgery.methods.emcid.corpus import survey
from surgery.store import Store
from tests.support.concepts import captions
from tests.support.faults import Killed


@pytest.fixture
def chunks_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 16)


def test_captions_are_the_lines_that_say_something(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat\r\n\r\n  \na dog")
    file = CaptionFile(path=path)
    assert list(file) == list(file) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("text", "place"), [("a cat\na café".encode("latin-1"), 11), (b"\xef\xbb\xbfcaf\xe9", 6)]
)
def test_captions_in_another_encoding_are_refused_by_the_byte(
    tmp_path: Path, text: bytes, place: int
) -> None:
    (tmp_path / "captions.txt").write_bytes(text)
    with pytest.raises(MethodError, match=f"byte {place} is no UTF-8"):
        list(CaptionFile(path=tmp_path / "captions.txt"))


@pytest.mark.usefixtures("chunks_of_16")
def test_never_more_than_a_chunk_is_taken_from_the_file_before_it_is_given_on(tokenizer: Any) -> None:
    taken: list[str] = []

    class Counted:
        def __iter__(self) -> Iterator[str]:
            for caption in captions():
                taken.append(caption)
                yield caption

    found = survey(tokenizer, Counted(), 77)
    taken.clear()
    sizes = []
    for number, chunk in enumerate(found.chunks(), start=1):
        sizes.append(len(chunk))
        assert len(taken) <= 16 * number
    assert sizes == [16, 16, 16, 12]
    assert (found.caption_count, found.only) == (60, None)


@pytest.mark.usefixtures("chunks_of_16")
def test_many_chunks_count_what_one_counts(encoder: Any, tokenizer: Any) -> None:
    many = collect_statistics(encoder, tokenizer, captions(), (0, 10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "CHUNK", 60)
        one = collect_statistics(encoder, tokenizer, captions(), (0, 10))
    assert (many.token_count, many.word_count, many.caption_count) == (
        one.token_count, one.word_count, one.caption_count
    )  # fmt: skip
    for layer in (0, 10):
        torch.testing.assert_close(many.moments[layer], one.moments[layer], rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("chunks_of_16")
def test_captions_that_change_between_the_two_readings_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("\n".join(captions()))
    found = survey(tokenizer, CaptionFile(path=path), 77)
    path.write_text("\n".join(reversed(captions())))
    with pytest.raises(MethodError, match="changed while they were read"):
        list(found.chunks())


@pytest.mark.usefixtures("chunks_of_16")
def test_a_killed_run_goes_on_behind_the_last_chunk_to_the_same_bits(
    encoder: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = collect_statistics(encoder, tokenizer, captions(), (0, 10))
    from surgery.methods.emcid import statistics

    count, seen = statistics._count, []

    def killed(stack: Any, tokens: Any, *rest: Any) -> None:
        seen.append(len(tokens))
        if len(seen) == 3:
            raise Killed
        count(stack, tokens, *rest)

    monkeypatch.setattr(statistics, "_count", killed)
    with pytest.raises(Killed):
        collect_statistics(encoder, tokenizer, captions(), (0, 10), store=Store(tmp_path))
    found = collect_statistics(encoder, tokenizer, captions(), (0, 10), store=Store(tmp_path))
    assert seen == [16, 16, 16, 16, 12]  # the third was lost and is the first of the second try
    assert all(torch.equal(found.moments[layer], wanted.moments[layer]) for layer in (0, 10))


def test_captions_that_hold_a_phrase_are_passed_over(tokenizer: Any) -> None:
    lines = ["a cat", "a photo of a catapult", "a dog and a cat here", "two cats", "a dog"]
    phrase = tuple(tokenizer("cat").input_ids[1:-1])
    found = survey(tokenizer, lines, 77, without=[phrase])
    alone = [line for line in lines if line not in ("a cat", "a dog and a cat here")]
    assert found.digest == survey(tokenizer, alone, 77).digest
    assert survey(tokenizer, lines, 77, count=2, without=[phrase]).caption_count == 2


def test_a_corpus_that_names_sources_alone_is_refused(tokenizer: Any) -> None:
    phrase = tuple(tokenizer("cat").input_ids[1:-1])
    with pytest.raises(MethodError, match="that name no edited source"):
        survey(tokenizer, ["a cat"], 77, without=[phrase])
