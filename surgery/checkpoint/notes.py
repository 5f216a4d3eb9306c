"""What a checkpoint says of its title and its licence, as plain short texts; nothing of it is trusted."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from surgery.checkpoint.header import Header
from surgery.checkpoint.texts import SMALL_FILE, read_small
from surgery.errors import printable

NOTES: Final = ("title", "license")
_LONGEST: Final = 200  # letters
_FRONT = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)
_LINE = re.compile(r"^(license|license_name|license_link|title)[ \t]*:[ \t]*(.*)$", re.MULTILINE)
_HEADING = re.compile(r"^# +(.+)$", re.MULTILINE)


def notes_of_folder(folder: Path) -> dict[str, str]:
    """Title and licence from the README of a folder: its front matter, else its first heading."""
    try:
        text = read_small(folder / "README.md", SMALL_FILE).removeprefix("\ufeff").replace("\r\n", "\n")
    except ValueError:
        return {}
    front = _FRONT.match(text)
    fields = {key: _plain(value) for key, value in _LINE.findall(front[1])} if front else {}
    heading = _HEADING.search(text, front.end() if front else 0)
    terms = [fields.get(key, "") for key in ("license", "license_name", "license_link")]
    notes = {
        "title": fields.get("title") or (_plain(heading[1]) if heading else ""),
        "license": short(", ".join(term for term in terms if term)),
    }
    return {key: text for key, text in notes.items() if text}


def notes_of_file(header: Header) -> dict[str, str]:
    """Title and licence from the ModelSpec metadata of a single file."""
    found = {key: short(header.metadata.get(f"modelspec.{key}", "")) for key in NOTES}
    return {key: text for key, text in found.items() if text}


def metadata_of_notes(notes: Mapping[str, str]) -> dict[str, str]:
    """The notes as ModelSpec metadata."""
    return {f"modelspec.{key}": notes[key] for key in NOTES if key in notes}


def short(text: str) -> str:
    """``text`` on one line, with nothing that a terminal acts on, and cut where it is long."""
    line = printable(" ".join(text[: 10 * _LONGEST].split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _plain(value: str) -> str:
    """A YAML scalar without its quotes."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    return short(value)
