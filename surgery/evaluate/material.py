"""What evaluation suites draw from: the edited phrases, and what is known around them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from surgery.evaluate.balance import Balance
from surgery.evaluate.changes import Change
from surgery.judge import Trait


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """One edited phrase.

    Attributes:
        subject: The phrase that was edited.
        old: What its prompts showed; None when nothing that the judge can name.
        new: What they are to show; None when the concept is only to go.
        destination: The phrase that it was edited to; None for none.
        taught: The templates that the edit was made with.
        unseen: Templates of its own in place of the material's, for styles.
        aliases: Other names of the same thing that the editor never saw.
        given: Other names that it was given as sources, which prove nothing about the rest.
    """

    subject: str
    old: Trait | None
    new: Trait | None = None
    destination: str | None = None
    taught: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    given: tuple[str, ...] = ()

    def change(self, subject: str, templates: tuple[str, ...], beside: Trait | None = None) -> Change:
        """The change as it is looked for in the prompts of ``subject``, this phrase or another name of it."""
        return Change(
            subject=subject,
            old=self.old,
            new=self.new,
            destination=self.destination,
            templates=templates,
            beside=beside,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Everything that suites make their sections of.

    Attributes:
        edited: The edited phrases.
        held_out: Names that no edit names.
        unseen: Templates that no edit was made with.
        neighbours: For each edited phrase the unedited names nearest to it, by embedding and by group.
        styles: Style names that no edit names.
        style_templates: Templates with one ``{style}`` and one ``{subject}``.
        balances: The debiased phrases.
        skips: Whether people leave the last text block out by choice; of XL it is left out anyway.
    """

    edited: tuple[Edited, ...]
    held_out: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    neighbours: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    styles: tuple[str, ...] = ()
    style_templates: tuple[str, ...] = ()
    balances: tuple[Balance, ...] = ()
    skips: bool = True
