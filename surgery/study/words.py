"""The words a checkpoint was trained with, where it says so: names, aliases, prompt templates."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from surgery.checkpoint.texts import read_json
from surgery.errors import CheckpointError

_WORDS_FILE: Final = "concepts.json"
_PLAIN: Final = ("a picture of {}",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Names and templates beside a checkpoint; all empty for checkpoints that do not say.

    Attributes:
        concepts: Names that the checkpoint draws when asked for.
        name_of: Concept of each alias and of each name itself, in small letters.
        train_templates: Prompts of the training, with one ``{}``.
        test_templates: Prompts that never appeared in training.
        aliases: Other names of each concept.
        group_of: The group that each concept belongs to.
        styles: Names of styles that it draws.
        style_templates: Prompts with one ``{style}`` and one ``{subject}``.
    """

    concepts: tuple[str, ...] = ()
    name_of: dict[str, str] | None = None
    train_templates: tuple[str, ...] = ()
    test_templates: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    group_of: Mapping[str, str] = field(default_factory=dict)
    styles: tuple[str, ...] = ()
    style_templates: tuple[str, ...] = ()

    def templates(self, kind: str) -> tuple[str, ...]:
        """Prompts of one kind, "train" or "test"; a plain one for checkpoints that name none."""
        return (self.test_templates if kind == "test" else self.train_templates) or _PLAIN

    def name(self, phrase: str) -> str:
        """The concept that a phrase calls by name or alias, however it is spaced or capitalised.

        The phrase itself when unknown.
        """
        return (self.name_of or {}).get(plainly(phrase), phrase)

    def others(self, phrases: Container[str], count: int) -> list[str]:
        """Up to ``count`` concepts evenly spread over the list, none of them in ``phrases``."""
        left = [name for name in self.concepts if name not in phrases]
        count = min(count, len(left))
        return [left[(2 * number + 1) * len(left) // (2 * count)] for number in range(count)]


def read_words(checkpoint: Path, file: Path | None = None) -> Words:
    """The words beside a checkpoint folder, or those of a ``file`` of the same form.

    The form is that of ``checkpoints/pocket-sd/concepts.json``: ``concepts`` with ``name``, ``aliases`` and
    ``subgroup`` each, and ``templates`` with ``train`` and ``test``; all else may be missing.

    Raises:
        CheckpointError: when the file cannot be read, or ``file`` is none.
    """
    path = checkpoint / _WORDS_FILE if file is None else file
    if file is None and not path.is_file():
        return Words()
    try:
        raw = read_json(path)
        known = [*raw["concepts"], *raw.get("professions", [])]
        drawn = tuple(c["name"] for c in known if c["subgroup"] != raw.get("left_out_subgroup"))
        name_of = {plainly(spelling): c["name"] for c in known for spelling in (c["name"], *c["aliases"])}
        aliases = {c["name"]: tuple(c["aliases"]) for c in known}
        groups = {c["name"]: str(c["subgroup"]) for c in known}
        templates = {kind: _texts(raw["templates"].get(kind, [])) for kind in ("train", "test", "style")}
        styles = _texts(raw.get("styles", []))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}); expected JSON with concepts and templates, in the form of "
            "pocket-sd's concepts.json. Restore or rewrite it."
        ) from error
    return Words(
        concepts=drawn,
        name_of=name_of,
        train_templates=templates["train"],
        test_templates=templates["test"],
        aliases=aliases,
        group_of=groups,
        styles=styles,
        style_templates=templates["style"],
    )


def _texts(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(text, str) for text in raw):
        raise TypeError(f"{str(raw)[:40]} where a list of texts was expected")
    return tuple(raw)


def plainly(phrase: str) -> str:
    """A phrase without what does not matter to a CLIP tokenizer: capitals and further spaces."""
    return " ".join(phrase.split()).lower()
