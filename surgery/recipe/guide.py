"""A recipe that says how to draw and not what to edit: guidance by patches, by phrases, or along pictures.

Settings left out take the preset's value, or without a preset the guidance's own default (the classes of the
same names in ``surgery.guidance`` and ``surgery.diffusion.inversion``).
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from surgery.recipe.document import Place
from surgery.recipe.model import Choice, Knobs, Part, Written
from surgery.recipe.parameters import Count, NotNegative, Phrase, Positive, Seeds, Share


class GuidedPatch(Part):
    """One patch and how it takes part."""

    patch: Phrase
    """The patch file, relative to the recipe."""
    weight: float | None = None
    """w_K of its branch; what the patch says of itself when left out, or else 2.5."""
    strength: float = 1.0
    """σ_K of the patch there."""
    base_strength: float = 0.0
    """σ_u of the patch in the base branch: 0 as published, 1 ordinary guidance with the tuned model."""
    control_strength: float = 0.0
    """σ_C of the patch in the branch of the prompt."""


class ControlNet(Part):
    """A ControlNet beside the base in the prompt's branch."""

    path: Phrase
    """Its folder (config.json and diffusion_pytorch_model.safetensors), relative to the recipe."""
    image: Phrase
    """The picture it reads: edges, depth, poses …, relative to the recipe."""
    scale: float = 1.0
    """Of what it adds."""


class Gcfg(Part):
    """Generalised guidance: patches without words beside a prompt (arXiv 2312.08195)."""

    concepts: tuple[GuidedPatch, ...] = Field(min_length=1)
    control_weight: float | None = None
    """w_C of the prompt's branch, 0 leaves the prompt out; what patches say when left out, or else 2.5."""
    across: bool = False
    """Whether only what of the prompt lies across all patches counts."""
    limit: Positive | None = None
    """The longest that a branch may pull."""
    controlnet: ControlNet | None = None
    """A ControlNet beside the base in the prompt's branch."""
    mode: Literal["mixed", "swapped"] = "mixed"
    """Patches beside the weights in one pass, for low-rank ones; or weights that change places, for all."""


class ConceptDiffusion(Knobs):
    """Prompts held against the phrases of what they are about (arXiv 2312.15964)."""

    nullable: ClassVar[frozenset[str]] = frozenset({"threshold", "over_threshold", "last_step"})

    preset: Literal["published", "later", "ours"] = "ours"
    """Where settings start from; keys given here win."""
    subjects: dict[str, tuple[Phrase, ...]] = Field(default_factory=dict)
    """Phrases of a prompt; those of prompts that are not named are found."""
    finder: Phrase = "plain"
    """What finds them: plain rules, or the name or path of a spaCy pipeline such as en_core_web_sm."""
    guidance: float | None = None
    """w, of the prompt."""
    weight: float | None = None
    """w_c, of what is added."""
    threshold: float | None = None
    """A subject whose cosine lies below is added; null: 1/(subjects + 1)."""
    over_threshold: float | None = None
    """One above is taken off; null: never. Not of preset ``later``."""
    abstract_threshold: float | None = None
    """The part that no subject accounts for is added while its cosine lies below."""
    signed: bool | None = None
    """Whether a subject that points against the prompt is missing. Not of preset ``later``."""
    parts: Literal["sum", "span"] | None = None
    """What the abstract part lies across: the sum of the subjects, or each. Not of preset ``later``."""
    softness: NotNegative | None = None
    """Width of the gates. Not of preset ``later``."""
    first_step: int | None = Field(default=None, ge=0)
    """Of those that add anything."""
    last_step: int | None = Field(default=None, ge=0)
    """The step before which that ends; null: never."""
    remembered: Count | None = None
    """Steps over whose mean a subject's cosine is taken. Of preset ``later`` alone."""
    momentum_scale: NotNegative | None = None
    """How much of earlier steps is added. Of preset ``later`` alone."""
    momentum_decay: Share | None = None
    """How much of the memory stays at each step. Of preset ``later`` alone."""
    quantile: Share | None = None
    """Share of each score that is trimmed away. Of preset ``later`` alone."""

    def given(self) -> dict[str, Any]:
        """Settings of the guidance that the recipe names."""
        return {
            name: value
            for name, value in super().given().items()
            if name not in ("preset", "subjects", "finder")
        }


class ScalingConcept(Knobs):
    """More or less of what pictures show (arXiv 2410.24151)."""

    preset: Literal["object", "subtle", "sketch"] = "object"
    """Where settings start from; keys given here win."""
    concept: Phrase
    """Its word."""
    images: tuple[Phrase, ...] = Field(min_length=1)
    """Pictures, relative to the recipe."""
    scales: tuple[float, ...] = Field(default=(), max_length=12)
    """ω, one column for each; that of the preset when left out. 0 draws without the concept."""
    decay: NotNegative | None = None
    """γ. The scale falls with this power of the rest of the path; 0 keeps it."""
    exit_step: int | None = Field(default=None, ge=0)
    """Steps in which the concept is read off the mean of the latents and the inverted ones."""
    anchored: bool | None = None
    """Whether the scale falls towards 1, the picture as it is, and not towards 0 as published."""
    renoise: int | None = Field(default=None, ge=0)
    """K, passes more at each step of the inversion."""
    regularise: bool | None = None
    """Whether predicted noise is moved towards white noise, as published."""

    def scaling(self) -> dict[str, Any]:
        """Settings of the scaling that the recipe names."""
        return {name: one for name, one in self.given().items() if name in ("decay", "exit_step", "anchored")}

    def inversion(self) -> dict[str, Any]:
        """Settings of the inversion that the recipe names."""
        return {name: one for name, one in self.given().items() if name in ("renoise", "regularise")}


class Guide(Choice):
    """How to draw; its only key names the guidance."""

    advice: ClassVar[str] = "Make a recipe of each"

    gcfg: Gcfg | None = None
    concept_diffusion: ConceptDiffusion | None = None
    scaling_concept: ScalingConcept | None = None


class GuidedSample(Part):
    """What the sheet shows."""

    prompts: tuple[Phrase, ...] = ()
    """Prompts to draw, one row for each."""
    seeds: Seeds = (0, 1, 2)
    """A list of seeds, or how many (4 means 0, 1, 2, 3)."""
    steps: Count = 25
    """Steps of the sampler."""


class GuideRecipe(Written):
    """A whole recipe of guidance, checked."""

    guide: Guide
    sample: GuidedSample = GuidedSample()


# Settings that one of the releases alone has.
_INITIAL = frozenset({"over_threshold", "signed", "parts", "softness"})
_LATER = frozenset({"remembered", "momentum_scale", "momentum_decay", "quantile"})


def guide_faults(recipe: GuideRecipe) -> Iterator[tuple[Place, str]]:
    """Keys that contradict each other: place in the recipe, and what is wrong."""
    guide = recipe.guide
    here: Place
    if guide.gcfg is not None and guide.gcfg.controlnet is not None and guide.gcfg.control_weight == 0:
        here = ("guide", "gcfg", "controlnet")
        yield here, "control_weight is 0, which leaves the prompt's branch out. Give it a weight."
    if guide.concept_diffusion is not None:
        preset = guide.concept_diffusion.preset
        wrong = _INITIAL if preset == "later" else _LATER
        for name in sorted(guide.concept_diffusion.given().keys() & wrong):
            yield ("guide", "concept_diffusion", name), f"preset {preset!r} does not read it. Leave it out."
        given = guide.concept_diffusion.given()
        if preset == "later" and "threshold" in given and given["threshold"] is None:
            here = ("guide", "concept_diffusion", "threshold")
            yield here, "preset 'later' has no threshold by the number of subjects. Give a number."
    if guide.scaling_concept is not None:
        for name in sorted(recipe.sample.model_fields_set & {"prompts", "seeds"}):
            yield ("sample", name), "pictures are drawn along their own paths. Leave it out."
