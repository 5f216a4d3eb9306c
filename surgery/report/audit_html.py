"""An audit as one HTML page that needs nothing else: no network, no fonts, no other file."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from surgery.errors import printable
from surgery.record import JSON
from surgery.report.audit_drawings import heat_maps, spectrum_curve
from surgery.report.audit_record import AuditRecord, TensorRow
from surgery.report.numbers import count, number, percent

_TEMPLATES: Final = Path(__file__).resolve().parent / "templates"
_SPECTRA_SHOWN: Final = 24
# What could end a script element, spelled so that it is still the same JSON.
_IN_SCRIPT: Final = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"}


def audit_page(record: AuditRecord) -> str:
    """The page as text; equal records give equal pages.

    It may run one script and use one style sheet, both known by their digest, and may load nothing at all
    (content-security policy). Everything that comes from files is escaped. Without scripts it shows the same;
    the script sorts and filters tables. The JSON of the record lies inside, word for word what ``--json``
    prints.
    """
    style, script = _asset("audit.css"), _asset("audit.js")
    touched = [row for row in record.tensors if row.state != "same"]
    drawn = sorted((row for row in touched if row.spectrum), key=lambda row: -(row.relative or row.norm))
    return _template().render(
        record=record,
        style=style,
        script=script,
        policy=policy(style, script),
        data=data_block(record.as_json()),
        heat_maps=heat_maps(record),
        touched=touched,
        same=[row for row in record.tensors if row.state == "same"],
        spectra=[drawn[:_SPECTRA_SHOWN], drawn[_SPECTRA_SHOWN:]],
        curve=spectrum_curve,
        strongest=max((row.strength for row in record.words.rows), default=1.0) if record.words else 1.0,
        lines=_lines,
        expected_lines=_expected_lines,
        where=_where,
    )


def policy(style: str, script: str) -> str:
    """The content-security policy: nothing but this style sheet and this script."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def data_block(value: JSON) -> str:
    """JSON that can stand inside a script element, whatever texts it holds."""
    return json.dumps(value, allow_nan=False).translate(_IN_SCRIPT)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"count": count, "number": number, "percent": percent}
    return environment.get_template("audit.html")


def _shown(value: object) -> object:
    """Texts with control characters and changes of direction spelled out; what is marked safe is ours."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _lines(value: JSON) -> Sequence[tuple[str, str]]:
    """Nested facts as lines of a table: dotted keys and texts."""
    if not isinstance(value, Mapping):
        return [("", _text(value))]
    lines = []
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            lines += [(f"{key}.{deeper}".rstrip("."), text) for deeper, text in _lines(inner)]
        else:
            lines.append((str(key), _text(inner)))
    return lines


def _expected_lines(expected: Mapping[str, JSON]) -> Sequence[tuple[str, str]]:
    """What was found of an expected patch; of each tensor one line: ``after (by its bytes)``."""
    plain = {key: value for key, value in expected.items() if key != "tensors"}
    tensors = expected.get("tensors")
    lines = [*_lines(plain)]
    for name, found in tensors.items() if isinstance(tensors, Mapping) else ():
        state = str(found["state"]) if isinstance(found, Mapping) else _text(found)
        agreement = found.get(state) if isinstance(found, Mapping) else None
        lines.append((name, f"{state} (by its {agreement})" if agreement else state))
    return lines


def _text(value: JSON) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return count(value)
    return json.dumps(value, ensure_ascii=False)


def _where(row: TensorRow) -> str:
    """Changed rows and columns, where that says something."""
    if row.structure in ("nothing", "everything") or row.rows[0] == 0:
        return row.structure
    return f"{row.structure}: {count(row.rows[0])} rows, {count(row.columns[0])} columns"
