"""The door of component attribution: concepts and models in, masks and a delta out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from surgery.delta import Delta
from surgery.diffusion import Models
from surgery.errors import MethodError, raise_all
from surgery.methods.cad.fit import model_findings, refuse_unfit
from surgery.methods.cad.maker import Maker, MaskReport
from surgery.methods.cad.masks import delta_of
from surgery.methods.cad.nouns import CadConcept
from surgery.methods.cad.settings import CadSettings, aimed, check_settings
from surgery.methods.concepts import repeats
from surgery.record import Finding
from surgery.store import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CadResult:
    """Masks and the change that they make."""

    delta: Delta
    masks: tuple[MaskReport, ...]
    findings: tuple[Finding, ...]


def edit(
    models: Models,
    concepts: Sequence[CadConcept],
    names: tuple[str, ...],
    settings: CadSettings,
    *,
    retain: Sequence[CadConcept] = (),
    store: Store | None = None,
) -> CadResult:
    """The change that takes the weights of some concepts away. The models are read and never changed.

    Args:
        models: The unedited checkpoint.
        concepts: Whose weights.
        names: Canonical names of the tensors looked at (``components_of``).
        settings: How weights are scored and chosen.
        retain: Concepts that must stay, for the rankings ``retain`` and ``damage`` and for ``protect``.
        store: Where lists and half-done attributions are kept, so that a killed run goes on where it was.

    Raises:
        MethodError: when settings, names or models do not fit, or scores are not finite.

    Source: arXiv 2412.02542.
    """
    check_edit(concepts, settings, retain)
    refuse_unfit(models, names, settings.attribution)
    maker = Maker(models, names, settings, tuple(retain), store)
    maker.shelf.share_batches(concepts, settings.attribution)
    reports, findings = [], list(model_findings(models, (*concepts, *retain)))
    together = tuple(concepts)
    if settings.combine in ("intersection", "difference"):
        made = [maker.joint(together)]
    else:
        groups = [together] if settings.combine == "sum" else [(concept,) for concept in concepts]
        made = [maker.report(group, len(concepts)) for group in groups]
    for report, found in made:
        reports.append(report)
        findings += found
    for finding in findings:
        if finding.severity == "warning":
            _log.warning("%s: %s", finding.subject, finding.message)
    strength = settings.selection.strength
    return CadResult(
        delta=delta_of([(report.mask, strength) for report in reports]),
        masks=tuple(reports),
        findings=tuple(findings),
    )


def check_edit(
    concepts: Sequence[CadConcept], settings: CadSettings, retain: Sequence[CadConcept] = ()
) -> None:
    """Refuse what ``edit`` would refuse before anything is computed.

    Raises:
        MethodError: all faults at once.
    """
    check_settings(settings.attribution, settings.selection)
    chosen = settings.selection
    faults = []
    if not concepts:
        faults.append("no concept is named; expected at least one.")
    if not retain and (chosen.ranking in ("retain", "damage") or chosen.protect > 0):
        faults.append(
            f"ranking {chosen.ranking!r} with protect {chosen.protect:g} looks at concepts to retain; "
            "expected some. Name them under retain."
        )
    faults += [
        f"{name} is {rows}; expected 1 or more. Leave it out for the default."
        for name, rows in (("batch", settings.batch), ("micro_batch", settings.micro_batch))
        if rows is not None and rows < 1
    ]
    if not 0 <= chosen.strength <= 1:
        faults.append(f"strength is {chosen.strength:g}; expected 0 (keep) to 1 (take all).")
    if chosen.ratio == 0 and chosen.left is None:
        faults.append("ratio is 0: nothing would be masked; expected a share above 0.")
    if chosen.left is not None and settings.polarity == "negative":
        faults.append("left is how far a concept is erased; the other polarity needs a ratio or a count.")
    if chosen.left is not None and settings.combine not in ("union", "sum"):
        faults.append(f"combine {settings.combine!r} needs a ratio, and left seeks one; use union or sum.")
    if chosen.scores and settings.combine in ("intersection", "difference"):
        faults.append(f"combine {settings.combine!r} leaves no scores to carry; set scores to false.")
    if settings.combine in ("intersection", "difference") and len(concepts) < 2:
        faults.append(f"combine {settings.combine!r} is of several masks; expected two concepts or more.")
    if settings.attribution.standard_errors:
        faults += [
            f"{one.name!r} has one picture, and standard errors are between pictures; expected two or more."
            for one in (*concepts, *retain)
            if len(one.images) == 1
        ]
    faults += repeats([concept.name for concept in retain])
    going = aimed(concepts, settings.combine)
    both = {concept.name.casefold() for concept in going} & {one.name.casefold() for one in retain}
    if both:
        faults.append(f"{', '.join(sorted(both))} is to go and to be retained; expected one of the two.")
    raise_all(MethodError, faults)
