"""A patch as the texts and tensors of a file (``FORMAT.md``), and back, with every claim checked."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from surgery.checkpoint.digest import Digest
from surgery.checkpoint.header import DTYPE_NAMES, DTYPES, TENSOR_LIMIT
from surgery.checkpoint.texts import parse_json
from surgery.delta.algebra import fits, shape_of
from surgery.delta.delta import Delta
from surgery.delta.forms import Form, Replace
from surgery.errors import NumericsError, PatchError, brief, nearest
from surgery.names import split
from surgery.patch.encoding import decode, encode, with_index
from surgery.patch.kohya import FAMILIES, Family, lora_metadata
from surgery.patch.lora_layout import LoraLayout, layout_of, lora_tensors, read_factors
from surgery.patch.model import SUPPORTED, Change, Patch
from surgery.patch.terms import Term, conflicts, term_faults

VERSION: Final = "1"
_FLOATS: Final = (*SUPPORTED, torch.float64)

T = TypeVar("T")


def tensors_in(patch: Patch) -> dict[str, Tensor]:
    """The tensors of a patch file, by key: those of a LoRA where the patch can be one."""
    layout = lora_of(patch)
    if layout is not None:
        return lora_tensors(layout, patch.terms)
    return {
        _key(index, name, part): tensor
        for index, term in enumerate(patch.terms)
        for name, form in term.delta.terms.items()
        for part, tensor in encode(form).parts.items()
    }


def metadata_of(patch: Patch) -> dict[str, str]:
    """The texts of a patch file's header, without the digest of the content.

    Raises:
        PatchError: when the provenance holds something JSON has no word for.
    """
    layout = lora_of(patch)
    manifest = {
        "layout": "terms" if layout is None else "lora",
        "terms": [
            {
                "source": term.source,
                "strength": term.strength,
                "forms": {
                    name: _form_json(form)
                    if layout is None
                    else {"op": "add_lowrank", "columns": list(layout.columns[place][name])}
                    for name, form in term.delta.terms.items()
                },
            }
            for place, term in enumerate(patch.terms)
        ],
        "carriers": {name: list(shape) for name, shape in patch.carriers.items()},
        "changes": {name: _change_json(change) for name, change in patch.changes.items()},
    }
    base = {
        "architecture": patch.architecture,
        "roots": {component: digest_json(root) for component, root in patch.roots.items()},
    }
    own = {
        "format": "pt",
        "sdpatch.version": VERSION,
        "sdpatch.manifest": dump(manifest),
        "sdpatch.base": dump(base),
        "sdpatch.edit": dump(patch.provenance),
    }
    if layout is None:
        return own
    title, ranks = str(patch.provenance.get("title", "patch")), layout.ranks
    tensors = lora_tensors(layout, patch.terms)
    return lora_metadata(layout.family, title, ranks.alpha, ranks.of.values(), tensors) | own


def lora_of(patch: Patch) -> LoraLayout | None:
    """How the patch stands in a file that is a LoRA too; None where it cannot."""
    shapes = {name: change.shape for name, change in patch.changes.items()}
    return layout_of(patch.terms, patch.architecture, shapes, patch.carriers)


def patch_from(
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    keep: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> tuple[Patch | None, list[str]]:
    """The patch that header texts and tensors describe, or None, and every fault."""
    try:
        manifest, base, edit = (
            parse_json(metadata[f"sdpatch.{key}"]) for key in ("manifest", "base", "edit")
        )
        raw_terms, raw_changes = list(manifest["terms"]), _table(manifest["changes"])
        roots = {component: digest_from(root) for component, root in base["roots"].items()}
        architecture, provenance = str(base["architecture"]), _table(edit)
        carriers = {str(n): tuple(int(x) for x in shape) for n, shape in manifest["carriers"].items()}
        family = FAMILIES[architecture] if manifest["layout"] == "lora" else None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return None, [f"its header does not describe a patch ({error!r}). Was it written by another program?"]
    faults: list[str] = []
    changes = _each(raw_changes, lambda name: _change(name, raw_changes[name]), faults)
    shapes = {name: change.shape for name, change in changes.items()}
    read = partial(_form, tensors=tensors, shapes=shapes, family=family, keep=keep)
    terms = [_term(raw, partial(read, index), f"term {index}", faults) for index, raw in enumerate(raw_terms)]
    found = tuple(term for term in terms if term is not None)
    described = {name for raw in raw_terms if isinstance(raw, dict) for name in _keys(raw.get("forms"))}
    faults += [
        f"tensor {name!r} is named by the digests, but not by the terms"
        for name in sorted(changes.keys() - described)
    ]
    if not faults:
        faults += [*_misfits(found, changes), *term_faults(found)]
    if not faults:
        faults += conflicts(found)
    if faults:
        return None, faults
    patch = Patch(
        terms=found,
        architecture=architecture,
        roots=roots,
        changes=changes,
        carriers=carriers,
        provenance=provenance,
    )
    faults = _unread(patch, tensors) if family else _surplus(raw_terms, tensors)
    return (None if faults else patch), faults


def _surplus(raw_terms: Sequence[Any], tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors of the file that no term names; how a term writes its places is the writer's choice."""
    named = {
        _key(index, name, part)
        for index, raw in enumerate(raw_terms)
        for name, form in raw["forms"].items()
        for part in form["parts"]
    }
    return [f"tensor {key!r} belongs to no term" for key in sorted(tensors.keys() - named)]


def _unread(patch: Patch, tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors of a LoRA file that loaders would read otherwise than the terms say, or that are missing."""
    written = tensors_in(patch)
    faults = [f"tensor {key!r} belongs to no term" for key in sorted(tensors.keys() - written.keys())]
    faults += [f"tensor {key!r} is missing" for key in sorted(written.keys() - tensors.keys())]
    faults += [
        f"tensor {key!r} is not as the terms describe it"
        for key in sorted(tensors.keys() & written.keys())
        if written[key].dtype != tensors[key].dtype or not torch.equal(written[key], tensors[key])
    ]
    return faults


def _term(raw: Any, read: Callable[[str, Any], Form], what: str, faults: list[str]) -> Term | None:
    try:
        described, strength, source = _table(raw["forms"]), float(raw["strength"]), str(raw["source"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        faults.append(f"{what} is not described as one ({error!r})")
        return None
    forms = _each(described, lambda name: read(name, described[name]), faults)
    return Term(delta=Delta(forms), strength=strength, source=source)


def _form(
    index: int,
    name: str,
    raw: Any,
    *,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family | None,
    keep: Callable[[Tensor], Tensor],
) -> Form:
    split(name)
    if name not in shapes:
        raise ValueError("is named by the terms, but not by the digests")
    if family is not None:
        return read_factors(name, raw["columns"], family, tensors)
    op, written, named = str(raw["op"]), str(raw["index"]), raw["parts"]
    if not isinstance(named, list) or len({str(part) for part in named}) < len(named):
        raise ValueError(f"has as parts {brief(named)}; a list of names, each once, was expected")
    parts = {}
    for part in named:
        key = _key(index, name, part)
        if key not in tensors:
            raise ValueError(f"needs {key!r}, which is missing; nearest: {nearest(key, tensors)!r}")
        if tensors[key].dtype.is_floating_point and tensors[key].dtype not in _FLOATS:
            raise ValueError(
                f"has {part!r} of the type {tensors[key].dtype}; F16, BF16, F32 or F64 was expected"
            )
        parts[part] = tensors[key]
    return with_index(decode(op, written, parts, shapes[name]), keep)


def _misfits(terms: tuple[Term, ...], changes: Mapping[str, Change]) -> list[str]:
    faults = []
    for term in terms:
        for name in sorted(term.delta.terms.keys() & changes.keys()):
            form, shape = term.delta.terms[name], changes[name].shape
            if not fits(form, shape):
                faults.append(f"tensor {name!r} has shape {shape}; the change is of shape {shape_of(form)}")
            elif isinstance(form, Replace) and form.new.dtype != changes[name].dtype:
                faults.append(
                    f"tensor {name!r} is {changes[name].dtype}; its new values are {form.new.dtype}"
                )
    return faults


def _table(raw: Any) -> dict[str, Any]:
    """JSON that is a table; a list of pairs would pass for one."""
    if not isinstance(raw, dict):
        raise TypeError(f"{type(raw).__name__} where a table was expected")
    return raw


def _keys(raw: object) -> list[str]:
    return list(raw) if isinstance(raw, dict) else []


def _each(raw: Mapping[str, Any], parse: Callable[[str], T], faults: list[str]) -> dict[str, T]:
    """Every name parsed, sorted; the faults of the others are added to ``faults``."""
    parsed = {}
    for name in sorted(raw):
        try:
            parsed[name] = parse(name)
        except (KeyError, TypeError, ValueError, OverflowError, NumericsError) as error:
            faults.append(f"tensor {name!r} {error}")
    return parsed


def _change(name: str, raw: Any) -> Change:
    split(name)
    dtype = DTYPES.get(raw["dtype"])
    if dtype not in SUPPORTED:
        raise ValueError(f"is of type {raw['dtype']!r}, which cannot be patched")
    shape = tuple(int(size) for size in raw["shape"])
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize > TENSOR_LIMIT:
        raise ValueError(f"has the shape {shape}, which no Stable Diffusion has")
    return Change(
        dtype=dtype,
        shape=shape,
        before=digest_from(raw["before"]),
        after=digest_from(raw["after"]),
        changed=int(raw["changed"]),
        largest=float(raw["largest"]),
        norm=float(raw["norm"]),
        half=None if raw.get("half") is None else _sha256(raw["half"]),
    )


def _change_json(change: Change) -> dict[str, object]:
    return {
        "dtype": DTYPE_NAMES[change.dtype],
        "shape": list(change.shape),
        "before": digest_json(change.before),
        "after": digest_json(change.after),
        "changed": change.changed,
        "largest": change.largest,
        "norm": change.norm,
        **({} if change.half is None else {"half": change.half}),
    }


def digest_from(raw: Any) -> Digest:
    """The digest pair that `digest_json` wrote.

    Raises:
        ValueError: when it holds no sha256; the message continues "tensor <name> ".
    """
    return Digest(bytes=_sha256(raw["bytes"]), value16=_sha256(raw["value16"]))


def _sha256(text: Any) -> str:
    if not isinstance(text, str) or not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"has {text!r} where a sha256 was expected")
    return text


def digest_json(digest: Digest) -> dict[str, str]:
    """A digest pair as plain data."""
    return {"bytes": digest.bytes, "value16": digest.value16}


def refuse_version(version: object, known: str, what: str) -> None:
    """Refuse a file of a later version, or of one that never was; minor versions are read as their major.

    Raises:
        PatchError: beginning with ``what``.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})(?:\.\d{1,4})?", version) if isinstance(version, str) else None
    if match is None:
        raise PatchError(f"{what} of version {brief(version)}; expected {known!r}. Is the file damaged?")
    if int(match[1]) > int(known):
        raise PatchError(
            f"{what} of version {version}; this program knows those up to {known}. Update sd-surgery."
        )


def _form_json(form: Form) -> dict[str, object]:
    encoded = encode(form)
    return {"op": encoded.op, "index": encoded.index, "parts": sorted(encoded.parts)}


def _key(index: int, name: str, part: str) -> str:
    return f"{index}/{name}::{part}"


def dump(value: object) -> str:
    """JSON with one spelling for equal values.

    Raises:
        PatchError: when ``value`` holds something JSON has no word for.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PatchError(
            f"the provenance of a patch must be plain JSON; {error}. Leave that entry out."
        ) from error
