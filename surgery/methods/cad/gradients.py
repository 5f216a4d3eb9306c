"""How a concept's measure changes with each weight: gradients summed in place over many noisy pictures."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.anatomy import standing_in, weights_of
from surgery.diffusion import Models, Reading, device_and_dtype, predict_under, read_prompts, resident
from surgery.errors import MethodError
from surgery.methods.cad.nouns import Measured, Pairs
from surgery.names import TEXT_ENCODERS, split

_SMALL: Final = 100_000_000
"""Parameters of a U-Net whose passes are so short that many rows share one; SD 1.x has 860 million."""
MICRO_BATCH: Final = 4
"""Noisy pictures in one pass forward and back, unless told otherwise."""


@dataclass(slots=True, kw_only=True)
class Sums:
    """Sums of gradients, float32 on the CPU, of one sample (path or picture) after the other.

    ``differences`` are the sums of squared differences between each sample's gradient and that of the one
    before, which is ``last``; both stay out where there is no table.
    """

    gradients: dict[str, Tensor] = field(default_factory=dict)
    differences: dict[str, Tensor] | None = None
    last: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0

    def add(self, gathered: dict[str, Tensor]) -> None:
        """Add gradients, whose memory is used up; those of one sample, where differences are kept."""
        if self.differences is not None:
            for name in gathered.keys() & self.last.keys():
                add_to(self.differences, name, (gathered[name] - self.last[name]).square())
            self.last = {name: one.clone() for name, one in gathered.items()}
        _pour(gathered, self.gradients)

    def merge(self, other: "Sums") -> None:
        """Add the sums of the samples that follow, whose memory is used up."""
        self.samples += other.samples
        self.last = other.last
        _pour(other.gradients, self.gradients)
        if self.differences is not None and other.differences is not None:
            _pour(other.differences, self.differences)


def _pour(parts: dict[str, Tensor], total: dict[str, Tensor]) -> None:
    for name in list(parts):
        add_to(total, name, parts.pop(name))


def add_to(total: dict[str, Tensor], name: str, part: Tensor) -> None:
    """Add a tensor to the one of its name; the first of a name becomes the sum, and its memory with it."""
    if name in total:
        total[name] += part
    else:
        total[name] = part


@dataclass(frozen=True, slots=True, kw_only=True)
class Grading:
    """How passes are made: weights looked at, pictures at a time, and whether activations are kept.

    ``shrunk`` looks at the gradient where the weights are smaller by this share, half way to what an ablation
    leaves (the midpoint rule of 9). ``even`` takes gradients of the logarithm of each pair's measure.
    """

    names: tuple[str, ...]
    micro_batch: int = MICRO_BATCH
    checkpointing: bool = False
    shrunk: float = 0.0
    even: bool = False


def add_gradients(models: Models, pairs: Pairs, grading: Grading, sums: Sums) -> Measured:
    """Add the gradient of the measure of some pairs, summed over them, to ``sums``; the measure itself.

    Gradients in half precision are added up in float32 beyond a micro-batch.

    Raises:
        MethodError: when a gradient or the measure is not finite, or no gradient reaches a weight.
    """
    values = []
    with _graded(models, grading) as leaves:
        halves = any(leaf.dtype != torch.float32 for leaf in leaves.values())
        size = grading.micro_batch
        reader = _Reader(models, pairs, in_graph=_reads_text(leaves))
        if not halves and sums.differences is None:
            _lend(leaves, sums)
        for whole in _wholes(pairs, apart=sums.differences is not None):
            gathered: dict[str, Tensor] = {}
            for part in _parts(whole, size):
                found = _measure(models, part, reader)
                if grading.even and not bool(found.detach().all()):
                    raise MethodError(
                        "the measure of a noisy picture is nothing, and weighting 'even' divides by it: the "
                        "predictions for the concept and for the base prompt are alike. Does the prompt name "
                        "the concept, and is the base prompt another one?"
                    )
                if found.requires_grad:  # else none of the leaves is reached, which is told below
                    (found / found.detach().abs() if grading.even else found).sum().backward()
                values.append(found.detach().cpu())
                if halves:
                    _gather(leaves, gathered)
            _gather(leaves, gathered)
            sums.add(gathered)
    sums.samples += pairs.samples
    measured = Measured(values=torch.cat(values), timesteps=pairs.timesteps, sample=pairs.sample)
    _refuse_broken(sums, measured, grading.names)
    return measured


def _lend(leaves: Mapping[str, nn.Parameter], sums: Sums) -> None:
    """Let backward passes add to the sums where they are, which takes no second memory of their size."""
    for name, leaf in leaves.items():
        if name in sums.gradients and leaf.device == sums.gradients[name].device:
            leaf.grad = sums.gradients.pop(name)


def is_small(unet: nn.Module) -> bool:
    """Whether passes are so short that many rows share one."""
    return sum(weight.numel() for weight in unet.parameters()) < _SMALL


def _gather(leaves: Mapping[str, nn.Parameter], gathered: dict[str, Tensor]) -> None:
    """Take from the leaves what they have gathered."""
    for name, leaf in leaves.items():
        gradient = leaf.grad
        leaf.grad = None
        if gradient is not None:
            add_to(gathered, name, gradient.float().cpu())


@torch.no_grad()
def predictions(
    models: Models, pairs: Pairs, changed: Mapping[str, Tensor], micro_batch: int = 2 * MICRO_BATCH
) -> Float[Tensor, "pairs channels height width"]:
    """What the U-Net predicts for the concept's prompts with other values in the place of some weights."""
    device, _ = device_and_dtype(models.unet)
    values = {name: value.to(device) for name, value in changed.items()}
    with _present(models, values), standing_in(models, values):
        reader = _Reader(models, pairs, in_graph=False)
        return torch.cat([_predict(models, part, reader).cpu() for part in _parts(pairs, micro_batch)])


def measure(
    models: Models, pairs: Pairs, changed: Mapping[str, Tensor], micro_batch: int = 2 * MICRO_BATCH
) -> Measured:
    """The measure of some pairs with other values in the place of some weights; targets stay as they are."""
    return measured(pairs, predictions(models, pairs, changed, micro_batch))


def measured(pairs: Pairs, predicted: Float[Tensor, "pairs channels height width"]) -> Measured:
    """The measure of some pairs whose predictions are known.

    Raises:
        MethodError: when it is not finite.
    """
    found = Measured(values=_distances(pairs, predicted), timesteps=pairs.timesteps, sample=pairs.sample)
    _refuse_no_number(found)
    return found


def squared_derivatives(
    models: Models, pairs: Pairs, grading: Grading, probes: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Squared gradients of randomly signed predictions: Σ ‖∂ε/∂w‖² over all pairs, ``probes`` times.

    The square of the gradient of ⟨v, ε⟩ with random signs v is, on average, the sum over all outputs of the
    squared derivative.

    Source: Hutchinson 1990; 9 of the study (Gauss-Newton diagonal).
    """
    squares: dict[str, Tensor] = {}
    with _graded(models, grading) as leaves:
        reader = _Reader(models, pairs, in_graph=_reads_text(leaves))
        for _ in range(probes):
            for part in _parts(pairs, grading.micro_batch):
                predicted = _predict(models, part, reader)
                signs = torch.randint(0, 2, predicted.shape, generator=generator) * 2 - 1
                (predicted * signs.to(predicted)).sum().backward()
                for name, leaf in leaves.items():
                    if leaf.grad is not None:
                        add_to(squares, name, leaf.grad.float().cpu().square())
                    leaf.grad = None
    return squares


class _Reader:
    """The prompts' features: read once, or inside of every graph where gradients flow into a text encoder."""

    def __init__(self, models: Models, pairs: Pairs, *, in_graph: bool) -> None:
        self._models, self._prompts = models, pairs.prompts
        self._once = None if in_graph else read_prompts(models, pairs.prompts)

    def rows(self, which: Tensor) -> Reading:
        """The reading of some rows."""
        read = self._once or read_prompts(self._models, self._prompts, gradients=torch.is_grad_enabled())
        return read.select(which.to(read.features.device))


@contextmanager
def _present(models: Models, names: Iterable[str]) -> Iterator[None]:
    """The U-Net and all that these weights belong to where they run: what stands in moves no more."""
    with ExitStack() as stack:
        for part in sorted({"unet", *(split(name)[0] for name in names)}):
            stack.enter_context(resident(getattr(models, part)))
        yield


@contextmanager
def _graded(models: Models, grading: Grading) -> Iterator[dict[str, nn.Parameter]]:
    """Leaves in the weights' place, on the device; activations are computed again where that is asked for."""
    sparing = _checkpointed(models.unet) if grading.checkpointing else nullcontext()
    with _present(models, grading.names):
        leaves = _leaves(models, grading)
        with standing_in(models, leaves, gradients=True), sparing:
            yield leaves


@contextmanager
def _checkpointed(unet: Any) -> Iterator[None]:
    before = unet.is_gradient_checkpointing
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if not before:
            unet.disable_gradient_checkpointing()


def _predict(models: Models, part: Pairs, reader: _Reader) -> Tensor:
    device, dtype = device_and_dtype(models.unet)
    noisy = part.noisy.to(device, dtype)
    reading = reader.rows(part.prompt).to(noisy)
    return predict_under(models, noisy, part.timesteps.to(device), reading).float()


def _measure(models: Models, part: Pairs, reader: _Reader) -> Tensor:
    """The measure of each pair, in the graph."""
    return _distances(part, _predict(models, part, reader))


def _distances(part: Pairs, predicted: Tensor) -> Tensor:
    """The sum of squared distances, towards or away from the target, of each pair."""
    return part.towards * (predicted - part.target.to(predicted)).square().flatten(1).sum(1)


def _wholes(pairs: Pairs, *, apart: bool) -> Iterator[Pairs]:
    """The pairs of each sample where samples must be told apart, else all together."""
    if not apart:
        yield pairs
        return
    for number in pairs.sample.unique().tolist():
        yield pairs.of_sample(number)


def _parts(pairs: Pairs, size: int) -> Iterator[Pairs]:
    for start in range(0, len(pairs), size):
        yield pairs.select(slice(start, start + size))


def _leaves(models: Models, grading: Grading) -> dict[str, nn.Parameter]:
    """Parameters that gather gradients, on the memory of the models' own where these are not shrunk."""
    kept = 1.0 - grading.shrunk
    weights = weights_of(models, grading.names)
    return {
        name: nn.Parameter(weight.detach() if kept == 1 else weight.detach() * kept)
        for name, weight in weights.items()
    }


def _reads_text(leaves: Mapping[str, object]) -> bool:
    return any(split(name)[0] in TEXT_ENCODERS for name in leaves)


def _refuse_broken(sums: Sums, measured: Measured, names: tuple[str, ...]) -> None:
    _refuse_no_number(measured)
    missing = [name for name in names if name not in sums.gradients]
    if missing:
        raise MethodError(
            f"no gradient reaches {missing[0]!r} and {len(missing) - 1} others; expected one for each "
            "weight. Is the layer replaced, quantised or never used?"
        )
    broken = [name for name, total in sums.gradients.items() if not bool(total.isfinite().all())]
    if broken:
        raise MethodError(
            f"the gradient of {broken[0]!r} is NaN or infinite (and of {len(broken) - 1} others); expected "
            "finite numbers. Compute in float32."
        )


def _refuse_no_number(measured: Measured) -> None:
    if not bool(measured.values.isfinite().all()):
        raise MethodError(
            "the concept's measure is NaN or infinite; expected finite numbers. Audit the weights, or "
            "compute in float32."
        )
