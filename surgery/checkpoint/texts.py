"""Small text files of a checkpoint (indexes, configurations, vocabularies), read with nothing trusted.

No file may take more memory than it is worth, or hold the program up: only regular files are opened (a pipe
would never end), and only up to a size.
"""

import json
import stat
from pathlib import Path
from typing import Any, Final

SMALL_FILE: Final = 10_000_000  # bytes; the index of SDXL's shards takes 0.2 MB, CLIP's vocabulary 0.9 MB
_VALUES: Final = 1_000_000  # of one JSON text; SDXL's header has 40,000


def read_small(path: Path, limit: int = SMALL_FILE) -> str:
    """The text of a small file.

    Raises:
        ValueError: when it is no such file; the message continues "<path> ".
    """
    try:
        size = regular_size(path)
        if size > limit:
            raise ValueError(f"takes {size} bytes; at most {limit} were expected")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is no UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error


def read_json(path: Path, limit: int = SMALL_FILE) -> Any:
    """The JSON in a small file.

    Raises:
        ValueError: when there is none; the message continues "<path> ".
    """
    return parse_json(read_small(path, limit))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8, in which no table names anything twice.

    Raises:
        ValueError: when it is none, or would take much more memory than its text.
    """
    comma, table, row = (",", "{", "[") if isinstance(text, str) else (b",", b"{", b"[")
    values = text.count(comma) + text.count(table) + text.count(row)  # type: ignore[arg-type]  # all of one kind
    if values > _VALUES:
        raise ValueError(f"lists {values} things; at most {_VALUES} were expected")
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=_table)
    except UnicodeDecodeError as error:
        raise ValueError(f"is no UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("is no JSON of ours (nested too deeply)") from error


def regular_size(path: Path) -> int:
    """The size of a regular file in bytes.

    Raises:
        ValueError: for anything else; the message continues "<path> ".
        OSError: when there is nothing, or it cannot be looked at.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
        raise ValueError(f"is {kind}")
    return status.st_size


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        doubled = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None, which is false
        raise ValueError(f"names {doubled!r} twice")
    return table
