"""The steps of a recipe in order, each with its sites, its batches and its cost; made from headers alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from surgery.checkpoint import Checkpoint
from surgery.errors import MethodError, nearest, raise_all
from surgery.recipe import Recipe
from surgery.record import JSON, Work, json_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One edit with its place in the plan; ``identity`` is the digest of what decides its result."""

    number: int
    work: Work
    shapes: Mapping[str, tuple[int, ...]]
    identity: str

    @property
    def parameters(self) -> int:
        """Weights that may change."""
        return sum(prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of a recipe on one base.

    ``identity`` stays when comments, key order or the spelling of numbers change, and changes with anything
    in the recipe or in the base's headers that changes the result. No weight is read for it: bases of one
    shape share it. The digests of their weights, in the patch and in stored results, tell them apart.
    """

    base: str
    architecture: str
    steps: tuple[Step, ...]
    identity: str

    def as_json(self) -> dict[str, JSON]:
        """The plan as plain data."""
        return {
            "identity": self.identity,
            "base": self.base,
            "architecture": self.architecture,
            "steps": [
                {
                    "number": step.number,
                    "identity": step.identity,
                    "method": step.work.method,
                    "sites": list(step.work.sites),
                    "parameters": step.parameters,
                    "batches": list(step.work.batches),
                    "cost": dict(step.work.cost),
                }
                for step in self.steps
            ],
        }


def build_plan(recipe: Recipe, base: Checkpoint, works: Sequence[Work]) -> Plan:
    """The plan of ``recipe`` on ``base``, one step for each of its edits.

    Raises:
        MethodError: when an edit names tensors that the base does not have, or one takes weights away to
            which another adds; all of them at once.
    """
    missing = [fault for work in works for fault in _missing(work, base)]
    raise_all(MethodError, [*missing, *_contested(works)])
    headers: JSON = {name: [str(entry.dtype), *entry.shape] for name, entry in sorted(base.tensors.items())}
    foundation = json_digest(headers)
    steps = tuple(_step(number, work, base, foundation) for number, work in enumerate(works, start=1))
    parts: JSON = [recipe.digest, foundation, *(step.identity for step in steps)]
    return Plan(
        base=base.path.name,
        architecture=base.architecture,
        steps=steps,
        identity=json_digest(parts),
    )


def _step(number: int, work: Work, base: Checkpoint, foundation: str) -> Step:
    meaning: JSON = [work.method, work.meaning, foundation, list(work.batches)]
    return Step(
        number=number,
        work=work,
        shapes={name: tuple(base.tensors[name].shape) for name in work.sites},
        identity=json_digest(meaning),
    )


def _contested(works: Sequence[Work]) -> Iterator[str]:
    """Edits that would end in a patch that contradicts itself, told before hours of work."""
    for mask, other in product(works, works):
        shared = sorted(set(mask.sites) & set(other.sites)) if mask.masks and not other.masks else []
        if shared:
            yield (
                f"{mask.method} takes weights of {shared[0]!r} away and {other.method} adds to it (and "
                f"{len(shared) - 1} more); expected edits of different ones. Make two patches, one on the "
                f"checkpoint that the other leaves, or choose other components for {mask.method}."
            )


def _missing(work: Work, base: Checkpoint) -> list[str]:
    return [
        f"{work.method} edits {name!r}, which {base.path} does not have; nearest is "
        f"{nearest(name, base.tensors)!r}. Is the base a Stable Diffusion whose text encoder has that block?"
        for name in work.sites
        if name not in base.tensors
    ]
