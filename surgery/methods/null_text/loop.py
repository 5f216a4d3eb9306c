"""The loop that learns a look: noisy pictures in, a change of the U-Net out; a stopped one goes on."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from surgery.anatomy import settings_text, weights_digest
from surgery.delta import Delta
from surgery.diffusion import (
    Models,
    device_and_dtype,
    generator_for,
    noise_schedule,
    predict_under,
    resident,
    sampler_faults,
)
from surgery.diffusion.conditions import read_without
from surgery.errors import MethodError, raise_all
from surgery.methods.null_text.context import known_context
from surgery.methods.null_text.leaves import Leaves, delta_of, leaves_of
from surgery.methods.null_text.pictures import PictureSet, split_off
from surgery.methods.null_text.settings import TrainSettings, as_json, check_settings
from surgery.methods.null_text.state import State, state_from
from surgery.progress import bar
from surgery.record import JSON, json_digest
from surgery.store import Store

EVERY_S: Final = 60.0
"""The state is stored no less often: a killed run loses so much."""
_HELD_OUT, _LEVELS = 64, 8


class Company(Protocol):
    """Several processes that train together, such as ``accelerate.Accelerator``."""

    num_processes: int
    process_index: int

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Any:
        """The sum of a tensor over all processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A look at the held-out loss.

    Attributes:
        step: Updates so far.
        loss: Mean of the training loss since the last look.
        held_out: Loss of the averaged weights on pictures that are not trained on; NaN without any.
    """

    step: int
    loss: float
    held_out: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A learned look.

    Attributes:
        delta: The change of the U-Net.
        steps: Updates that were made.
        best: Updates after which the weights were those of the delta.
        losses: Training loss of every update.
        held_out: Step and held-out loss of each look.
    """

    delta: Delta
    steps: int
    best: int
    losses: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...]


def train(
    models: Models,
    pictures: PictureSet,
    settings: TrainSettings,
    *,
    store: Store | None = None,
    on_check: Callable[[Check], None] | None = None,
    company: Company | None = None,
) -> Trained:
    """The change of a U-Net that learned to draw like some pictures, without a word.

    Noise is added at timesteps drawn evenly, and predicted under the null context alone. Every draw of an
    update follows from the seed and the update's number, so that a stopped run that goes on ends in the same
    weights; and every process of a company takes its share of the same batch.

    Args:
        models: The unedited checkpoint; it is left as it was.
        pictures: From ``read_pictures``.
        settings: What is trained, and for how long.
        store: Where the state is kept, so that a stopped run goes on; all processes must see the same one.
        on_check: Called at each look at the held-out loss, in the first process alone, while the U-Net has
            the averaged weights and knows the null context alone.
        company: Other processes that train the same.

    Raises:
        MethodError: when settings or models do not fit, or the loss is not finite.

    Source: arXiv 2312.08195; 1.4 of the study. There all weights outside of cross-attention are trained, and
    cross-attention is replaced by constants.
    """
    check_settings(settings)
    raise_all(MethodError, sampler_faults(models, 1))
    _, dtype = device_and_dtype(models.unet)
    if dtype != torch.float32:
        raise MethodError(
            f"the U-Net is loaded in {dtype}, in which small updates round to nothing; expected float32. "
            "Load it in float32."
        )
    with resident(models.unet), leaves_of(models, settings) as leaves:
        loop = _Loop(models, pictures, settings, leaves, store, company)
        with known_context(models.unet, loop.null.features):
            state = loop.run(on_check)
    values = state.best_values or state.averages or state.values
    return Trained(
        delta=delta_of(models, values),
        steps=state.step,
        best=state.best or state.step,
        losses=tuple(state.losses),
        held_out=tuple(state.held_out),
    )


class _Loop:
    def __init__(
        self,
        models: Models,
        pictures: PictureSet,
        settings: TrainSettings,
        leaves: Leaves,
        store: Store | None,
        company: Company | None,
    ) -> None:
        self.models, self.pictures, self.settings = models, pictures, settings
        self.leaves, self.store, self.company = leaves, store, company
        self.device, self.dtype = device_and_dtype(models.unet)
        self.null = read_without(models, "")
        self.schedule = noise_schedule(models.scheduler)
        self.rows, self.held = split_off(pictures, settings.held_out)
        self.optimiser = torch.optim.AdamW(
            leaves.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.key = None if store is None else store.key(self._meaning())

    def run(self, on_check: Callable[[Check], None] | None) -> State:
        """Updates until the last, or until the held-out loss no longer falls."""
        state = self._resumed()
        settings, written = self.settings, time.monotonic()
        with bar(settings.steps, "training", "step") as shown:
            shown.update(state.step)
            while state.step < settings.steps and state.waited < settings.patience:
                state.losses.append(self._update(state.step))
                state.step += 1
                self._average(state)
                shown.update(1)
                self._tell(shown, state)
                due = state.step % settings.check_every == 0 or state.step == settings.steps
                if due:
                    self._check(state, on_check)
                if due or time.monotonic() - written >= EVERY_S:
                    self._keep(state)
                    written = time.monotonic()
        state.values = self._values()
        return state

    # one update

    def _update(self, step: int) -> float:
        """Move the leaves by the gradient of one batch; its loss."""
        total = 0.0
        for part in self._shares(self._batch(step)):
            loss = self._loss(*part) / self.settings.batch
            loss.backward()
            total += float(loss.detach())
        if self.company is not None and self.company.num_processes > 1:
            for leaf in self.leaves.values():
                leaf.grad = self.company.reduce(
                    torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, "sum"
                )
            total = float(self.company.reduce(torch.tensor(total, device=self.device), "sum"))
        if not isfinite(total):
            raise MethodError(
                f"the loss of update {step + 1} is {total}; expected a finite number. Take a smaller "
                "learning rate, or compute in float32."
            )
        torch.nn.utils.clip_grad_norm_(self.leaves.values(), self.settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def _batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents, noise and timesteps of one update."""
        settings = self.settings
        generator = generator_for(settings.seed, "update", step)
        count = len(self.rows)
        places = [divmod(step * settings.batch + number, count) for number in range(settings.batch)]
        orders = {
            epoch: torch.randperm(count, generator=generator_for(settings.seed, "order", epoch))
            for epoch in {epoch for epoch, _ in places}
        }
        rows = self.rows[torch.stack([orders[epoch][place] for epoch, place in places])]
        turned = torch.rand(len(rows), generator=generator) < (0.5 if settings.mirrored else 0.0)
        shape = (len(rows), *self.pictures.mean.shape[1:])
        jitter, noise = (torch.randn(shape, generator=generator) for _ in range(2))
        timesteps = torch.randint(0, len(self.schedule.remaining), (len(rows),), generator=generator)
        return self.pictures.drawn(rows, turned, jitter), noise, timesteps

    def _shares(self, batch: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """This process's rows of a batch, in micro-batches."""
        company = self.company
        own = slice(None) if company is None else slice(company.process_index, None, company.num_processes)
        size = self.settings.micro_batch
        mine = [one[own] for one in batch]
        for start in range(0, len(mine[0]), size):
            yield tuple(one[start : start + size] for one in mine)

    def _loss(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squares over pixels, summed over pictures."""
        noisy = self.schedule.noisy(clean, noise, timesteps).to(self.device, self.dtype)
        truth = self.schedule.truth(clean, noise, timesteps).to(self.device)
        predicted = self._predict(noisy, timesteps.to(self.device)).float()
        return (predicted - truth).square().flatten(1).mean(1).sum()

    def _predict(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return predict_under(self.models, noisy, timesteps, self.null.to(noisy).repeated(len(noisy)))

    def _average(self, state: State) -> None:
        if not self.settings.average:
            return
        # begins fast: Tan and Le 2019, as TensorFlow's moving averages do
        decay = min(self.settings.average, (1 + state.step) / (10 + state.step))
        for name, leaf in self.leaves.items():
            value = leaf.detach().float().cpu()
            if name in state.averages:
                state.averages[name].lerp_(value, 1 - decay)
            else:
                state.averages[name] = value.clone()

    # looks at the held-out loss

    def _check(self, state: State, on_check: Callable[[Check], None] | None) -> None:
        own = self._values()
        values = state.averages or own
        first = self.company is None or self.company.process_index == 0
        self._put(values)
        try:
            held = self._held_out()
            if len(self.held) and not isfinite(held):
                raise MethodError(
                    f"the held-out loss after {state.step} updates is {held}; expected a finite number. "
                    "Take a smaller learning rate, or look at the pictures."
                )
            if on_check is not None and first:
                since = state.losses[-self.settings.check_every :]
                on_check(Check(step=state.step, loss=sum(since) / len(since), held_out=held))
        finally:
            self._put(own)
        if len(self.held):
            if state.best == 0 or held < dict(state.held_out)[state.best]:
                state.best = state.step
                state.best_values = {name: value.clone() for name, value in values.items()}
            state.held_out.append((state.step, held))

    @torch.no_grad()
    def _held_out(self) -> float:
        """The mean loss at fixed noise, timesteps in the middle of equal parts; NaN without pictures."""
        rows = self.held[:_HELD_OUT]
        generator = generator_for(self.settings.seed, "held out")
        most, total = len(self.schedule.remaining), 0.0
        for level in range(_LEVELS):
            noise = torch.randn((len(rows), *self.pictures.mean.shape[1:]), generator=generator)
            timesteps = torch.full((len(rows),), (2 * level + 1) * most // (2 * _LEVELS))
            for start in range(0, len(rows), self.settings.micro_batch):
                part = slice(start, start + self.settings.micro_batch)
                clean = self.pictures.mean[rows[part]]
                total += float(self._loss(clean, noise[part], timesteps[part]))
        if not len(rows):
            return float("nan")
        found = total / (_LEVELS * len(rows))
        if self.company is not None and self.company.num_processes > 1:  # one number decides for all
            mean = torch.tensor(found / self.company.num_processes, device=self.device)
            found = float(self.company.reduce(mean, "sum"))
        return found

    def _values(self) -> dict[str, Tensor]:
        return {name: leaf.detach().float().cpu().clone() for name, leaf in self.leaves.items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, leaf in self.leaves.items():
            leaf.copy_(values[name])

    @staticmethod
    def _tell(shown: Any, state: State) -> None:
        recent = state.losses[-50:]
        held = f", held out {state.held_out[-1][1]:.4f}" if state.held_out else ""
        if hasattr(shown, "set_postfix_str"):
            shown.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}{held}", refresh=False)

    # the state on disk

    def _meaning(self) -> dict[str, JSON]:
        models: Any = self.models
        return {
            "what": "null-text training",
            "unet": weights_digest(models.unet),
            "null": json_digest(self.null.features.float().sum((0, 2)).tolist()),
            "scheduler": settings_text(models.scheduler),
            "settings": as_json(self.settings),
            "pictures": json_digest(self.pictures.mean.double().sum((1, 2, 3)).tolist()),
            "device": [self.device.type, str(self.dtype), torch.get_num_threads()],
            "processes": 1 if self.company is None else self.company.num_processes,
        }

    def _resumed(self) -> State:
        if self.store is None or self.key is None:
            return State()
        held = self.store.get(self.key)
        if held is None:
            return State()
        state = state_from(held)
        self._put(state.values)
        for name, leaf in self.leaves.items():
            self.optimiser.state[leaf] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": state.first[name].to(leaf),
                "exp_avg_sq": state.second[name].to(leaf),
            }
        return state

    def _keep(self, state: State) -> None:
        first = self.company is None or self.company.process_index == 0
        if self.store is None or self.key is None or not first:
            return
        state.values = self._values()
        for name, leaf in self.leaves.items():
            moments = self.optimiser.state[leaf]
            state.first[name], state.second[name] = (
                moments[kind].detach().cpu() for kind in ("exp_avg", "exp_avg_sq")
            )
        self.store.put(self.key, state.tensors(), state.told())
