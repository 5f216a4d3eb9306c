"""What an edit was meant to change and what it was to leave alone, in terms a judge can check."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from surgery.evaluate.pictures import Sampling
from surgery.judge import Labels, Trait


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One edited phrase: what its prompts showed before, and what they are to show.

    Attributes:
        subject: The phrase in the edited prompts.
        old: What the prompts showed before; None when they showed nothing the judge can name (an alias).
        new: What they are to show; None when the concept is only to go.
        destination: The phrase whose prompts set the mark: how often the unedited model shows ``new`` there
            is what an edit can reach. None leaves the comparison out.
        templates: Prompts with one ``{}`` for the phrase, instead of those of the measurement.
        beside: What the prompts name beside the phrase; the new concept counts only where that is shown, too.
    """

    subject: str
    old: Trait | None
    new: Trait | None = None
    destination: str | None = None
    templates: tuple[str, ...] = ()
    beside: Trait | None = None

    @property
    def title(self) -> str:
        """What a table calls it, such as ``cat → pizza``."""
        return f"{self.subject} → {self.destination or self.new or 'nothing'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One phrase that was not edited, and what its prompts are to show all the same.

    A picture counts only where it shows what is ``beside`` it in the prompts, too.
    """

    subject: str
    shows: Trait
    templates: tuple[str, ...] = ()
    beside: Trait | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Changes and probes that are measured together, their pictures drawn in one way.

    Attributes:
        sampling: How pictures are drawn, and the templates of those that have none of their own.
        compared: Whether the probes' pictures are held against each other as well: how far each moved from
            its partner of the same seed, and all together (Fréchet distance).
    """

    name: str
    sampling: Sampling
    changes: tuple[Change, ...] = ()
    probes: tuple[Probe, ...] = ()
    compared: bool = False

    @property
    def items(self) -> tuple[Change | Probe, ...]:
        """Everything whose pictures are drawn before and after."""
        return *self.changes, *self.probes


def faults(
    changes: Sequence[Change], held_out: Sequence[Probe], templates: Sequence[str], labels: Labels
) -> list[str]:
    """Everything that keeps these changes from being measured with this judge."""
    items: list[Change | Probe] = [*changes, *held_out]
    found = []
    if not changes and not held_out:
        found.append("nothing to measure; expected at least one change or held-out concept. Name some.")
    found += _template_faults([*templates, *(t for item in items for t in item.templates)])
    for item in items:
        if not item.templates and not templates:
            found.append(
                f"no templates for {item.subject!r}; expected at least one with '{{}}' in it. Pass some."
            )
    if labels.exclusive and any(item.beside is not None for item in items):
        found.append(
            "this judge names one concept of each picture, and two at once were asked for; expected a judge "
            "that tells several. Leave the suite composition out."
        )
    asked = [trait for change in changes for trait in (change.old, change.new)]
    asked += [probe.shows for probe in held_out] + [item.beside for item in items]
    named = (trait for trait in dict.fromkeys(asked) if trait is not None)
    found += [fault for trait in named if (fault := labels.fault(trait)) is not None]
    if not found:
        found += [fault for change in changes if (fault := _twins(change, labels)) is not None]
    return found


def _template_faults(templates: Iterable[str]) -> list[str]:
    return [
        f"template {template!r} has {template.count('{}')} places for the phrase; expected one '{{}}'."
        for template in dict.fromkeys(templates)
        if template.count("{}") != 1
    ]


def _twins(change: Change, labels: Labels) -> str | None:
    if change.old is None or change.new is None or change.old.axis != change.new.axis:
        return None
    if labels.column(change.old) != labels.column(change.new):
        return None
    return (
        f"{change.title}: the judge cannot tell {str(change.old)!r} from {str(change.new)!r}; "
        "expected two concepts that look different. Measure another change."
    )
