"""The names of a classifier's classes, where a label may list several: ``tench, Tinca tinca``."""

from collections import Counter
from collections.abc import Sequence

from surgery.judge.labels import Labels


def labels_of(classes: Sequence[str]) -> tuple[Labels, tuple[int, ...]]:
    """What such a classifier can be asked, and the column that answers for each class.

    Every name in a label stands for its class, and so does the label as it is written. Classes of one and the
    same label (ImageNet has two cranes) share a column, whose probability is the sum. A name that several
    labels list (``missile``) stands for the one whose whole label it is, else for the only one that lists it
    first; else for none, and whoever asks for it is told that the judge does not know it.
    """
    column = {label: number for number, label in enumerate(dict.fromkeys(classes))}
    owner = _owners(list(column))
    own = {label: _shown(label, owner) for label in column}
    merged = {name: own[label] for name, label in owner.items() if name != own[label]}
    return Labels(concept=tuple(own.values()), merged=merged), tuple(column[label] for label in classes)


def _owners(labels: Sequence[str]) -> dict[str, str]:
    """The label that each name stands for."""
    listed = {label: _names(label) for label in labels}
    first = Counter(names[0] for names in listed.values())
    anywhere = Counter(name for names in listed.values() for name in names)
    owner = {label: label for label in labels}
    for label, names in listed.items():
        if first[names[0]] == 1:
            owner.setdefault(names[0], label)
    for label, names in listed.items():
        for name in names:
            if anywhere[name] == 1:
                owner.setdefault(name, label)
    return owner


def _names(label: str) -> list[str]:
    return list(dict.fromkeys(name for part in label.split(",") if (name := part.strip()))) or [label]


def _shown(label: str, owner: dict[str, str]) -> str:
    """The first of a label's names that is its own."""
    return next((name for name in _names(label) if owner.get(name) == label), label)
