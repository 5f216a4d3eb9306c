"""A patch of low-rank changes laid out as a LoRA file, so that users have one file for everything.

Loaders read ``<module>.lora_up.weight``, ``.lora_down.weight`` and ``.alpha`` and ignore our header; we read
the same factors, and from the header which columns belong to which term. Modules of zeros that some loaders
need are described there as carriers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from surgery.delta.forms import LowRank
from surgery.patch.factors import Ranks, choose_ranks
from surgery.patch.kohya import FAMILIES, Family, companions, module_key, unexportable
from surgery.patch.terms import Term

UP: Final = "lora_up.weight"
DOWN: Final = "lora_down.weight"
ALPHA: Final = "alpha"

Shapes = Mapping[str, tuple[int, ...]]
Columns = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraLayout:
    """Where everything stands in a patch file that is a LoRA.

    Attributes:
        columns: Per term and tensor, the columns of ``lora_up`` (rows of ``lora_down``) that are its factors.
        shapes: Of touched weights and carriers.
        ranks: Of each module, padded with zeros to powers of two unless all are alike.
    """

    family: Family
    columns: Sequence[Mapping[str, Columns]]
    shapes: Shapes
    ranks: Ranks


def layout_of(
    terms: Sequence[Term], architecture: str, shapes: Shapes, carriers: Shapes
) -> LoraLayout | None:
    """The layout of these terms, or None when they cannot stand in a LoRA file as they are."""
    family = FAMILIES.get(architecture)
    if family is None or not shapes or any(term.strength != 1 for term in terms):
        return None
    forms = [form for term in terms for form in term.delta.terms.values()]
    if not all(isinstance(form, LowRank) for form in forms):
        return None
    if any(unexportable(name, shape, family) for name, shape in shapes.items()):
        return None
    if companions(shapes, family) != set(carriers):
        return None
    columns: list[dict[str, Columns]] = []
    used = dict.fromkeys(shapes, 0)
    for term in terms:
        columns.append({})
        for name, form in term.delta.terms.items():
            assert isinstance(form, LowRank)
            columns[-1][name] = (used[name], used[name] + form.left.shape[1])
            used[name] = columns[-1][name][1]
    everything = {**shapes, **carriers}
    needed = used | dict.fromkeys(carriers, 0)
    ranks = choose_ranks(needed, {n: s[0] + prod(s[1:]) for n, s in everything.items()})
    return LoraLayout(family=family, columns=columns, shapes=everything, ranks=ranks)


def carriers_for(names: Iterable[str], architecture: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Shapes of the modules of zeros that loaders need beside these; none where the base lacks one."""
    family = FAMILIES.get(architecture)
    needed = set() if family is None else companions(names, family)
    return {name: shapes[name] for name in sorted(needed)} if needed <= shapes.keys() else {}


def lora_tensors(layout: LoraLayout, terms: Sequence[Term]) -> dict[str, Tensor]:
    """Three tensors for each module; the power of two that undoes ``alpha / rank`` is in the up factor."""
    tensors: dict[str, Tensor] = {}
    for name, shape in layout.shapes.items():
        rank = layout.ranks.of[name]
        up, down = torch.zeros(shape[0], rank), torch.zeros(rank, prod(shape[1:]))
        for term, columns in zip(terms, layout.columns, strict=True):
            form = term.delta.terms.get(name)
            if isinstance(form, LowRank):
                start, stop = columns[name]
                up[:, start:stop] = form.left * (rank / layout.ranks.alpha)
                down[start:stop] = form.right
        ones = (1,) * (len(shape) - 2)
        key = module_key(name, layout.family)
        tensors[f"{key}.{UP}"] = up.reshape(shape[0], rank, *ones)
        tensors[f"{key}.{DOWN}"] = down.reshape(rank, *shape[1:])
        tensors[f"{key}.{ALPHA}"] = torch.tensor(float(layout.ranks.alpha))
    return tensors


def read_factors(name: str, raw: Any, family: Family, tensors: Mapping[str, Tensor]) -> LowRank:
    """The factors of one term from a module, as `lora_tensors` wrote them.

    Raises:
        ValueError: when they are missing or no such factors; the message continues "tensor <name> ".
    """
    key = module_key(name, family)
    missing = [f"{key}.{part}" for part in (UP, DOWN, ALPHA) if f"{key}.{part}" not in tensors]
    if missing:
        raise ValueError(f"needs {missing[0]!r}, which is missing")
    stored = tensors[f"{key}.{UP}"], tensors[f"{key}.{DOWN}"]
    if min(factor.ndim for factor in stored) < 2:
        shapes = " and ".join(str(tuple(factor.shape)) for factor in stored)
        raise ValueError(f"has factors of shape {shapes}; at least two dimensions of each were expected")
    up, down = (factor.flatten(start_dim=1) for factor in stored)
    alpha, rank = tensors[f"{key}.{ALPHA}"], down.shape[0]
    start, stop = (int(place) for place in raw)
    scale = float(alpha) / rank if alpha.ndim == 0 and rank else 0.0
    if up.dtype != torch.float32 or down.dtype != torch.float32 or up.shape[1] != rank:
        raise ValueError("has factors that are not fp32, or of different ranks")
    if not 0 <= start <= stop <= rank or scale <= 0 or not _is_power_of_two(scale):
        raise ValueError(f"has columns {start} to {stop} of {rank}, scaled by {scale}")
    return LowRank(up[:, start:stop] * scale, down[start:stop])


def _is_power_of_two(value: float) -> bool:
    return float(torch.frexp(torch.tensor(value, dtype=torch.float64)).mantissa) == 0.5
