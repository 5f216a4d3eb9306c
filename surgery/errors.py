"""Every error this project raises, and the helpers that word them well."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Final

_SHOWN: Final = 100  # faults of one message; a crafted file can have a million

_brief = Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 80  # characters


class SurgeryError(Exception):
    """Base of all errors that a user can act on; the message says what was found, expected and to do.

    Messages are safe to print: what a terminal would act on, in a file's name or a tensor's key, is spelled
    out. ``faults`` holds the single faults that a collected error lists, or the message alone.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(printable(message))
        self.faults = tuple(printable(fault) for fault in faults) or (printable(message),)


class RecipeError(SurgeryError):
    """A recipe cannot be read, or asks for something that does not exist."""


class CheckpointError(SurgeryError):
    """A checkpoint is incomplete, of another architecture, or not what its files say."""


class PatchError(SurgeryError):
    """A patch file is damaged, does not fit the checkpoint, or was already applied."""


class MethodError(SurgeryError):
    """A method cannot compute the edit that was asked for."""


class StoreError(SurgeryError):
    """The store of intermediate results cannot be read or written."""


class JudgeError(SurgeryError):
    """A judge cannot be loaded, or does not know what it is asked about."""


class NumericsError(SurgeryError):
    """A system cannot be solved, or a number is not finite."""


class ConceptError(SurgeryError):
    """A concept's phrase, template or picture cannot be used."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name a person most likely meant, or None when nothing is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    matches = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def printable(text: str) -> str:
    """``text`` with whatever is no letter, sign or line break spelled out, as ``repr`` does."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def brief(value: object) -> str:
    """``repr(value)``, with the middle of what is long or deep left out."""
    return _brief.repr(value)


def raise_all(kind: type[SurgeryError], faults: Sequence[str]) -> None:
    """Raise one error that lists all faults, so that a user mends them in one go.

    Raises:
        kind: when there is at least one fault.
    """
    if not faults:
        return
    if len(faults) == 1:
        raise kind(faults[0])
    listed = [f"- {fault}" for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        listed.append(f"- and {len(faults) - _SHOWN} more")
    raise kind("\n".join([f"{len(faults)} faults:", *listed]), faults)
