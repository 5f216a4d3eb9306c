"""What all parts of a recipe have in common: frozen, strict, and no key without a meaning."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from surgery.recipe.parameters import Phrase
from surgery.shelf import checkpoint_path


class Part(BaseModel):
    """A mapping of a recipe whose keys are all known."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Knobs(Part):
    """Settings that override a preset: only those that the recipe names count."""

    nullable: ClassVar[frozenset[str]] = frozenset()
    """Settings of which ``null`` is a value; for the others a key without a value is a slip."""

    @field_validator("*")
    @classmethod
    def _refuse_null(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.field_name not in cls.nullable:
            raise ValueError("found null, expected a value. Leave the key out for the preset's.")
        return value

    def given(self) -> dict[str, Any]:
        """The settings that the recipe names, an explicit ``null`` included."""
        return {
            name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set
        }

    @model_serializer(mode="wrap")
    def _only_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class Choice(Part):
    """A mapping whose only key names the method."""

    advice: ClassVar[str]
    """What to do when there are two."""

    @property
    def method(self) -> str:
        """The method's name."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            found = " and ".join(named) if named else "none"
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"found {found}, expected one method of {known}. {self.advice}")
        return self

    @model_serializer(mode="wrap")
    def _only_the_method(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class Written(Part):
    """A whole document: it knows the file that it was read from, and finds what that names."""

    surgery: Literal[1]
    """Version of the recipe format."""
    title: str = ""
    """For people; changes nothing."""
    base: Phrase
    """Checkpoint: a path relative to the recipe, or a shelf name."""

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

    def base_path(self) -> Path:
        """The recipe's checkpoint: a path seen from the recipe's folder, or one on the shelf.

        Raises:
            SurgeryError: when neither exists.
        """
        own = self.file(self.base)
        return own if own.exists() else checkpoint_path(self.base)

    def file(self, name: str) -> Path:
        """A file that the recipe names, relative names seen from the recipe's folder."""
        return Path(name) if self._path is None else self._path.parent / name
