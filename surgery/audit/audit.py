"""The audit itself: two checkpoints or a patch in, a record of what changed out."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from surgery.anatomy.atlas import ROLES, block_order
from surgery.audit.classify import Evidence, classify
from surgery.audit.facts import by_component
from surgery.audit.merge import fit_merge
from surgery.audit.operator import fit_operator
from surgery.audit.patch_side import expectation, open_patch
from surgery.audit.sides import CheckpointPair, Sides, refuse_strangers
from surgery.audit.tensors import tensor_rows
from surgery.audit.words import own_captions, own_words, rank_words, read_captions, read_words
from surgery.checkpoint.beside import Beside, beside_weights
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.errors import SurgeryError
from surgery.names import COMPONENTS
from surgery.record import JSON, Finding
from surgery.report.audit_record import AuditRecord, Claim, TensorRow, Total, WordReport
from surgery.store.libraries import library_versions

_log = logging.getLogger(__name__)

_TOUCHED: Final = ("changed", "cast", "rounded")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """What to look at.

    Attributes:
        spectra: Also the singular values of every changed matrix.
        words: A file of phrases; without one, the checkpoint's own names where it has them.
        captions: A file of prompts of the usual kind; without one, the checkpoint's own where it has them.
        other: A second model that may have been merged in.
        expect: A patch that should be in the edited checkpoint.
    """

    spectra: bool = True
    words: Path | None = None
    captions: Path | None = None
    other: Path | None = None
    expect: Path | None = None


def audit_checkpoints(base: Path, edited: Path, options: AuditOptions | None = None) -> AuditRecord:
    """What differs between two checkpoints of one family, in whatever layouts.

    Each tensor is read once, or a few times where its spectrum is asked for, a few megabytes at a time.

    Raises:
        CheckpointError: when one cannot be read, or they are of different families or sizes.
        SurgeryError: when a patch or a list of words cannot be read.
    """
    options = options or AuditOptions()
    pair = CheckpointPair(base=open_checkpoint(base), edited=open_checkpoint(edited))
    refuse_strangers(pair.base, pair.edited)
    other = None if options.other is None else open_checkpoint(options.other)
    if other is not None:
        refuse_strangers(pair.base, other)
    expected = None if options.expect is None else expectation(options.expect, edited)
    return _audit(pair, options, base=pair.base, other=other, expected=expected)


def audit_patch(patch: Path, base: Path | None = None, options: AuditOptions | None = None) -> AuditRecord:
    """What a patch changes; with its base also how far relative to the weights, and which words.

    Raises:
        PatchError: when the file is damaged, or ``base`` is not what it was made for.
        SurgeryError: when something else cannot be read, or words are asked for without a base.
    """
    options = options or AuditOptions()
    if base is None and (options.words or options.captions) is not None:
        raise SurgeryError(
            "words are looked for with the base's text encoder, and only a patch was given; expected the "
            "base too. Name it (--base)."
        )
    checkpoint = None if base is None else open_checkpoint(base)
    return _audit(open_patch(patch, checkpoint), options, base=checkpoint)


def _audit(
    sides: Sides,
    options: AuditOptions,
    *,
    base: Checkpoint | None,
    other: Checkpoint | None = None,
    expected: "dict[str, JSON] | None" = None,
) -> AuditRecord:
    phrases, captions = _lists(options, base)  # before the long reading: they may be refused
    rows = tensor_rows(sides, spectra=options.spectra)
    beside = beside_weights(sides.base, sides.edited) if isinstance(sides, CheckpointPair) else ()
    merge = fit_merge(sides, other, rows) if other and isinstance(sides, CheckpointPair) else None
    claims = classify(
        Evidence(
            rows=rows,
            has_base=sides.has_base,
            operator=fit_operator(sides, rows),
            merge=merge,
            beside=tuple(str(one) for one in beside if one.keys),
        )
    )
    words, notes = (
        (None, ()) if base is None or not phrases else rank_words(sides, rows, base, phrases, captions)
    )
    findings = (
        *_findings(rows),
        *_beside_findings(beside),
        *_second_copies(sides),
        *notes,
        *_unexpected(expected),
    )
    return AuditRecord(
        summary=_summary(rows, claims, words),
        sides=sides.facts,
        claims=claims,
        totals=tuple(_total(component, group) for component, group in _components(rows)),
        cells=tuple(_cells(rows)),
        roles=ROLES,
        tensors=rows,
        words=words,
        expected=expected,
        findings=findings,
        notes={
            "spectra": options.spectra,
            "words": None if options.words is None else str(options.words),
            "captions": None if options.captions is None else str(options.captions),
            "other": None if options.other is None else str(options.other),
            "versions": library_versions(),
        },
    )


def _lists(options: AuditOptions, base: Checkpoint | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The phrases to look for and the usual prompts, of the user's files or of those beside the base."""
    if base is None:
        return (), ()
    phrases = own_words(base.path) if options.words is None else read_words(options.words)
    captions = own_captions(base.path) if options.captions is None else read_captions(options.captions)
    if not phrases and options.captions is not None:
        raise SurgeryError(
            "captions were given and no words to look for; captions only tell what is usual for words. Name "
            "the words too (--words)."
        )
    return phrases, captions


def _components(rows: Iterable[TensorRow]) -> list[tuple[str, list[TensorRow]]]:
    groups = dict(by_component(rows))
    return [(component, groups[component]) for component in COMPONENTS if component in groups]


def _cells(rows: Sequence[TensorRow]) -> Iterable[Total]:
    for component, group in _components(rows):
        for block in block_order(row.block for row in group):
            for role in ROLES:
                cell = [row for row in group if (row.block, row.role) == (block, role)]
                if cell:
                    yield _total(component, cell, block, role)


def _total(component: str, rows: Sequence[TensorRow], block: str = "", role: str = "") -> Total:
    """Sums over some tensors; the norm of a change is put beside the norm of what it changes."""
    touched = [row for row in rows if row.state in _TOUCHED]
    norm = math.hypot(*(row.norm for row in touched))
    weight = math.hypot(*(row.base_norm for row in touched))
    return Total(
        component=component,
        block=block,
        role=role,
        tensors=len(rows),
        touched=sum(row.state != "same" for row in rows),
        elements=sum(row.elements for row in rows),
        changed=sum(row.changed for row in rows),
        norm=norm,
        relative=norm / weight if weight else None,
    )


def _findings(rows: Sequence[TensorRow]) -> Iterable[Finding]:
    for row in rows:
        if any(row.nonfinite):
            before, after = row.nonfinite
            message = f"{before:,} elements of the base and {after:,} of the edited are NaN or infinite"
            yield Finding(kind="not-finite", subject=row.name, message=message, severity="fault")
    texts = {"added": "only the edited one has it", "missing": "only the base has it"}
    for row in rows:
        if row.state in texts:
            yield Finding(kind=row.state, subject=row.name, message=texts[row.state], severity="warning")
        elif row.state == "reshaped":
            message = f"the shapes differ (the base's is {row.shape}); its values were not compared"
            yield Finding(kind="reshaped", subject=row.name, message=message, severity="warning")


def _beside_findings(beside: Sequence[Beside]) -> Iterable[Finding]:
    for one in beside:
        if one.keys:
            message = "differ; they are no weights of the pipeline, and no patch carries them"
            yield Finding(kind="beside", subject=str(one), message=message, severity="warning")
        if one.nonfinite:
            message = f"{one.nonfinite:,} elements of the edited are NaN or infinite"
            yield Finding(kind="not-finite", subject=one.what, message=message, severity="fault")


def _second_copies(sides: Sides) -> Iterable[Finding]:
    if not isinstance(sides, CheckpointPair):
        return
    for component, files in sorted(sides.edited.weights.items()):
        for file in files.surplus:
            message = "holds the component's weights a second time; this copy was not looked at"
            yield Finding(
                kind="second-copy", subject=f"{component}: {file}", message=message, severity="warning"
            )


def _unexpected(expected: "dict[str, JSON] | None") -> Iterable[Finding]:
    if expected is not None and expected["state"] not in ("after", "both"):
        words = {"before": "it is not in", "neither": "the checkpoint is neither its base nor its result"}
        message = f"{words[str(expected['state'])]}; expected it to be in"
        yield Finding(kind="not-expected", subject=str(expected["patch"]), message=message, severity="fault")


def _summary(rows: Sequence[TensorRow], claims: Sequence[Claim], words: WordReport | None) -> str:
    changed = [row for row in rows if row.state == "changed"]
    if not changed:
        others = sum(row.state != "same" for row in rows)
        start = f"No weight has another value; {others} tensors differ otherwise." if others else ""
        nothing = claims[0].statement.rstrip(".") if claims else "Nothing was changed"
        return start or f"{nothing}: all {len(rows):,} tensors are the same."
    weights = sum(row.changed for row in changed)
    parts = [f"{len(changed):,} of {len(rows):,} tensors changed, {weights:,} weight{'s' * (weights != 1)}"]
    if claims:
        parts[0] += f". {claims[0].statement}"
    if words is not None and words.touched:
        named, more = ", ".join(words.touched[:5]), len(words.touched) - 5
        parts.append(f" It is about {named}{f' and {more:,} more phrases' if more > 0 else ''}.")
    return "".join(parts)
