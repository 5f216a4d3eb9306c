"""Lists of words to look for: a file of the user's, or the names that a checkpoint was trained with."""

from pathlib import Path
from typing import Any, Final

from surgery.checkpoint.texts import read_json, read_small
from surgery.errors import SurgeryError

CONCEPTS_FILE: Final = "concepts.json"
CAPTIONS_FILE: Final = "captions.txt"
_MOST_PHRASES: Final = 100_000
_CAPTIONS: Final = 2000  # some twenty thousand tokens, over five for each input of the widest weights


def read_words(path: Path) -> tuple[str, ...]:
    """The phrases of a file, one a line, without blank lines and repetitions.

    Raises:
        SurgeryError: when it cannot be read, holds nothing, or too much.
    """
    try:
        text = read_small(path)
    except ValueError as error:
        raise SurgeryError(f"{path} {error}; a text with one phrase a line was expected.") from error
    phrases = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 0 < len(phrases) <= _MOST_PHRASES:
        raise SurgeryError(
            f"{path} holds {len(phrases)} phrases; 1 to {_MOST_PHRASES} were expected, one a line."
        )
    return phrases


def read_captions(path: Path) -> tuple[str, ...]:
    """Ordinary prompts from a file, one a line; as many as are needed, evenly spread over it.

    Raises:
        SurgeryError: when it cannot be read, holds nothing, or too much.
    """
    captions = read_words(path)
    count = min(_CAPTIONS, len(captions))
    return tuple(captions[number * len(captions) // count] for number in range(count))


def own_captions(checkpoint: Path) -> tuple[str, ...]:
    """Captions from ``captions.txt`` beside a checkpoint; none where there is no such file.

    Raises:
        SurgeryError: as `read_captions`.
    """
    path = checkpoint / CAPTIONS_FILE
    return read_captions(path) if path.is_file() else ()


def own_words(checkpoint: Path) -> tuple[str, ...]:
    """The names in ``concepts.json`` beside a checkpoint; none where there is no such file.

    Raises:
        SurgeryError: when the file is there and is no list of names.
    """
    path = checkpoint / CONCEPTS_FILE
    if not path.is_file():
        return ()
    try:
        table: Any = read_json(path)
        names = [str(entry["name"]) for key in ("concepts", "professions") for entry in table.get(key, [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SurgeryError(
            f"{path} cannot be read ({error}); the checkpoint's list of concepts was expected. Restore it, "
            "or name the words yourself (--words)."
        ) from error
    return tuple(dict.fromkeys(names))
