"""What a loader does with each change of a file, and with the file as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from surgery.errors import PatchError
from surgery.export.loaders.arithmetic import scale_of
from surgery.export.loaders.conditions import CONDITIONS, FILE_CONDITIONS
from surgery.export.loaders.contents import Change, Contents
from surgery.export.loaders.table import FAMILIES, Loader, Rule, Word

_UNMATCHED: Final = "too-many-unmatched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of one change, how loudly the loader says so, why, and how that is known."""

    change: Change
    word: Word
    heard: str
    why: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a loader refuses a whole file, how loudly it says so, and how that is known."""

    why: str
    heard: str
    evidence: str


def verdicts(contents: Contents, loader: Loader) -> tuple[Verdict, ...]:
    """What becomes of each change of a file, as if no other change spoilt the file."""
    return tuple(_verdict(change, contents, loader) for change in contents.changes)


def refusals(contents: Contents, loader: Loader, found: Sequence[Verdict]) -> tuple[Refusal, ...]:
    """Why the loader refuses the file as a whole; nothing when it does not."""
    single = [Refusal(v.why, v.heard, v.evidence) for v in found if v.word == "refused"]
    whole = [
        Refusal(rule.why, rule.heard, rule.evidence)
        for rule in loader.file_rules
        if _holds(rule.when, contents, loader, found)
    ]
    return tuple(dict.fromkeys([*single, *whole]))


def _verdict(change: Change, contents: Contents, loader: Loader) -> Verdict:
    for rule in loader.rules:
        if _matches(rule, change, contents):
            break
    else:
        raise PatchError(f"the table has no rule of {loader.name} for a change by {change.form!r}.")
    word, why, heard = rule.verdict, rule.why, rule.heard
    if word == "applied" and change.form == "lora":
        scale, meant = (scale_of(kind, change.module, contents) for kind in (loader.scale, "plain"))
        if scale != meant:
            word, heard = "misapplied", "nothing"
            why = f"it is scaled by {scale:g}, where alpha and rank say {meant:g}: alphas differ in the file"
    return Verdict(change=change, word=word, heard=heard, why=why, evidence=rule.evidence)


def _matches(rule: Rule, change: Change, contents: Contents) -> bool:
    module, layer = change.module, change.module.layer
    return (
        (not rule.namings or module.naming in rule.namings)
        and (not rule.prefixes or module.prefix in rule.prefixes)
        and (not rule.forms or change.form in rule.forms)
        and (not rule.families or contents.architecture in [FAMILIES[word] for word in rule.families])
        and (not rule.kinds or (layer is not None and layer.kind in rule.kinds))
        and (not rule.paths or (layer is not None and any(fnmatchcase(layer.path, p) for p in rule.paths)))
        and all(CONDITIONS[word](change, contents) for word in rule.when)
    )


def _holds(when: str, contents: Contents, loader: Loader, found: Sequence[Verdict]) -> bool:
    if when != _UNMATCHED:
        return FILE_CONDITIONS[when](contents)
    unmatched = [v for v in found if v.word == "dropped" and v.heard != "nothing"]
    keys = {key for verdict in unmatched for key in verdict.change.module.parts.values()}
    return loader.unmatched_limit is not None and len(keys) > loader.unmatched_limit
