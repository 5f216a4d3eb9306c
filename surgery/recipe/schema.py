"""A recipe: what the user asked for. No code in it, no model behind it."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer, model_validator

from surgery.recipe.cad import Cad
from surgery.recipe.emcid import Emcid
from surgery.recipe.model import Part
from surgery.recipe.parameters import Count, NotNegative, Phrase, Seed, Seeds
from surgery.record import json_digest
from surgery.shelf import checkpoint_path


class Edit(Part):
    """One entry of ``edits``; its only key names the method."""

    emcid: Emcid | None = None
    cad: Cad | None = None

    @property
    def method(self) -> str:
        """The method's name."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def entry(self) -> Emcid | Cad:
        """The method's part."""
        found: Emcid | Cad = getattr(self, self.method)
        return found

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            found = " and ".join(named) if named else "none"
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"found {found}, expected one method of {known}. Make an edit of each")
        return self

    @model_serializer(mode="wrap")
    def _only_the_method(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


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


class Recipe(Part):
    """A whole recipe, checked."""

    surgery: Literal[1]
    """Version of the recipe format."""
    title: str = ""
    """For people; changes nothing."""
    base: Phrase
    """Checkpoint to edit: a path relative to the recipe, or a shelf name."""
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

    _source: str = PrivateAttr(default="")
    _path: Path | None = PrivateAttr(default=None)
    _overrides: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def source(self) -> str:
        """The text that the recipe was read from, to the letter."""
        return self._source

    @property
    def path(self) -> Path | None:
        """The file that the recipe was read from."""
        return self._path

    @property
    def overrides(self) -> dict[str, str]:
        """What ``--set`` changed: path → YAML text."""
        return dict(self._overrides)

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

    def base_path(self) -> Path:
        """The checkpoint to edit: a path seen from the recipe's folder, or one on the shelf.

        Raises:
            SurgeryError: when neither exists.
        """
        own = self.file(self.base)
        return own if own.exists() else checkpoint_path(self.base)

    def file(self, name: str) -> Path:
        """A file that the recipe names, relative names seen from the recipe's folder."""
        return Path(name) if self._path is None else self._path.parent / name


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors that complete and check YAML."""
    return Recipe.model_json_schema()
