"""What all parts of a recipe have in common: frozen, strict, and no key without a meaning."""

from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)


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
