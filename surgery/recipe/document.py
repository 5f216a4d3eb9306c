"""Strict YAML: text to plain values, each with the line it came from.

PyYAML's own construction has three traps: ``1e-4`` is read as text, ``on`` and ``no`` as truth values, and of
a doubled key the last one wins in silence. So only its parser is used here, and scalars are read by the rules
of YAML 1.2 (JSON's numbers, ``true``, ``false``, ``null``; everything else is text).
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from surgery.errors import RecipeError, raise_all
from surgery.record import JSON

Place: TypeAlias = tuple[str | int, ...]  # ("edits", 0, "emcid")

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}
_HIGH, _LOW = "[\ud800-\udbff]", "[\udc00-\udfff]"
# one of a pair of UTF-16 without the other, which no UTF-8 can spell
_HALF = re.compile(f"{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW}")
_DEEPEST = 32
_LONGEST_NUMBER = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed file: its value, and for every place in it a label such as ``quickstart.yaml:12``."""

    name: str
    value: JSON
    labels: dict[Place, str] = field(default_factory=dict)

    def label(self, place: Place) -> str:
        """Where ``place`` stands, or where the nearest thing around it stands."""
        return self.labels.get(self._known(place), self.name)

    def order(self, place: Place) -> int:
        """How far down the document ``place`` stands, for sorting faults."""
        return list(self.labels).index(self._known(place)) if self.labels else 0

    def _known(self, place: Place) -> Place:
        return next(place[:n] for n in range(len(place), -1, -1) if place[:n] in self.labels or n == 0)


def read_document(text: str, name: str) -> Document:
    """The value of YAML ``text``, with labels; ``name`` is the file's name in messages.

    Raises:
        RecipeError: with all faults when the text is no YAML, or uses anchors, aliases, tags, keys that are
            no text, or a key twice.
    """
    try:
        faults = list(_forbidden(text, name))
        raise_all(RecipeError, faults)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError(
            f"{place}: no valid YAML: {error.problem}. Check quotes, colons and indentation."
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: no valid YAML: {' '.join(str(error).split())}.") from error
    reader = _Reader(name)
    value = None if root is None else reader.read(root, ())
    raise_all(RecipeError, reader.faults)
    return Document(name=name, value=value, labels=reader.labels)


def read_value(text: str) -> JSON:
    """The value of one ``--set`` right-hand side: a scalar, or a list or mapping in brackets."""
    return read_document(text, f"value {text!r}").value


def _forbidden(text: str, name: str) -> Iterator[str]:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = f"{name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            yield f"{place}: alias '*{event.anchor}' found; a recipe has none. Write the value out."
        elif getattr(event, "anchor", None):
            yield f"{place}: anchor '&{event.anchor}' found; a recipe has none. Put quotes around the text."
        elif getattr(event, "tag", None):
            yield f"{place}: tag {event.tag!r} found; a recipe has none. Put quotes around the text."
        elif _HALF.search(getattr(event, "value", None) or ""):
            yield f"{place}: half a character (\\ud800 to \\udfff) found; expected text. Write the whole one."
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            yield f"{place}: nested more than {_DEEPEST} deep; a recipe never is. Check the brackets."
            return


class _Reader:
    """Walks PyYAML's nodes once, collecting values, labels and faults."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.labels: dict[Place, str] = {}
        self.faults: list[str] = []

    def read(self, node: Any, place: Place) -> JSON:
        self.labels.setdefault(place, self._label(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*place, index)) for index, item in enumerate(node.value)]
        return read_scalar(node.value) if node.style is None else str(node.value)

    def _mapping(self, node: Any, place: Place) -> dict[str, JSON]:
        result: dict[str, JSON] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(f"{self._label(key_node)}: a key is a list or mapping; expected a word.")
                continue
            key = str(key_node.value)
            if key in result:
                first, second = self.labels[(*place, key)], self._label(key_node)
                self.faults.append(
                    f"{second}: key {key!r} stands twice (first at {first}). Remove one of them."
                )
                continue
            self.labels[(*place, key)] = self._label(key_node)
            result[key] = self.read(value_node, (*place, key))
        return result

    def _label(self, node: Any) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def read_scalar(text: str) -> bool | int | float | str | None:
    """The value of an unquoted YAML word."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text) and len(text) < _LONGEST_NUMBER:
        return int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text
