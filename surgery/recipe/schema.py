"""A recipe: what the user asked for. No code in it, no model behind it."""

from typing import Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

from surgery.recipe.cad import Cad
from surgery.recipe.distill import Distill
from surgery.recipe.emcid import Emcid
from surgery.recipe.guide import GuideRecipe
from surgery.recipe.model import Choice, Part, Written
from surgery.recipe.parameters import Count, NotNegative, Phrase, Seed, Seeds
from surgery.record import json_digest


class Edit(Choice):
    """One entry of ``edits``; its only key names the method."""

    advice: ClassVar[str] = "Make an edit of each"

    emcid: Emcid | None = None
    cad: Cad | None = None
    distill: Distill | None = None

    @property
    def entry(self) -> Emcid | Cad | Distill:
        """The method's part."""
        found: Emcid | Cad | Distill = getattr(self, self.method)
        return found


class Sample(Part):
    """What the before/after sheet shows."""

    prompts: tuple[Phrase, ...] = ()
    """Prompts to draw; without any, one for each edited concept."""
    seeds: Seeds = (0, 1)
    """A list of seeds, or how many (4 means 0, 1, 2, 3)."""
    steps: Count = 25
    """Steps of the sampler."""
    guidance: NotNegative = 5.0
    """Guidance scale of the sampler."""


class Evaluate(Part):
    """How the effect is measured."""

    judge: Phrase = "pocket-judge"
    """Path or shelf name of the judge."""
    samples: Count = 4
    """Pictures per prompt."""
    held_out: int = Field(default=40, ge=0)
    """Concepts that were not edited and are looked at too."""
    group_samples: Count = 16
    """Pictures per prompt of each debiased concept."""
    templates: Literal["test", "train"] = "test"
    """Which of the checkpoint's templates make the prompts."""


class Recipe(Written):
    """A whole recipe, checked."""

    seed: Seed = 0
    """Where all randomness starts."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Compute dtype of the models; closed forms always solve in float64."""
    after: tuple[Phrase, ...] = ()
    """Patches that the base has in it already, paths relative to the recipe: what they did is protected."""
    edits: tuple[Edit, ...] = Field(min_length=1)
    sample: Sample = Sample()
    evaluate: Evaluate | None = None
    export: tuple[Literal["checkpoint", "lora"], ...] = ("checkpoint", "lora")
    """What is written beside the patch."""

    def meaning(self) -> dict[str, Any]:
        """The recipe as plain JSON with defaults filled in, without what changes no result."""
        without = {"title"} if self.after else {"title", "after"}
        return self.model_dump(mode="json", exclude=without)

    @property
    def digest(self) -> str:
        """Sha256 of the meaning: the same for other comments, key orders and spellings of numbers.

        Files that the recipe names (base, captions, pictures) enter by name only; whoever caches a result
        adds their digests.
        """
        return json_digest(self.meaning())


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of recipes of both kinds, for editors that complete and check YAML."""
    found: dict[str, Any] = TypeAdapter(Recipe | GuideRecipe).json_schema()
    return found
