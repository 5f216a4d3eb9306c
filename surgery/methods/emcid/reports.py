"""What is told about an edit: per concept what it attained, per layer how much changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.anatomy import TextStack
from surgery.methods.emcid.nouns import warning
from surgery.methods.emcid.offsets import Target
from surgery.methods.emcid.settings import UpdateSettings
from surgery.methods.emcid.sweeps import Course, Site, Sweeps
from surgery.record import Finding

_LARGE_CHANGE = 0.5
_LARGE_INTERFERENCE = 0.5
_SMALL_SHARE = 0.3
_ENTANGLED = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """How one concept fared.

    ``attained_share`` is the part of the offset that arrives behind the last edited block (1 = all of it,
    along its direction). ``gains`` are the shares that each layer's closed form grants, in the order of the
    layers. ``residual_before`` and ``residual_after`` are what is missing from v*, in lengths of the
    stream. ``interference`` is the largest share of another concept's residual that arrives here, in any
    layer; 0 and no ``partner`` when there is no other.
    """

    label: str
    attained_share: float
    gains: tuple[float, ...]
    residual_before: float
    residual_after: float
    partner: str | None
    interference: float
    steps: int
    first_loss: float
    last_loss: float
    settled: bool
    clamped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """How one layer was solved and changed.

    ``drift`` is ‖ΔW‖ / ‖W‖. ``jitter`` and ``shrinkage`` are what the factorisation needed (0 = nothing),
    as in ``numerics.Factor``; ``condition`` that of the system, ``key_condition`` that of the concepts'
    keys as the prior sees them, and ``closest`` the two that it can tell apart least. ``rounding_loss`` is
    the share of ΔW that is lost when the sum is stored in the checkpoint's own type.
    """

    layer: int
    name: str
    rank: int
    change: float
    drift: float
    route: str
    jitter: float
    shrinkage: float
    condition: float
    key_condition: float
    closest: tuple[str, str] | None
    rounding_loss: float


def layer_report(
    stack: TextStack,
    layer: int,
    site: Site,
    factors: tuple[Tensor, Tensor],
    stored: torch.dtype,
    labels: Sequence[str],
    component: str = "text_encoder",
) -> LayerReport:
    """The report of one layer, from its first sweep and its whole change; ``labels`` name the concepts."""
    left, right = factors
    first, weight, change = site.solutions[0], stack.weight(layer).cpu(), left @ right
    size = float(change.norm())
    return LayerReport(
        layer=layer,
        name=stack.name(layer, component),
        rank=left.shape[1],
        change=size,
        drift=size / float(weight.double().norm()),
        route=first.route,
        jitter=max(solution.jitter for solution in site.solutions),
        shrinkage=max(solution.shrinkage for solution in site.solutions),
        condition=first.condition,
        key_condition=site.key_condition,
        closest=None if site.closest is None else (labels[site.closest[0]], labels[site.closest[1]]),
        rounding_loss=rounding_loss(weight, change, stored),
    )


def edit_reports(
    targets: Sequence[Target], course: Course, sweeps: Sweeps, settings: UpdateSettings
) -> tuple[EditReport, ...]:
    """The report of each concept, in the order of the targets."""
    responses = [site.solutions[0].response for site in sweeps.sites.values()]
    if settings.keys == "all":
        responses = [course.grouping.response(response) for response in responses]
    gains = torch.stack([response.diagonal() for response in responses], 1).tolist()
    shares = course.shares(sweeps.reached).tolist()
    before, after = (course.missing(stream).tolist() for stream in (course.unedited, sweeps.reached))
    partners = worst_partners(responses)
    return tuple(
        EditReport(
            label=target.concept.label,
            attained_share=shares[index],
            gains=tuple(gains[index]),
            residual_before=before[index],
            residual_after=after[index],
            partner=None if partner is None else targets[partner].concept.label,
            interference=disturbed,
            steps=target.steps,
            first_loss=target.first_loss,
            last_loss=target.last_loss,
            settled=target.settled,
            clamped=target.clamped,
        )
        for index, (target, (partner, disturbed)) in enumerate(zip(targets, partners, strict=True))
    )


def worst_partners(
    responses: Sequence[Float[Tensor, "concepts concepts"]],
) -> list[tuple[int | None, float]]:
    """For each concept the other one that disturbs it most in any layer, and the share that arrives."""
    stacked = torch.stack(list(responses)).abs()
    if stacked.shape[1] == 1:
        return [(None, 0.0)]
    stacked.diagonal(dim1=1, dim2=2).zero_()
    values, partners = stacked.amax(0).max(1)
    return [(int(partner), float(value)) for partner, value in zip(partners, values, strict=True)]


def rounding_loss(weight: Tensor, change: Tensor, stored: torch.dtype) -> float:
    """‖rounded(W + ΔW) - (W + ΔW)‖ / ‖ΔW‖ for the type that weights are stored in; 0 without a change."""
    exact = weight.double() + change.double()
    size = float(change.double().norm())
    return 0.0 if size == 0 else float((exact.to(stored).double() - exact).norm()) / size


def layer_findings(reports: Sequence[LayerReport]) -> list[Finding]:
    """Warnings about layers that needed help, changed much, or have keys that can hardly be told apart."""
    found = [finding for report in reports for finding in _layer_findings(report)]
    large = [report for report in reports if report.drift > _LARGE_CHANGE]
    if large:
        worst, numbers = max(report.drift for report in large), [report.layer for report in large]
        message = f"‖ΔW‖/‖W‖ is up to {worst:.2f}; expected at most {_LARGE_CHANGE}. "
        subject = f"layers {', '.join(map(str, numbers))}"
        found.append(warning("large-change", subject, message + "A larger ridge changes less."))
    return found


def _layer_findings(report: LayerReport) -> list[Finding]:
    found, subject = [], f"layer {report.layer}"
    if report.shrinkage or report.jitter:
        helped = f"a relative jitter of {report.jitter:.0e}"
        if report.shrinkage:
            helped = f"{report.shrinkage:.1%} of the identity mixed in"
        message = f"the system was singular and was solved with {helped}. More captions would help."
        found.append(warning("singular", subject, message))
    if report.key_condition > _ENTANGLED and report.closest is not None:
        message = (
            f"the concepts' keys have condition {report.key_condition:.1g}, and {report.closest[0]} and "
            f"{report.closest[1]} can be told apart least of all. Keep one of them, or give them templates "
            "that set them apart."
        )
        found.append(warning("entangled-keys", subject, message))
    return found


def edit_findings(reports: Sequence[EditReport]) -> list[Finding]:
    """Warnings about concepts that hardly arrive, and about those that another one disturbs."""
    weak = [
        warning(
            "hardly-attained",
            report.label,
            f"only {report.attained_share:.0%} of its offset arrives. Try a smaller ridge or more sweeps.",
        )
        for report in reports
        if report.attained_share < _SMALL_SHARE
    ]
    disturbed = [
        warning(
            "interference",
            report.label,
            f"{report.interference:.0%} of what is written for {report.partner} arrives here too.",
        )
        for report in reports
        if report.partner is not None and report.interference > _LARGE_INTERFERENCE
    ]
    return [*weak, *disturbed]
