"""Guides for the sampler: each reads its prompts, computes its branches, and combines them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor

from surgery.diffusion import Control, Models, Reading, read_prompts
from surgery.diffusion.conditions import read_without
from surgery.errors import MethodError, raise_all
from surgery.guidance import concept_diffusion, gcfg
from surgery.guidance.branches import Branch, BranchExecutor
from surgery.guidance.concept_diffusion import ConceptSettings, LaterGuide, LaterSettings
from surgery.guidance.gcfg import GcfgSettings
from surgery.guidance.weights import MixedWeights, Strengths, patched, swapped_weights
from surgery.names import TEXT_ENCODERS, split
from surgery.patch import Patch

Mode: TypeAlias = Literal["mixed", "swapped"]
"""Patches beside the weights, all branches in one pass; or whole weights that change places."""
Predict: TypeAlias = Callable[[Tensor, Any], Tensor]


class GcfgGuide:
    """Generalised guidance: the base without a prompt, each concept's patch, and a prompt's control.

    Args:
        models: The unedited pipeline; its U-Net is the only one in memory.
        patches: One for each of the settings' concepts.
        settings: Weights and strengths.
        mode: ``mixed`` for low-rank patches, ``swapped`` for all.
        together: Whether branches share passes; else each has one, with less memory.
        control: A ControlNet and its picture beside the base in the prompt's branch.

    Raises:
        MethodError: when patches and settings are not as many, or a patch is not low-rank in mode ``mixed``.
        PatchError: when a patch is not of this checkpoint.
    """

    def __init__(
        self,
        models: Models,
        patches: Sequence[Patch],
        settings: GcfgSettings,
        *,
        mode: Mode = "mixed",
        together: bool = True,
        control: Control | None = None,
    ) -> None:
        if len(patches) != len(settings.concepts):
            raise MethodError(
                f"{len(patches)} patches and settings of {len(settings.concepts)} concepts; expected as many."
            )
        if control is not None and not settings.control_weight:
            raise MethodError(
                "a ControlNet is beside the prompt's branch, and control_weight is 0, which leaves that out; "
                "expected a weight."
            )
        self._models, self._patches, self._settings = models, tuple(patches), settings
        self._net = control
        self._base, self._control = settings.base_strengths, settings.control_strengths
        # a branch without weight is that of the base, unless the control is held across it
        self._own = [
            settings.concept_strengths(number) if one.weight or settings.across else self._base
            for number, one in enumerate(settings.concepts)
        ]
        strengths = [self._base, *self._own, *([self._control] if settings.control_weight else [])]
        weights = None
        if patches:
            mixed = mode == "mixed"
            weights = MixedWeights(models, patches) if mixed else swapped_weights(models, patches, strengths)
        self._executor = BranchExecutor(models=models, weights=weights, together=together)
        self._without = {one: self._read(None, one) for one in dict.fromkeys([self._base, *self._own])}

    def _read(self, prompts: Sequence[str] | None, strengths: Strengths) -> Reading:
        """Prompts, or none, as text encoders with the patches at these strengths read them."""
        touched = any(split(name)[0] in TEXT_ENCODERS for one in self._patches for name in one.changes)
        if not touched:
            strengths = (0.0,) * len(strengths)
        with patched(self._models, self._patches, strengths):
            if prompts is None:
                return read_without(self._models, "")
            return read_prompts(self._models, prompts)

    def begin(self, prompts: Sequence[str], latents: Tensor, steps: int) -> Predict:
        """See ``surgery.diffusion.Guide``."""
        settings, count = self._settings, len(latents)
        branches = [  # alike ones are computed once
            Branch(text=text.to(latents).repeated(count), strengths=one)
            for one, text in self._without.items()
        ]
        if settings.control_weight:
            text = self._read(prompts, self._control).to(latents)
            branches.append(Branch(text=text, strengths=self._control, control=self._net))

        def predict(noisy: Tensor, timestep: Any) -> Tensor:
            found = self._executor.predict(noisy, timestep, branches)
            control = found.pop() if settings.control_weight else None
            by_strength = dict(zip(self._without, found, strict=True))
            concepts = [by_strength[one] for one in self._own]
            return gcfg.combined(by_strength[self._base], concepts, control, settings)

        return predict


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptGuide:
    """ConceptDiffusion: prompts held against their subjects' phrases.

    Attributes:
        models: The pipeline.
        subjects: Phrases of each prompt.
        settings: A preset, or one's own.
        together: Whether all predictions of a step share a pass.
    """

    models: Models
    subjects: Mapping[str, Sequence[str]]
    settings: ConceptSettings | LaterSettings = field(default=concept_diffusion.INITIAL)
    together: bool = True

    def begin(self, prompts: Sequence[str], latents: Tensor, steps: int) -> Predict:
        """See ``surgery.diffusion.Guide``. Pictures with as many subjects share a pass."""
        raise_all(
            MethodError,
            [
                f"no subjects are given for the prompt {prompt!r}; expected its phrases, or an empty list."
                for prompt in dict.fromkeys(prompts)
                if prompt not in self.subjects
            ],
        )
        by_count: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            by_count.setdefault(len(self.subjects[prompt]), []).append(row)
        parts = [(rows, self._part([prompts[row] for row in rows], latents)) for rows in by_count.values()]

        def predict(noisy: Tensor, timestep: Any) -> Tensor:
            result = noisy.clone()
            for rows, part in parts:
                result[rows] = part(noisy[rows], timestep)
            return result

        return predict

    def _part(self, prompts: Sequence[str], like: Tensor) -> Predict:
        count = len(self.subjects[prompts[0]])
        without = read_without(self.models, "").to(like).repeated(len(prompts))
        texts = [without, read_prompts(self.models, prompts).to(like)]
        for number in range(count):
            phrases = [self.subjects[prompt][number] for prompt in prompts]
            texts.append(read_prompts(self.models, phrases).to(like))
        branches = [Branch(text=text) for text in texts]
        executor = BranchExecutor(models=self.models, together=self.together)
        combine, step = self._combine(), 0

        def predict(noisy: Tensor, timestep: Any) -> Tensor:
            nonlocal step
            base, prompt, *subjects = executor.predict(noisy, timestep, branches)
            found = combine(base, prompt, subjects, step)
            step += 1
            return found

        return predict

    def _combine(self) -> Callable[[Tensor, Tensor, Sequence[Tensor], int], Tensor]:
        settings = self.settings
        if isinstance(settings, LaterSettings):
            return LaterGuide(settings).combined
        return lambda base, prompt, subjects, step: concept_diffusion.combined(
            base, prompt, subjects, settings, step
        )
