"""Stage II: all offsets at once become changes of ``fc2`` in several layers, in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surgery.anatomy import Span, TextStack, frozen, text_stack, weights_digest
from surgery.delta import Delta, Dense, LowRank
from surgery.errors import MethodError, raise_all
from surgery.methods.emcid.duplicates import reconcile
from surgery.methods.emcid.earlier import WrittenKey
from surgery.methods.emcid.offsets import Target
from surgery.methods.emcid.reports import (
    EditReport,
    LayerReport,
    edit_findings,
    edit_reports,
    layer_findings,
    layer_report,
)
from surgery.methods.emcid.settings import UpdateSettings
from surgery.methods.emcid.statistics import KeyStatistics
from surgery.methods.emcid.sweeps import Course, earlier_of, kept_of, measure, subjects_of, sweep_layers
from surgery.numerics import break_even_rank, join_terms
from surgery.record import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The change of the weights, and what is told about it; ``edits`` are in the order of the targets."""

    delta: Delta
    edits: tuple[EditReport, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    findings: tuple[Finding, ...] = ()
    sweeps: int = 0


def solve_updates(
    encoder: nn.Module,
    targets: Sequence[Target],
    statistics: KeyStatistics,
    settings: UpdateSettings,
    *,
    preserve: Sequence[Span] = (),
    earlier: Sequence[WrittenKey] = (),
    stored: torch.dtype | None = None,
    digest: str | None = None,
    component: str = "text_encoder",
) -> Update:
    """The change of ``fc2`` in every edited layer that carries all targets together.

    Layer by layer in ascending order, with the layers before already changed: keys and the residual still
    missing are measured, the residual is divided by the number of layers left, and
    ΔW = R (A⁻¹ K diag(a))ᵀ with A = (1 - α) λ C + K diag(a) Kᵀ + β Kₚ Kₚᵀ + K₀ diag(a₀) K₀ᵀ and
    aₑ = α · weight of the edit; K₀ are the keys that earlier edits wrote at, with the weights they had then.
    Further sweeps do the same again on the changed weights. The encoder is read and never changed.

    Args:
        encoder: The unedited text encoder in float32.
        targets: What Stage I found; every one is used.
        statistics: Key statistics of this encoder for all edited layers.
        settings: Stage II.
        preserve: Prompts whose tokens, from the phrase to the end, are to keep their meaning.
        earlier: What edits that are in this encoder already wrote at; they are to keep what they attained.
        stored: Type of the weights on disk, for the report of what rounding loses.
        digest: The encoder's ``weights_digest``, where the caller has it.
        component: Which of the checkpoint's text encoders it is.

    Raises:
        MethodError: when targets or statistics belong to another encoder or layer, or a number is not finite.
        ConceptError: when near-duplicate sources have different destinations.
        NumericsError: when a system cannot be solved.

    Source: 2.1 to 2.3, 7 (lever 8) and 8.2 of the study. One walk instead of two passes per layer, prompts
    cut at the subject, Cholesky and Woodbury instead of LU: the same numbers up to rounding (tests/parity).
    """
    if not targets:
        return Update(delta=Delta())
    stack = text_stack(encoder)
    digest = digest or weights_digest(encoder)
    _check(targets, settings, digest)
    statistics.check(stack, digest, settings.layers)
    with frozen(encoder):
        course, settled, findings = _course(stack, targets, settings, preserve, earlier)
        sweeps = sweep_layers(course, statistics, settings)
    terms = {layer: join_terms(site.terms) for layer, site in sweeps.sites.items()}
    dtype = stored or stack.weight(0).dtype
    labels = [target.concept.label for target in settled]
    layers = tuple(
        layer_report(stack, layer, site, terms[layer], dtype, labels, component)
        for layer, site in sweeps.sites.items()
    )
    edits = edit_reports(settled, course, sweeps, settings)
    return Update(
        delta=Delta({stack.name(layer, component): _form(*factors) for layer, factors in terms.items()}),
        edits=edits,
        layers=layers,
        findings=(*findings, *layer_findings(layers), *edit_findings(edits)),
        sweeps=sweeps.count,
    )


def _check(targets: Sequence[Target], settings: UpdateSettings, digest: str) -> None:
    last = settings.layers[-1]
    faults = []
    for target in targets:
        label = target.concept.label
        if target.encoder_digest != digest:
            faults.append(
                f"{label}: its offset was learned on the text encoder {target.encoder_digest[:12]}, and this "
                f"one is {digest[:12]}. Is this checkpoint edited already? Start from the unedited one."
            )
        if target.layer != last:
            faults.append(
                f"{label}: its offset belongs behind block {target.layer}; the last edited one is {last}. "
                "Learn it again for these layers."
            )
        if not bool(torch.isfinite(target.offset).all()):
            faults.append(f"{label}: its offset is not finite. Leave the concept out.")
    raise_all(MethodError, faults)


def _course(
    stack: TextStack,
    targets: Sequence[Target],
    settings: UpdateSettings,
    preserve: Sequence[Span],
    earlier: Sequence[WrittenKey],
) -> tuple[Course, list[Target], list[Finding]]:
    subjects, grouping = subjects_of(targets)
    keys, unedited = measure(stack, subjects, settings.layers)
    settled, findings = reconcile(targets, [grouping.mean(layer) for layer in keys])
    offsets = torch.stack([target.offset for target in settled])
    anchor = unedited
    if settings.anchor == "first":
        anchor = grouping.spread(torch.stack([target.source for target in settled]))
    course = Course(
        stack=stack,
        subjects=subjects,
        kept=kept_of(preserve),
        earlier=earlier_of(earlier),
        earlier_weights=torch.tensor([key.weight for key in earlier], dtype=torch.float64),
        grouping=grouping,
        weights=torch.tensor([target.concept.edit.weight for target in settled], dtype=torch.float64),
        offsets=offsets,
        unedited=unedited,
        wanted=anchor + grouping.spread(offsets),
    )
    return course, settled, findings


def _form(left: Tensor, right: Tensor) -> LowRank | Dense:
    """Two factors while they are no bigger than their product."""
    if left.shape[1] <= break_even_rank(left.shape[0], right.shape[1]):
        return LowRank(left=left, right=right)
    return Dense(values=left @ right)
