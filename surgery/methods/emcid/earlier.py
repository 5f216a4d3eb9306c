"""What earlier edits wrote at, so that a later one leaves it where it is.

An edit writes at keys: the ``fc2`` inputs at its subjects' last tokens. A key is what the encoder computes
from the tokens up to there and nothing else, so a patch carries those tokens, some ten whole numbers for each
prompt, and a later edit measures their keys on the checkpoint that it changes. Stored vectors (68 kB for each
prompt of SD 1.x in half precision) would be those of the first checkpoint, from which the first edit itself
has moved the keys of all layers but its lowest; and in a file that is a LoRA, loaders refuse further tensors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from surgery.errors import MethodError, raise_all
from surgery.methods.emcid.nouns import Concept
from surgery.methods.emcid.offsets import Target
from surgery.record import JSON, Finding


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class WrittenKey:
    """A prompt up to its subject's last token, and the weight of the key there in the edit that wrote it."""

    ids: tuple[int, ...]
    weight: float

    def as_json(self) -> JSON:
        """How a patch carries it."""
        return {"ids": list(self.ids), "weight": self.weight}


def written_by(targets: Iterable[Target]) -> tuple[WrittenKey, ...]:
    """The keys that an edit of these targets writes at; a concept's weight is shared by its prompts."""
    return tuple(
        WrittenKey(ids=span.ids[: span.end], weight=target.concept.edit.weight / len(target.concept.spans))
        for target in targets
        for span in target.concept.spans
    )


def keys_from(raw: Iterable[JSON]) -> tuple[WrittenKey, ...]:
    """The keys that patches carry, each prompt once with its largest weight, in an order of their own.

    Raises:
        MethodError: when one of them is none.
    """
    heaviest: dict[tuple[int, ...], float] = {}
    faults = []
    for entry in raw:
        match entry:
            case {"ids": [*ids], "weight": int() | float() as weight} if ids and weight > 0:
                if all(type(number) is int and number >= 0 for number in ids):
                    key = tuple(int(str(number)) for number in ids)
                    heaviest[key] = max(float(weight), heaviest.get(key, 0.0))
                    continue
        faults.append(f"a patch carries the key {entry!r}; expected token ids and a positive weight.")
    raise_all(MethodError, faults)
    return tuple(WrittenKey(ids=ids, weight=weight) for ids, weight in sorted(heaviest.items()))


def still_valid(
    keys: Sequence[WrittenKey], concepts: Iterable[Concept], vocabulary: int, positions: int
) -> tuple[tuple[WrittenKey, ...], list[Finding]]:
    """The keys less those of sources that are edited again, which are noted.

    Raises:
        MethodError: when a key has tokens that the encoder does not know, or more than it reads.
    """
    foreign = sum(max(key.ids) >= vocabulary or len(key.ids) > positions for key in keys)
    if foreign:
        raise MethodError(
            f"{foreign} keys of earlier patches have tokens above {vocabulary - 1}, the last that this text "
            f"encoder knows, or more than the {positions} that it reads. Are they patches of this family?"
        )
    again = {span.ids[: span.end]: concept.label for concept in concepts for span in concept.spans}
    found = {again[key.ids] for key in keys if key.ids in again}
    message = "an earlier patch edited it too; what that one wrote is given up for it."
    findings = [Finding(kind="edited-again", subject=label, message=message) for label in sorted(found)]
    return tuple(key for key in keys if key.ids not in again), findings
