"""The score of every weight: what a concept's measure loses, to first order, when it is set to nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.anatomy import weights_of
from surgery.diffusion import Models, give_back_freed, halving
from surgery.methods.cad.gradients import Grading, Sums, add_gradients, is_small
from surgery.methods.cad.nouns import Measured, Pairs
from surgery.progress import track

Scores: TypeAlias = Callable[[], Iterable[tuple[str, Float[Tensor, "*shape"]]]]
"""Gives the score of each weight, tensor by tensor, each time it is called; nothing is kept in between."""

_SMALL: Final = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """The scores of one concept, positive where the weight makes the concept, and its measure.

    ``gradients`` are means over all pairs, of the measure. Scores are made when they are asked for.

    Attributes:
        weights: The models' weights themselves.
        gradients: ∂J/∂w, float32.
        spread: Standard error of each gradient between samples, where it was asked for.
        measured: J of each pair.
    """

    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Float[Tensor, "*shape"]]
    spread: Mapping[str, Float[Tensor, "*shape"]] | None
    measured: Measured

    def score(self, name: str) -> Float[Tensor, "*shape"]:
        """α = w · ∂J/∂w of one tensor, in float32.

        Source: 2412.02542, eq. 4 (1.1 of the study).
        """
        return self.weights[name].detach().float().cpu() * self.gradients[name]

    def scores(self) -> Iterator[tuple[str, Float[Tensor, "*shape"]]]:
        """The score of each weight, by sorted names."""
        for name in sorted(self.gradients):
            yield name, self.score(name)

    def t_statistics(self) -> Iterator[tuple[str, Float[Tensor, "*shape"]]]:
        """Score over its standard error; nothing where the weight or its gradient is nothing."""
        spread = self.spread or {}
        for name in sorted(self.gradients):
            t = self.gradients[name] / spread[name].clamp_min(_SMALL)
            yield name, t * self.weights[name].detach().float().cpu().sign()


def attribute(
    models: Models,
    pairs: Pairs,
    grading: Grading,
    *,
    standard_errors: bool = False,
) -> Attribution:
    """The scores of the weights in ``grading`` for the concept whose pairs these are.

    Args:
        models: The unedited checkpoint; it is left as it was.
        pairs: Noisy pictures with their targets.
        grading: How passes are made.
        standard_errors: Whether the spread between paths (pictures) is kept.

    Raises:
        MethodError: as ``add_gradients``.
    """
    sums = Sums(differences={} if standard_errors else None)
    measured = list(add_samples(models, pairs, grading, sums))
    return attribution_of(models, grading, sums, together(measured), len(pairs))


def add_samples(models: Models, pairs: Pairs, grading: Grading, sums: Sums) -> Iterator[Measured]:
    """Add some paths (pictures) after others to ``sums``; the measure of each lot as it is added.

    A lot is as many as fill a micro-batch. Where memory runs out, micro-batches are halved from there on, and
    a warning says so. Memory that a large U-Net frees between passes goes back to the system.
    """
    size = grading.micro_batch
    if not is_small(models.unet):
        give_back_freed()
    for part in track(list(_lots(pairs, size)), "gradients", unit="lot"):
        # sums of its own for each attempt: one that runs out of memory leaves nothing half-added; one picture
        # at a time is the last attempt, and adds where the sums are
        def attempt(micro_batch: int, part: Pairs = part) -> tuple[int, Sums, Measured]:
            own = sums
            if micro_batch > 1:
                own = Sums(differences=None if sums.differences is None else {}, last=sums.last)
            return (
                micro_batch,
                own,
                add_gradients(models, part, replace(grading, micro_batch=micro_batch), own),
            )

        size, own, measured = halving(size, attempt)
        if own is not sums:
            sums.merge(own)
        del own  # else its memory would be held while the next lot is graded
        yield measured


def _lots(pairs: Pairs, size: int) -> Iterator[Pairs]:
    """Whole samples side by side, in order, up to ``size`` pairs at a time; at least one sample."""
    rows: list[int] = []
    for number in pairs.sample.unique().tolist():
        own = (pairs.sample == number).nonzero().flatten().tolist()
        if rows and len(rows) + len(own) > size:
            yield pairs.select(rows)
            rows = []
        rows += own
    if rows:
        yield pairs.select(rows)


def attribution_of(
    models: Models, grading: Grading, sums: Sums, measured: Measured, pairs: int
) -> Attribution:
    """Sums over so many pairs as an attribution; the sums' own memory is used up."""
    names, spread = grading.names, None
    # gradients of logarithms are shares of the measure
    count = pairs / abs(measured.mean) if grading.even else pairs
    if sums.differences is not None:
        spread = {name: _standard_error(sums, name, count) for name in names}
    for name in names:
        sums.gradients[name] /= count
    return Attribution(
        weights={name: weight.detach() for name, weight in weights_of(models, tuple(names)).items()},
        gradients={name: sums.gradients[name] for name in names},
        spread=spread,
        measured=measured,
    )


def _standard_error(sums: Sums, name: str, pairs: float) -> Tensor:
    """Of the mean over pairs: √(n / (2 (n - 1)) · Σ(gₖ - gₖ₋₁)²) / pairs, of n equally large samples.

    Neighbours pass nearly the same timesteps, so that what differs between timesteps, which is no error of
    samples that are spread over them, does not count.

    Source: Wolter 1984, the estimator v₂ for systematic samples.
    """
    assert sums.differences is not None
    count = sums.samples
    return (sums.differences[name] * (count / (2 * max(1, count - 1)))).sqrt() / pairs


def together(parts: Sequence[Measured]) -> Measured:
    """The measures of several parts of a concept's pairs as one."""
    return Measured(
        values=torch.cat([part.values for part in parts]),
        timesteps=torch.cat([part.timesteps for part in parts]),
        sample=torch.cat([part.sample for part in parts]),
    )
