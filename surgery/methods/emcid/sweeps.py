"""The sweeps of Stage II: layer after layer, keys and residuals measured on what has been changed so far."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from surgery import progress
from surgery.anatomy import Span, TextStack
from surgery.errors import MethodError
from surgery.methods.emcid.earlier import WrittenKey
from surgery.methods.emcid.grouping import Grouping
from surgery.methods.emcid.offsets import Target
from surgery.methods.emcid.settings import UpdateSettings
from surgery.methods.emcid.statistics import KeyStatistics
from surgery.methods.emcid.walk import Stretch, Walk
from surgery.numerics import Prior, Solution, null_space, prior, solve

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Site:
    """What is known about one edited layer: the terms of its change, how each was solved, and in the first
    sweep how well its keys can be told apart, with the two concepts that can be least of all.
    """

    terms: list[tuple[Float[Tensor, "width rank"], Float[Tensor, "rank d_in"]]] = field(default_factory=list)
    solutions: list[Solution] = field(default_factory=list)
    key_condition: float = 1.0
    closest: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What does not change over the sweeps: the prompts and where they shall end up.

    ``unedited`` is the stream of each prompt's subject behind the last edited block; ``wanted`` is v* there.
    """

    stack: TextStack
    subjects: tuple[Stretch, ...]
    kept: tuple[Stretch, ...]
    earlier: tuple[Stretch, ...]
    earlier_weights: Float[Tensor, "earlier"]
    grouping: Grouping
    weights: Float[Tensor, "concepts"]
    offsets: Float[Tensor, "concepts width"]
    unedited: Float[Tensor, "prompts width"]
    wanted: Float[Tensor, "prompts width"]

    def shares(self, reached: Float[Tensor, "prompts width"]) -> Float[Tensor, "concepts"]:
        """The part of each offset that has arrived, along its direction; 1 where there is none to arrive."""
        offsets = self.offsets.double()
        arrived = self.grouping.mean((reached - self.unedited).double())
        size = offsets.square().sum(1)
        return torch.where(
            size > 0, (arrived * offsets).sum(1) / size.clamp_min(1e-300), torch.ones_like(size)
        )

    def missing(self, reached: Float[Tensor, "prompts width"]) -> Float[Tensor, "concepts"]:
        """The length of what is missing from v*, the mean over each concept's prompts."""
        lengths: Tensor = self.grouping.mean((self.wanted - reached).double()).norm(dim=1)
        return lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeps:
    """Where the sweeps ended."""

    sites: Mapping[int, Site]
    reached: Float[Tensor, "prompts width"]
    count: int


def subjects_of(targets: Sequence[Target]) -> tuple[tuple[Stretch, ...], Grouping]:
    """The prompts of all concepts, each cut behind its subject."""
    stretches = tuple(
        Stretch(ids=span.ids[: span.end], start=span.last, end=span.end)
        for target in targets
        for span in target.concept.spans
    )
    owner = [index for index, target in enumerate(targets) for _ in target.concept.spans]
    return stretches, Grouping(owner=torch.tensor(owner))


def kept_of(preserve: Sequence[Span]) -> tuple[Stretch, ...]:
    """Prompts to preserve: all tokens that the phrase can reach, from its own to the end."""
    return tuple(Stretch(ids=span.ids, start=span.start, end=len(span.ids)) for span in preserve)


def earlier_of(keys: Sequence[WrittenKey]) -> tuple[Stretch, ...]:
    """The prompts of earlier edits, each looked at where that edit wrote."""
    return tuple(Stretch(ids=key.ids, start=len(key.ids) - 1, end=len(key.ids)) for key in keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guards:
    """What is to stay as it is, on its way through the blocks beside the subjects."""

    kept: Walk | None
    earlier: Walk | None
    earlier_weights: Tensor

    def step(self, weights: Mapping[int, Tensor]) -> None:
        for walk in (self.kept, self.earlier):
            if walk is not None:
                walk.step(weights)

    def added_to(self, matrix: Tensor, settings: UpdateSettings) -> Tensor:
        """B + β Kₚ Kₚᵀ + α K₀ diag(w₀) K₀ᵀ, as far as there are such keys."""
        if self.kept is not None:
            keys = self.kept.keys().double()
            matrix = matrix + settings.preserve_weight * keys.T @ keys
        if self.earlier is not None:
            keys = self.earlier.keys().double()
            matrix = matrix + keys.T @ (settings.alpha * self.earlier_weights[:, None] * keys)
        return matrix


def _guards(course: Course) -> _Guards:
    return _Guards(
        kept=Walk(course.stack, course.kept) if course.kept else None,
        earlier=Walk(course.stack, course.earlier) if course.earlier else None,
        earlier_weights=course.earlier_weights,
    )


def measure(
    stack: TextStack, subjects: Sequence[Stretch], layers: Sequence[int]
) -> tuple[list[Float[Tensor, "prompts d_in"]], Float[Tensor, "prompts width"]]:
    """The unedited keys of each layer, and the stream behind the last of them."""
    walk, keys = Walk(stack, subjects), []
    for layer in range(layers[-1] + 1):
        if layer in layers:
            keys.append(walk.keys())
        walk.step({})
    return keys, walk.stream()


def sweep_layers(course: Course, statistics: KeyStatistics, settings: UpdateSettings) -> Sweeps:
    """Sweep until every concept has attained its share, or the sweeps run out."""
    sites = {layer: Site() for layer in settings.layers}
    weights: dict[int, Tensor] = {}
    reached, count = course.unedited, 0
    for _ in progress.track(range(settings.sweeps), "sweeps", unit="sweep"):
        reached = _sweep(course, statistics, settings, sites, weights)
        count += 1
        smallest = float(course.shares(reached).min())
        _log.info("sweep %d: smallest attained share %.3f", count, smallest)
        if settings.attained_share is not None and smallest >= settings.attained_share:
            break
    return Sweeps(sites=sites, reached=reached, count=count)


def _sweep(
    course: Course,
    statistics: KeyStatistics,
    settings: UpdateSettings,
    sites: Mapping[int, Site],
    weights: dict[int, Tensor],
) -> Tensor:
    walk = Walk(course.stack, course.subjects)
    guards = _guards(course)
    for layer in range(settings.layers[-1] + 1):
        if layer in sites:
            left, right = _solve(course, statistics, settings, sites[layer], walk, guards, weights)
            before = weights.get(layer, course.stack.weight(layer))
            weights[layer] = before + (left @ right).to(before.device, before.dtype)
        walk.step(weights)
        guards.step(weights)
    return walk.stream()


def _solve(
    course: Course,
    statistics: KeyStatistics,
    settings: UpdateSettings,
    site: Site,
    walk: Walk,
    guards: _Guards,
    weights: Mapping[int, Tensor],
) -> tuple[Tensor, Tensor]:
    """One layer: ΔW = R (A⁻¹ K diag(a))ᵀ as its two factors, noted at its site."""
    layer, grouping = walk.layer, course.grouping
    keys = walk.keys()
    layers_left = len(settings.layers) - settings.layers.index(layer)
    residual = (course.wanted - _current(course, settings, walk, keys, weights)) / layers_left
    columns, column_weights = keys, grouping.spread(course.weights / grouping.counts)
    if settings.keys == "mean":
        columns, residual, column_weights = grouping.mean(keys), grouping.mean(residual), course.weights
    known = _prior(statistics, settings, layer, guards)
    solution = solve(known, columns.double().T, settings.alpha * column_weights.double())
    factors = residual.double().T, solution.solved.T
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise MethodError(
            f"the change of layer {layer} is not finite; expected finite numbers. Nothing was written. "
            "Look at the offsets' lengths and at the key statistics."
        )
    site.terms.append(factors)
    site.solutions.append(solution)
    if len(site.solutions) == 1:
        site.key_condition, site.closest = _key_condition(_gram(known, solution, grouping, keys))
    return factors


def _current(
    course: Course, settings: UpdateSettings, walk: Walk, keys: Tensor, weights: Mapping[int, Tensor]
) -> Float[Tensor, "prompts width"]:
    if settings.residual == "block":
        return walk.stream_behind(settings.layers[-1], weights)
    fc2 = course.stack.blocks[walk.layer].mlp.fc2
    weight = weights.get(walk.layer, course.stack.weight(walk.layer))
    with torch.no_grad():
        return linear(keys.to(weight.device), weight, fc2.bias).cpu()


def _prior(statistics: KeyStatistics, settings: UpdateSettings, layer: int, guards: _Guards) -> Prior:
    moment = statistics.moment(layer)
    matrix = guards.added_to((1 - settings.alpha) * settings.ridge * moment, settings)
    threshold = settings.null_space_threshold
    return prior(matrix, None if threshold is None else null_space(moment, threshold))


def _gram(
    known: Prior, solution: Solution, grouping: Grouping, keys: Float[Tensor, "prompts d_in"]
) -> Float[Tensor, "concepts concepts"]:
    """Kᵀ B⁻¹ K of the concepts' mean keys, from what the solve came past where it did."""
    gram = solution.gram
    if gram is None:
        means = grouping.mean(keys).double().T
        inner = means if known.basis is None else known.basis.T @ means
        return inner.T @ known.factor.solve(inner)
    concepts = len(grouping.counts)
    return gram if len(gram) == concepts else grouping.mean(grouping.mean(gram).T)


def _key_condition(gram: Float[Tensor, "concepts concepts"]) -> tuple[float, tuple[int, int] | None]:
    """Condition of Kᵀ B⁻¹ K scaled to a unit diagonal: how well the prior can tell the concepts apart.

    With it the two concepts whose keys are most alike to it, None where there is only one.
    """
    scale = gram.diagonal().clamp_min(1e-300).sqrt()
    alike = gram / scale / scale[:, None]
    values = torch.linalg.eigvalsh(alike)
    condition = float(values[-1] / values[0].clamp_min(1e-300))
    if len(values) == 1:
        return condition, None
    one, other = divmod(int(alike.triu(1).abs().argmax()), len(alike))
    return condition, (one, other)
