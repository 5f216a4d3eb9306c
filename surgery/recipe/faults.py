"""What pydantic found wrong, said in the words of the recipe: place, found, expected, what to do."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from surgery.errors import nearest
from surgery.recipe.document import Document, Place

_EXPECTED = {
    "string_type": "text; put it in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "string_pattern_mismatch": "text that is not empty",
}


def fault_lines(errors: Sequence[Mapping[str, Any]], document: Document, root: type[BaseModel]) -> list[str]:
    """One line for each of pydantic's errors, in the order of the document.

    For example ``quickstart.yaml:12: edits[0].emcid.presett: unknown key. Did you mean 'preset'?``
    """
    real = [error for error in errors if not _echo(error)]
    real.sort(key=lambda error: document.order(tuple(error["loc"])))
    return [_line(error, document, root) for error in real]


def _line(error: Mapping[str, Any], document: Document, root: type[BaseModel]) -> str:
    place: Place = tuple(error["loc"])
    return f"{where(document, place)}{_message(error, place, root)}"


def where(document: Document, place: Place) -> str:
    """File, line and key of ``place``, or the ``--set`` that reached it, with a colon."""
    label, spelled = document.label(place), spell(place)
    return f"{label}: " if label == f"--set {spelled}".removesuffix(": ") else f"{label}: {spelled}"


def _echo(error: Mapping[str, Any]) -> bool:
    """Whether pydantic calls a list too short only because it dropped the entries it had faulted before."""
    return bool(error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"])


def spell(place: Place) -> str:
    """A place as a person writes it after ``--set``, with a colon: ``edits[0].emcid: ``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{text}: " if text else ""


def _message(error: Mapping[str, Any], place: Place, root: type[BaseModel]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        known = sorted(_keys_at(root, place[:-1]))
        guess = nearest(str(place[-1]), known)
        return "unknown key. " + (f"Did you mean {guess!r}?" if guess else f"Known here: {', '.join(known)}.")
    if kind == "missing":
        return "missing; a recipe must say it."
    if kind == "literal_error":
        return _literal(error)
    if kind == "too_short":
        return f"found {_shown(error['input'])}, expected at least {error['ctx']['min_length']}."
    if kind == "too_long":
        return f"found {_shown(error['input'])}, expected at most {error['ctx']['max_length']}."
    if kind in _EXPECTED:
        return f"found {_shown(error['input'])}, expected {_EXPECTED[kind]}."
    message = str(error["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return f"{message}."
    return f"found {_shown(error['input'])}; {message[0].lower()}{message[1:]}."


def _literal(error: Mapping[str, Any]) -> str:
    expected = str(error["ctx"]["expected"])
    known = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    guess = nearest(str(error["input"]), known)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return f"found {_shown(error['input'])}, expected {expected}.{hint}"


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return f"the text {value!r}" if isinstance(value, str) else str(value)


def _keys_at(root: type[BaseModel], place: Place) -> list[str]:
    """The keys that the schema knows at ``place``."""
    model = root
    for part in place:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, looking through lists and ``| None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)
