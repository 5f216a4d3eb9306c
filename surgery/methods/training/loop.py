"""The loop of updates: an objective's gradients, AdamW, a moving average; a stopped one goes on."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from surgery.diffusion import Models, device_and_dtype
from surgery.errors import MethodError
from surgery.methods.training.leaves import Leaves
from surgery.methods.training.settings import LoopSettings, deciding
from surgery.methods.training.state import State, state_from
from surgery.progress import bar
from surgery.record import JSON
from surgery.store import Store

_log = logging.getLogger(__name__)

EVERY_S: Final = 60.0
"""The state is stored no less often: a killed run loses so much,"""
_SHARE: Final = 20
"""or, where storing is slow, so many times what that takes."""


class Company(Protocol):
    """Several processes that train together, such as ``accelerate.Accelerator``."""

    num_processes: int
    process_index: int

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Any:
        """The sum of a tensor over all processes."""


class Objective(Protocol):
    """What is made smaller."""

    def losses(self, step: int, state: State) -> Iterator[Tensor]:
        """Parts of the loss of one update, each with its graph; this process's alone. Their sum counts.

        All draws follow from the step, so that a run that goes on makes the same. What else they depend on is
        kept in ``state.carried``.
        """

    def held_out(self) -> float | None:
        """This process's word on how good the leaves are, smaller is better; None: nothing is held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A look at the held-out loss.

    Attributes:
        step: Updates so far.
        loss: Mean of the training loss since the last look.
        held_out: Loss of the averaged values on what is not trained on; None without any.
    """

    step: int
    loss: float
    held_out: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, and with whom.

    Attributes:
        models: The checkpoint, with the leaves in it.
        leaves: What moves.
        settings: How.
        store: Where the state is kept; all processes must see the same one.
        meaning: All that decides the result, for the state's key.
        on_check: Called at each look, in the first process alone, while the leaves have averaged values.
        company: Other processes that train the same.
    """

    models: Models
    leaves: Leaves
    settings: LoopSettings
    store: Store | None = None
    meaning: Mapping[str, JSON] | None = None
    on_check: Callable[[Check], None] | None = None
    company: Company | None = None


def run_updates(task: Task, objective: Objective) -> State:
    """Updates until the last, or until the held-out loss no longer falls.

    Raises:
        MethodError: when the U-Net is not in float32, the device cannot multiply as asked, or a loss is not
            finite.
    """
    return _Loop(task, objective).run()


class _Loop:
    def __init__(self, task: Task, objective: Objective) -> None:
        self.task, self.objective = task, objective
        self.settings, self.leaves, self.company = task.settings, task.leaves, task.company
        self.device, _ = device_and_dtype(task.models.unet)
        refuse_half(task.models.unet)
        _check_precision(self.settings, self.device)
        self.optimiser = torch.optim.AdamW(
            self.leaves.parameters.values(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )
        self.key = None if task.store is None or task.meaning is None else task.store.key(self._meaning())

    def run(self) -> State:
        state = self._resumed()
        settings, written, took = self.settings, time.monotonic(), 0.0
        with bar(settings.steps, "training", "step") as shown:
            shown.update(state.step)
            while state.step < settings.steps and state.waited < settings.patience:
                state.losses.append(self._update(state))
                state.step += 1
                self._average(state)
                shown.update(1)
                self._tell(shown, state)
                due = state.step % settings.check_every == 0 or state.step == settings.steps
                if due:
                    self._check(state)
                if due or time.monotonic() - written >= max(EVERY_S, _SHARE * took):
                    begun = time.monotonic()
                    self._keep(state)
                    written = time.monotonic()
                    took = written - begun
        state.values = self.leaves.values()
        return state

    def _precision(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return nullcontext()
        # without the cache: older torch keeps weights in it that a block without gradients left no graph of
        kind = getattr(torch, self.settings.precision)
        return torch.autocast(self.device.type, kind, cache_enabled=False)

    def _update(self, state: State) -> float:
        """Move the leaves by the gradient of one batch; its loss."""
        total, leaves = 0.0, self.leaves.parameters
        with self._precision():
            for loss in self.objective.losses(state.step, state):
                loss.backward()
                total += float(loss.detach())
        if self.company is not None and self.company.num_processes > 1:
            for leaf in leaves.values():
                leaf.grad = self.company.reduce(
                    torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, "sum"
                )
            total = float(self.company.reduce(torch.tensor(total, device=self.device), "sum"))
        if not isfinite(total):
            raise MethodError(
                f"the loss of update {state.step + 1} is {total}; expected a finite number. Take a smaller "
                "learning rate, or compute in float32."
            )
        torch.nn.utils.clip_grad_norm_(leaves.values(), self.settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def _average(self, state: State) -> None:
        if not self.settings.average:
            return
        # begins fast: Tan and Le 2019, as TensorFlow's moving averages do
        decay = min(self.settings.average, (1 + state.step) / (10 + state.step))
        for name, leaf in self.leaves.parameters.items():
            value = leaf.detach().float()
            if name in state.averages:
                state.averages[name] = state.averages[name].to(value).lerp_(value, 1 - decay)
            else:
                state.averages[name] = value.clone()

    def _check(self, state: State) -> None:
        own = self.leaves.values()
        values = state.averages or own
        first = self.company is None or self.company.process_index == 0
        self.leaves.put(values)
        try:
            with torch.no_grad(), self._precision():
                held = self._agreed(self.objective.held_out())
            if held is not None and not isfinite(held):
                raise MethodError(
                    f"the held-out loss after {state.step} updates is {held}; expected a finite number. "
                    "Take a smaller learning rate, or look at the pictures."
                )
            if self.task.on_check is not None and first:
                since = state.losses[-self.settings.check_every :]
                self.task.on_check(Check(step=state.step, loss=sum(since) / len(since), held_out=held))
        finally:
            self.leaves.put(own)
        if held is not None:
            if state.best == 0 or held < dict(state.held_out)[state.best]:
                state.best = state.step
                state.best_values = {name: value.cpu().clone() for name, value in values.items()}
            state.held_out.append((state.step, held))

    def _agreed(self, held: float | None) -> float | None:
        """One number for all processes."""
        if held is None or self.company is None or self.company.num_processes == 1:
            return held
        mean = torch.tensor(held / self.company.num_processes, device=self.device)
        return float(self.company.reduce(mean, "sum"))

    @staticmethod
    def _tell(shown: Any, state: State) -> None:
        recent = state.losses[-50:]
        held = f", held out {state.held_out[-1][1]:.4f}" if state.held_out else ""
        if hasattr(shown, "set_postfix_str"):
            shown.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}{held}", refresh=False)

    # the state on disk

    def _meaning(self) -> dict[str, JSON]:
        meaning = dict(self.task.meaning or {})
        settings = meaning.get("settings")
        if isinstance(settings, dict):
            meaning["settings"] = deciding(settings)
        return {
            **meaning,
            "device": [self.device.type, torch.get_num_threads()],
            "processes": 1 if self.company is None else self.company.num_processes,
        }

    def _resumed(self) -> State:
        if self.task.store is None or self.key is None:
            return State()
        held = self.task.store.get(self.key)
        if held is None:
            return State()
        state = state_from(held)
        if not self._leads_on(state):
            _log.warning(
                "a training of %d updates is stored, which one of %d with a patience of %d does not pass; it "
                "starts anew.",
                state.step, self.settings.steps, self.settings.patience,
            )  # fmt: skip
            return State()
        _log.info("goes on from update %d", state.step)
        self.leaves.put(state.values)
        for name, leaf in self.leaves.parameters.items():
            self.optimiser.state[leaf] = {
                "step": torch.tensor(float(state.step)),
                "exp_avg": state.first[name].to(leaf),
                "exp_avg_sq": state.second[name].to(leaf),
            }
        return state

    def _leads_on(self, state: State) -> bool:
        """Whether a training of these settings, run through, passes a state that is stored."""
        settings = self.settings
        looks = (step for step, _ in state.held_out)
        return (
            state.step <= settings.steps
            and all(step % settings.check_every == 0 or step == settings.steps for step in looks)
            and (state.longest_wait() < settings.patience or state.waited == settings.patience)
        )

    def _keep(self, state: State) -> None:
        first = self.company is None or self.company.process_index == 0
        if self.task.store is None or self.key is None or not first:
            return
        state.values = self.leaves.values()
        for name, leaf in self.leaves.parameters.items():
            moments = self.optimiser.state[leaf]
            state.first[name], state.second[name] = (
                moments[kind].detach().cpu() for kind in ("exp_avg", "exp_avg_sq")
            )
        self.task.store.put(self.key, state.tensors(), state.told())


def refuse_half(unet: nn.Module) -> None:
    """Refuse a U-Net that is not in float32: what is trained starts from its weights.

    Raises:
        MethodError: naming its type.
    """
    _, dtype = device_and_dtype(unet)
    if dtype != torch.float32:
        raise MethodError(
            f"the U-Net is loaded in {dtype}, in which small updates round to nothing; expected float32. "
            "Load it in float32, and say precision bfloat16 for faster products."
        )


def _check_precision(settings: LoopSettings, device: torch.device) -> None:
    if settings.precision == "float32":
        return
    can = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    if not can:
        raise MethodError(
            f"precision is {settings.precision}, which {device.type} does not multiply in; expected a device "
            "that does. Say float32."
        )
