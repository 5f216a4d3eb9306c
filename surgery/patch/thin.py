"""A smaller mask cut from a patch that carries the scores of its masked weights."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from surgery.checkpoint.layout import open_checkpoint
from surgery.delta import Delta, Form, Places, Rescale
from surgery.errors import PatchError
from surgery.patch.file import patch_digest
from surgery.patch.match import match_very_base
from surgery.patch.model import Patch, carried, change_at
from surgery.patch.terms import Term, content_digest
from surgery.record import JSON
from surgery.store.libraries import library_versions

Quota: TypeAlias = Literal["row", "tensor", "global"]

_log = logging.getLogger(__name__)

_EXACT: Final = 1e-6


def thinned(patch: Patch, base: Path, keep: float, rule: Quota = "global") -> Patch:
    """The patch with a share of its masked weights, those with the largest scores of each mask.

    Args:
        patch: With masks that carry scores; what else it changes stays.
        base: Its base, to record the outcome.
        keep: Share of the masked weights.
        rule: Of what the share is taken: of each row, of each tensor, or of all together.

    Raises:
        PatchError: when no mask carries scores, nothing would be left of them, ``base`` is not the patch's to
            the byte, or the patch is composed of others.
    """
    _refuse(patch, keep, rule)
    cut = [replace(term, delta=_cut(term, keep, rule)) for term in patch.terms]
    terms = tuple(sorted((term for term in cut if term.delta.terms), key=content_digest))
    if not any(_scored(form) for _, form in _forms(terms)):
        raise PatchError(f"nothing is left of the masks when {100 * keep:.2g} % are kept. Keep more.")
    told: dict[str, JSON] = {"of": patch_digest(patch), "keep": keep, "rule": rule}
    provenance = {**patch.provenance, "versions": library_versions(), "thinned": told}
    return replace(_recorded(patch, terms, base), provenance=provenance)


def _refuse(patch: Patch, keep: float, rule: str) -> None:
    """Refuse what cannot be thinned, and say what stays whole."""
    if not 0 < keep < 1 or rule not in get_args(Quota):
        raise PatchError(
            f"keep is {keep:g} and rule {rule!r}; expected a share above 0, below 1, and one of "
            f"{', '.join(get_args(Quota))}."
        )
    if "composed" in patch.provenance:
        raise PatchError(
            "it is composed of several patches, and would no longer be made of those. Thin the parts, then "
            "compose them."
        )
    masks = [form for _, form in _forms(patch.terms) if isinstance(form, Rescale)]
    whole = sum(not _scored(form) for form in masks)
    if whole == len(masks):
        raise PatchError(
            "no mask of the patch carries scores, by which fewer weights could be chosen. Make it again with "
            "selection.scores, or with a smaller ratio."
        )
    if whole:
        _log.warning("%d of %d masks carry no scores and stay whole", whole, len(masks))


def _recorded(patch: Patch, terms: tuple[Term, ...], base: Path) -> Patch:
    """The patch with smaller ``terms``, and what they do to the base where that is not what it was."""
    checkpoint = open_checkpoint(base)
    match_very_base(patch, checkpoint, patch.changes)
    left = {name for name, _ in _forms(terms)}
    smaller = {name for name, form in _forms(patch.terms) if _scored(form)}
    changes = {
        name: change_at(terms, checkpoint, name, change.before) if name in smaller else change
        for name, change in patch.changes.items()
        if name in left
    }
    return carried(replace(patch, terms=terms, changes=changes), [patch])


def _forms(terms: Sequence[Term]) -> Iterator[tuple[str, Form]]:
    return ((name, form) for term in terms for name, form in term.delta.terms.items())


def _scored(form: Form) -> bool:
    if not isinstance(form, Rescale) or form.scores is None:
        return False
    return form.places.kind == "elements" and bool(form.places.shape)


def _cut(term: Term, keep: float, rule: Quota) -> Delta:
    forms = dict(term.delta.terms)
    masks = {name: form for name, form in sorted(forms.items()) if _scored(form)}
    chosen = _chosen(list(masks.values()), keep, rule)
    for (name, form), mine in zip(masks.items(), chosen, strict=True):
        assert isinstance(form, Rescale)
        assert form.places.index is not None
        assert form.scores is not None
        places = Places("elements", form.places.shape, form.places.index[mine])
        factors = form.factors[mine] if form.factors.ndim else form.factors
        forms[name] = Rescale(places, factors, form.scores[mine])
        if not bool(mine.any()):
            del forms[name]
    return Delta(forms)


def _chosen(masks: Sequence[Form], keep: float, rule: Quota) -> Sequence[Bool[Tensor, " places"]]:
    """Which places of each mask are kept."""
    scores, groups, last = [], [], 0
    for form in masks:
        assert isinstance(form, Rescale)
        assert form.places.index is not None
        assert form.scores is not None
        scores.append(form.scores.half().float())  # as in the file, so that equal patches become equal ones
        index, (rows, *inputs) = form.places.index, form.places.shape
        groups.append(index // prod(inputs) + last if rule == "row" else torch.full_like(index, last))
        last += {"row": rows, "tensor": 1, "global": 0}[rule]
    if not masks:
        return []
    kept = _largest(torch.cat(scores), torch.cat(groups), keep)
    return list(kept.split([len(one) for one in scores]))


def _largest(
    scores: Float[Tensor, " places"], groups: Int64[Tensor, " places"], keep: float
) -> Bool[Tensor, " places"]:
    """The largest of each group; what is left over of one group's share goes on to the next."""
    order = scores.sort(descending=True, stable=True).indices
    order = order[groups[order].sort(stable=True).indices]
    sizes = torch.bincount(groups)
    ends = (sizes.cumsum(0).double() * keep + 0.5 + _EXACT).floor().long()
    quota = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.int64))
    first = sizes.cumsum(0) - sizes
    place = torch.arange(len(order)) - first[groups[order]]
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[place < quota[groups[order]]]] = True
    return kept
