"""Guiders for pipelines of diffusers that take one: generalised guidance, ConceptDiffusion, ScalingConcept.

A guider is saved with its settings alone. Patches, phrases and inverted paths are attached after loading.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor, nn

from surgery.diffusion import Models
from surgery.errors import MethodError
from surgery.guidance import concept_diffusion, gcfg
from surgery.guidance.concept_diffusion import ConceptSettings
from surgery.guidance.gcfg import GcfgSettings, GuidedConcept
from surgery.guidance.scaling_concept import (
    ScalingSettings,
    check_scaling,
    mixed,
    scale_schedule,
    scaled,
)
from surgery.guidance.weights import BranchWeights, MixedWeights, Strengths, swapped_weights
from surgery.names import TEXT_ENCODERS, split
from surgery.patch import Patch

_WITH, _WITHOUT = 0, 1  # places of a prompt's and of the empty prompt's inputs in diffusers' pairs


class _Guider(BaseGuidance):  # type: ignore[misc]  # diffusers ships no types
    """What all have in common: branches in order, each its own pass, whatever the step."""

    _input_predictions: Final = ["pred_base", "pred_cond"]
    guidance_scale = 1.0  # some pipelines ask for it

    def branches(self) -> Sequence[tuple[str, int]]:
        """The tag of each branch, and which half of the inputs it reads."""
        raise NotImplementedError

    def combined(self, predictions: dict[str, Tensor]) -> Tensor:
        """What the sampler steps with."""
        raise NotImplementedError

    @property
    def num_conditions(self) -> int:
        """Branches; the same at every step, since pipelines ask before the first one."""
        return len(self.branches()) if self._enabled else 1

    @property
    def is_conditional(self) -> bool:
        """Whether the branch that is computed now reads the prompt."""
        place = max(0, self._count_prepared - 1)
        return not self._enabled or self.branches()[place][1] == _WITH

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """One block of inputs for each branch."""
        return [self._altered(self._prepare_batch(data, half, tag), tag) for tag, half in self._asked()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """The same from a pipeline's state."""
        return [
            self._altered(self._prepare_batch_from_block_state(input_fields, data, half, tag), tag)
            for tag, half in self._asked()
        ]

    def _acts(self) -> bool:
        count = self._num_inference_steps
        if not self._enabled or count is None:
            return bool(self._enabled)
        return bool(int(self._start * count) <= self._step < int(self._stop * count))

    def _asked(self) -> Sequence[tuple[str, int]]:
        return self.branches() if self._enabled else [("pred_cond", _WITH)]

    def _altered(self, block: Any, tag: str) -> Any:
        return block

    def forward(self, **predictions: Tensor) -> Any:
        """The branches' predictions as one; before ``start`` and from ``stop`` on, the prompt's alone."""
        found = self.combined(predictions) if self._acts() else predictions["pred_cond"]
        return GuiderOutput(
            pred=found, pred_cond=predictions.get("pred_cond"), pred_uncond=predictions.get("pred_base")
        )


class _Hooked:
    """A change of the denoiser for one pass; it lets go after it, also when the pass raises."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def during(self, denoiser: nn.Module, enter: Callable[[ExitStack], None]) -> None:
        """Change what ``enter`` changes until the denoiser's next pass has ended."""
        self.close()
        with ExitStack() as stack:
            enter(stack)
            handle = denoiser.register_forward_hook(lambda *_: self.close(), always_call=True)
            stack.callback(handle.remove)
            self._open = stack.pop_all()

    def close(self, *_: object) -> None:
        """Let go."""
        self._open.close()
        self._open = ExitStack()


class GcfgGuider(_Guider):
    """Generalised guidance (arXiv 2312.08195) for pipelines with a guider, such as modular SDXL.

    Attach the patches, one for each weight, before the first run.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers ships no types
    def __init__(
        self,
        concept_weights: Sequence[float] = (2.5,),
        control_weight: float = 2.5,
        strengths: Sequence[float] | None = None,
        base_strengths: Sequence[float] | None = None,
        control_strengths: Sequence[float] | None = None,
        across: bool = False,
        limit: float | None = None,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        count = len(concept_weights)
        columns = [
            list(concept_weights),
            list(strengths or [1.0] * count),
            list(base_strengths or [0.0] * count),
            list(control_strengths or [0.0] * count),
        ]
        if {len(column) for column in columns} != {count}:
            raise MethodError(
                f"{[len(column) for column in columns]} weights, strengths, base strengths and control "
                "strengths were given; expected as many of each."
            )
        self.settings = GcfgSettings(
            concepts=tuple(
                GuidedConcept(weight=weight, strength=own, base_strength=base, control_strength=control)
                for weight, own, base, control in zip(*columns, strict=True)
            ),
            control_weight=control_weight,
            across=across,
            limit=limit,
        )
        self._weights: BranchWeights | None = None
        self._hook = _Hooked()

    def attach(self, models: Models, patches: Sequence[Patch], *, mixed_in: bool = True) -> "GcfgGuider":
        """Take part with these patches of a pipeline's U-Net; the pipeline is left as it is.

        Args:
            models: The pipeline whose U-Net will be asked.
            patches: One for each weight.
            mixed_in: Whether low-rank changes are computed beside the layers; else whole weights change
                places, which fits every patch.

        Raises:
            MethodError: when there are not as many patches as weights.
            PatchError: when a patch is not of this checkpoint.
        """
        if len(patches) != len(self.settings.concepts):
            raise MethodError(
                f"{len(patches)} patches for {len(self.settings.concepts)} weights; expected as many."
            )
        heard = [name for patch in patches for name in patch.changes if split(name)[0] in TEXT_ENCODERS]
        if heard:
            raise MethodError(
                f"a patch changes {heard[0]!r}, and a guider sees prompts after they are read; expected "
                "patches of the U-Net alone. Draw with surgery.guidance.guides.GcfgGuide."
            )
        if mixed_in:
            self._weights = MixedWeights(models, patches)
        else:
            self._weights = swapped_weights(
                models, patches, [self._strengths(tag) for tag, _ in self.branches()]
            )
        return self

    def branches(self) -> Sequence[tuple[str, int]]:
        """The base, the prompt, and each concept without it."""
        count = len(self.settings.concepts)
        return [
            ("pred_base", _WITHOUT),
            ("pred_cond", _WITH),
            *((f"pred_concept_{number}", _WITHOUT) for number in range(count)),
        ]

    def _strengths(self, tag: str) -> Strengths:
        if tag == "pred_base":
            return self.settings.base_strengths
        if tag == "pred_cond":
            return self.settings.control_strengths
        return self.settings.concept_strengths(int(tag.rpartition("_")[2]))

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Put the patches into the next pass at the branch's strengths."""
        super().prepare_models(denoiser)
        if not self._enabled:
            return
        weights = self._weights
        if weights is None:
            raise MethodError(
                "no patch is attached; expected attach(pipeline, patches) before the first run."
            )
        strengths = self._strengths(self.branches()[self._count_prepared - 1][0])
        self._hook.during(denoiser, lambda stack: stack.enter_context(weights.at([strengths])))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Take them out again."""
        self._hook.close()

    def combined(self, predictions: dict[str, Tensor]) -> Tensor:
        """(U) of the study."""
        concepts = [predictions[tag] for tag, _ in self.branches()[2:]]
        return gcfg.combined(predictions["pred_base"], concepts, predictions["pred_cond"], self.settings)


class ConceptDiffusionGuider(_Guider):
    """ConceptDiffusion (arXiv 2312.15964) for pipelines with a guider.

    Attach the subjects' text embeddings before a run.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers ships no types
    def __init__(
        self,
        guidance_scale: float = 7.5,
        weight: float = 7.5,
        threshold: float | None = None,
        over_threshold: float | None = 0.8,
        abstract_threshold: float = 0.7,
        signed: bool = False,
        parts: str = "sum",
        softness: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.guidance_scale = guidance_scale
        self.settings = ConceptSettings(
            guidance=guidance_scale,
            weight=weight,
            threshold=threshold,
            over_threshold=over_threshold,
            abstract_threshold=abstract_threshold,
            signed=signed,
            parts=parts,  # type: ignore[arg-type]  # one of two words
            softness=softness,
        )
        self._subjects: list[dict[str, Tensor]] = []

    def attach(self, subjects: Sequence[dict[str, Tensor]]) -> "ConceptDiffusionGuider":
        """Hold the prompt against these subjects.

        Args:
            subjects: Of each the inputs that differ from the prompt's, under the pipeline's own names, such
                as ``prompt_embeds`` and ``text_embeds`` (SDXL's pooled ones), one row or as many as pictures.
        """
        self._subjects = [dict(one) for one in subjects]
        return self

    def branches(self) -> Sequence[tuple[str, int]]:
        """The base, the prompt, and each subject."""
        own = [(f"pred_subject_{number}", _WITH) for number in range(len(self._subjects))]
        return [("pred_base", _WITHOUT), ("pred_cond", _WITH), *own]

    def _altered(self, block: Any, tag: str) -> Any:
        if not tag.startswith("pred_subject_"):
            return block
        for name, value in self._subjects[int(tag.rpartition("_")[2])].items():
            if not hasattr(block, name):
                known = sorted(one for one in vars(block) if not one.startswith("_"))
                raise MethodError(
                    f"the pipeline has no input {name!r} for a subject; expected one of {', '.join(known)}."
                )
            like = getattr(block, name)
            setattr(block, name, value.to(like).expand_as(like) if len(value) == 1 else value.to(like))
        return block

    def combined(self, predictions: dict[str, Tensor]) -> Tensor:
        """(B1) and (B2) of the study."""
        subjects = [predictions[tag] for tag, _ in self.branches()[2:]]
        step = self._step or 0
        return concept_diffusion.combined(
            predictions["pred_base"], predictions["pred_cond"], subjects, self.settings, step
        )


class ScalingConceptGuider(_Guider):
    """ScalingConcept (arXiv 2410.24151) for pipelines with a guider; the run starts from an inverted path.

    Attach the path before a run, and give its first entry to the pipeline as latents. The two branches read
    different latents until ``exit_step``, so that their predictions are of one kind only where these are of
    noise: for checkpoints that predict velocities set ``exit_step`` to 0, or use ``scale_concept``, which
    turns both into noise first (3.2 of the study). A guider sees no scheduler and cannot tell.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers ships no types
    def __init__(
        self,
        scale: float = 5.0,
        decay: float = 3.0,
        exit_step: int = 15,
        anchored: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.settings = ScalingSettings(scale=scale, decay=decay, exit_step=exit_step, anchored=anchored)
        check_scaling(self.settings)
        self._path: Sequence[Tensor] = ()
        self._hook = _Hooked()

    def attach(self, path: Sequence[Tensor]) -> "ScalingConceptGuider":
        """Follow an inverted path, from noise to picture, one more than there are steps."""
        self._path = path
        return self

    def branches(self) -> Sequence[tuple[str, int]]:
        """The base, and the concept's prompt."""
        return [("pred_base", _WITHOUT), ("pred_cond", _WITH)]

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Let the prompt's branch read latents halfway to the path, until the exit."""
        super().prepare_models(denoiser)
        step = self._step or 0
        reads_prompt = self._enabled and self._count_prepared == 2
        if not reads_prompt or step >= self.settings.exit_step:
            return
        if len(self._path) != (self._num_inference_steps or 0) + 1:
            raise MethodError(
                f"a path of {len(self._path)} latents is attached for {self._num_inference_steps} steps; "
                "expected one more than steps. Attach that of inverted(…)."
            )

        def halfway(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            latents = given[0]
            path = self._path[step].to(latents)
            return (mixed(latents, path, step, self.settings.exit_step), *given[1:])

        def enter(stack: ExitStack) -> None:
            stack.callback(denoiser.register_forward_pre_hook(halfway).remove)

        self._hook.during(denoiser, enter)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Let go."""
        self._hook.close()

    @torch.no_grad()
    def combined(self, predictions: dict[str, Tensor]) -> Tensor:
        """(C2) of the study."""
        scales = scale_schedule(self.settings, self._num_inference_steps or 1)
        return scaled(predictions["pred_base"], predictions["pred_cond"], scales[self._step or 0])
