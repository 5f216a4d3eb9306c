"""Captions as tokens, a chunk at a time: a corpus of any size in the memory of one chunk."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

from surgery import progress
from surgery.anatomy import Tokenizer, tokenize
from surgery.errors import MethodError

Ids: TypeAlias = tuple[int, ...]

# Captions sorted by length among themselves; a fixed number, since the order of sums decides the last bits.
CHUNK: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionFile:
    """The captions of a text file, one per line, read anew each time that they are gone through.

    Empty lines and a byte order mark are none. The file may be larger than the memory.
    """

    path: Path

    def __iter__(self) -> Iterator[str]:
        """One caption after the other.

        Raises:
            MethodError: at the first byte that is no UTF-8, and at the end of a file without a caption.
        """
        place, empty = 0, True
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines):
                for text in self._text(line, place, number).splitlines():
                    if text.strip():
                        empty = False
                        yield text
                place += len(line)
        if empty:
            raise MethodError(f"{self.path} holds no caption; some thousands were expected, one a line.")

    def _text(self, line: bytes, place: int, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            # behind a byte order mark the codec counts from its end
            mark = 3 if number == 0 and line.startswith(b"\xef\xbb\xbf") else 0
            raise MethodError(
                f"{self.path}: byte {place + mark + error.start} is no UTF-8. Save the captions as UTF-8."
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Captions that were gone through once, to know their number and their digest.

    ``word_count`` is their tokens without padding. The order inside of a chunk does not matter.
    """

    captions: Iterable[str]
    tokenizer: Tokenizer
    limit: int
    without: frozenset[Ids]
    caption_count: int
    word_count: int
    digest: str
    only: tuple[Ids, ...] | None
    """The one chunk of a small corpus, which need not be read again."""

    def chunks(self) -> Iterator[tuple[Ids, ...]]:
        """The tokens of each chunk, shortest captions first.

        Raises:
            MethodError: when the captions are not those of the first time any more.
        """
        if self.only is not None:
            yield self.only
            return
        digest = hashlib.sha256()
        tokens = _tokens(self.tokenizer, self.captions, self.limit, self.without)
        for chunk in _chunks(islice(tokens, self.caption_count)):
            digest.update(_text(chunk))
            yield chunk
        if digest.hexdigest() != self.digest:
            raise MethodError(
                "the captions changed while they were read. Leave the file alone and start again."
            )


def survey(
    tokenizer: Tokenizer,
    captions: Iterable[str],
    limit: int,
    count: int | None = None,
    without: Collection[Ids] = (),
) -> Corpus:
    """The corpus of some captions; they are gone through once here, and once more where they are many.

    Args:
        tokenizer: Of the encoder that shall read them.
        captions: Anything that can be gone through more than once.
        limit: Positions of the encoder.
        count: Only so many of them, from the start.
        without: Phrases as tokens; captions that hold one of them are passed over.

    Raises:
        MethodError: when there are none.
    """
    digest, captions_seen, words, first = hashlib.sha256(), 0, 0, None
    phrases = frozenset(without)
    tokens = islice(_tokens(tokenizer, captions, limit, phrases), count)
    for number, chunk in enumerate(_chunks(progress.track(tokens, "reading captions", unit="caption"))):
        digest.update(_text(chunk))
        captions_seen, words = captions_seen + len(chunk), words + sum(len(one) for one in chunk)
        first = chunk if number == 0 else None
    if not captions_seen:
        raise MethodError(
            f"there are no captions for the key statistics{' that name no edited source' * bool(phrases)}; "
            "expected some thousand. Without them nothing protects what is not edited."
        )
    return Corpus(
        captions=captions,
        tokenizer=tokenizer,
        limit=limit,
        without=phrases,
        caption_count=captions_seen,
        word_count=words,
        digest=digest.hexdigest(),
        only=first,
    )


def _tokens(
    tokenizer: Tokenizer, captions: Iterable[str], limit: int, without: frozenset[Ids]
) -> Iterator[Ids]:
    lengths = {len(phrase) for phrase in without}
    for caption in captions:
        ids = tokenize(tokenizer, caption).cut(limit)
        parts = (ids[at : at + length] for length in lengths for at in range(len(ids) - length + 1))
        if not any(part in without for part in parts):
            yield ids


def _chunks(tokens: Iterable[Ids]) -> Iterator[tuple[Ids, ...]]:
    rest = iter(tokens)
    while part := list(islice(rest, CHUNK)):
        yield tuple(sorted(part, key=lambda one: (len(one), one)))


def _text(chunk: tuple[Ids, ...]) -> bytes:
    return json.dumps(chunk).encode()
