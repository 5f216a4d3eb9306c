"""The words a checkpoint was trained with, where it says so: names, aliases, prompt templates."""

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
    """

    concepts: tuple[str, ...] = ()
    name_of: dict[str, str] | None = None
    train_templates: tuple[str, ...] = ()
    test_templates: tuple[str, ...] = ()

    def templates(self, kind: str) -> tuple[str, ...]:
        """Prompts of one kind, "train" or "test"; a plain one for checkpoints that name none."""
        return (self.test_templates if kind == "test" else self.train_templates) or _PLAIN

    def name(self, phrase: str) -> str:
        """The concept that a phrase calls by name or alias, however it is spaced or capitalised.

        The phrase itself when unknown.
        """
        return (self.name_of or {}).get(_plainly(phrase), phrase)

    def others(self, phrases: Container[str], count: int) -> list[str]:
        """Up to ``count`` concepts evenly spread over the list, none of them in ``phrases``."""
        left = [name for name in self.concepts if name not in phrases]
        count = min(count, len(left))
        return [left[(2 * number + 1) * len(left) // (2 * count)] for number in range(count)]


def read_words(checkpoint: Path) -> Words:
    """The words beside a checkpoint folder.

    Raises:
        CheckpointError: when the file is there and cannot be read.
    """
    path = checkpoint / _WORDS_FILE
    if not path.is_file():
        return Words()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        known = [*raw["concepts"], *raw["professions"]]
        drawn = tuple(c["name"] for c in known if c["subgroup"] != raw["left_out_subgroup"])
        name_of = {_plainly(spelling): c["name"] for c in known for spelling in (c["name"], *c["aliases"])}
        templates = {kind: tuple(raw["templates"][kind]) for kind in ("train", "test")}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error!r}); expected the checkpoint's list of words. Restore it."
        ) from error
    return Words(
        concepts=drawn, name_of=name_of, train_templates=templates["train"], test_templates=templates["test"]
    )


def _plainly(phrase: str) -> str:
    return " ".join(phrase.split()).lower()
