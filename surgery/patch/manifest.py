"""A patch as the texts of a safetensors header, and back, with every claim checked.

Under ``sdpatch.`` lie ``version``, ``manifest`` (terms; per touched tensor type, shape, digests before and
after), ``base`` (architecture and component fingerprints), ``edit`` (provenance) and ``content`` (see
`surgery.patch.file`). All are JSON with sorted keys, except ``version`` and ``content``.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from torch import Tensor

from surgery.checkpoint.digest import Digest
from surgery.checkpoint.header import DTYPE_NAMES, DTYPES
from surgery.delta.delta import Delta
from surgery.delta.forms import Dense, Form, LowRank
from surgery.errors import NumericsError, PatchError, nearest
from surgery.names import split
from surgery.patch.model import SUPPORTED, Change, Patch
from surgery.patch.terms import Term, fits, tensors_of, term_faults

VERSION: Final = "1"
_PARTS: Final = {"dense": ("values",), "low_rank": ("left", "right")}

T = TypeVar("T")


def tensors_in(patch: Patch) -> dict[str, Tensor]:
    """The tensors of a patch file, by key."""
    return {
        _key(index, name, part): tensor
        for index, term in enumerate(patch.terms)
        for name, form in term.delta.terms.items()
        for part, tensor in tensors_of(form).items()
    }


def metadata_of(patch: Patch) -> dict[str, str]:
    """The texts of a patch file's header, without the digest of the content.

    Raises:
        PatchError: when the provenance holds something JSON has no word for.
    """
    manifest = {
        "terms": [
            {
                "source": term.source,
                "strength": term.strength,
                "forms": {name: _kind(form) for name, form in term.delta.terms.items()},
            }
            for term in patch.terms
        ],
        "changes": {name: _change_json(change) for name, change in patch.changes.items()},
    }
    base = {
        "architecture": patch.architecture,
        "roots": {component: digest_json(root) for component, root in patch.roots.items()},
    }
    return {
        "format": "pt",
        "sdpatch.version": VERSION,
        "sdpatch.manifest": dump(manifest),
        "sdpatch.base": dump(base),
        "sdpatch.edit": dump(patch.provenance),
    }


def patch_from(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[Patch | None, list[str]]:
    """The patch that header texts and tensors describe, or None, and every fault."""
    try:
        manifest, base, edit = (
            json.loads(metadata[f"sdpatch.{key}"]) for key in ("manifest", "base", "edit")
        )
        raw_terms, raw_changes = list(manifest["terms"]), dict(manifest["changes"])
        roots = {component: digest_from(root) for component, root in base["roots"].items()}
        architecture, provenance = str(base["architecture"]), dict(edit)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return None, [f"its header does not describe a patch ({error!r}). Was it written by another program?"]
    faults: list[str] = []
    changes = _each(raw_changes, lambda name: _change(name, raw_changes[name]), faults)
    terms = [_term(index, raw, tensors, faults) for index, raw in enumerate(raw_terms)]
    found = tuple(term for term in terms if term is not None)
    expected = {
        _key(index, name, part)
        for index, term in enumerate(found)
        for name, form in term.delta.terms.items()
        for part in tensors_of(form)
    }
    if not faults:
        faults += [f"tensor {key!r} belongs to no term" for key in sorted(tensors.keys() - expected)]
        faults += _misfits(found, changes)
        faults += term_faults(found)
    patch = Patch(terms=found, architecture=architecture, roots=roots, changes=changes, provenance=provenance)
    return (None if faults else patch), faults


def _term(index: int, raw: Any, tensors: Mapping[str, Tensor], faults: list[str]) -> Term | None:
    try:
        kinds, strength, source = dict(raw["forms"]), float(raw["strength"]), str(raw["source"])
    except (KeyError, TypeError, ValueError) as error:
        faults.append(f"term {index} is not described as one ({error!r})")
        return None
    forms = _each(kinds, lambda name: _form(index, name, kinds[name], tensors), faults)
    return Term(delta=Delta(forms), strength=strength, source=source)


def _form(index: int, name: str, kind: str, tensors: Mapping[str, Tensor]) -> Form:
    split(name)
    if kind not in _PARTS:
        raise ValueError(f"has the form {kind!r}; one of {', '.join(_PARTS)} was expected")
    keys = [_key(index, name, part) for part in _PARTS[kind]]
    for key in keys:
        if key not in tensors:
            raise ValueError(f"needs {key!r}, which is missing; nearest: {nearest(key, tensors)!r}")
    parts = [tensors[key] for key in keys]
    return Dense(*parts) if kind == "dense" else LowRank(*parts)


def _misfits(terms: tuple[Term, ...], changes: Mapping[str, Change]) -> list[str]:
    named = {name for term in terms for name in term.delta.terms}
    faults = [
        f"tensor {name!r} is named by the terms or by the digests, but not by both"
        for name in sorted(named ^ changes.keys())
    ]
    for term in terms:
        for name in sorted(term.delta.terms.keys() & changes.keys()):
            form, shape = term.delta.terms[name], changes[name].shape
            if not fits(form, shape):
                faults.append(f"tensor {name!r} has shape {shape}; the change is of shape {form.shape}")
    return faults


def _each(raw: Mapping[str, Any], parse: Callable[[str], T], faults: list[str]) -> dict[str, T]:
    """Every name parsed, sorted; the faults of the others are added to ``faults``."""
    parsed = {}
    for name in sorted(raw):
        try:
            parsed[name] = parse(name)
        except (KeyError, TypeError, ValueError, NumericsError) as error:
            faults.append(f"tensor {name!r} {error}")
    return parsed


def _change(name: str, raw: Any) -> Change:
    split(name)
    dtype = DTYPES.get(raw["dtype"])
    if dtype not in SUPPORTED:
        raise ValueError(f"is of type {raw['dtype']!r}, which cannot be patched")
    return Change(
        dtype=dtype,
        shape=tuple(int(size) for size in raw["shape"]),
        before=digest_from(raw["before"]),
        after=digest_from(raw["after"]),
        changed=int(raw["changed"]),
        largest=float(raw["largest"]),
    )


def _change_json(change: Change) -> dict[str, object]:
    return {
        "dtype": DTYPE_NAMES[change.dtype],
        "shape": list(change.shape),
        "before": digest_json(change.before),
        "after": digest_json(change.after),
        "changed": change.changed,
        "largest": change.largest,
    }


def digest_from(raw: Any) -> Digest:
    """The digest pair that `digest_json` wrote.

    Raises:
        ValueError: when it holds no sha256; the message continues "tensor <name> ".
    """
    digest = Digest(bytes=raw["bytes"], value16=raw["value16"])
    for text in (digest.bytes, digest.value16):
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise ValueError(f"has {text!r} where a sha256 was expected")
    return digest


def digest_json(digest: Digest) -> dict[str, str]:
    """A digest pair as plain data."""
    return {"bytes": digest.bytes, "value16": digest.value16}


def _kind(form: Form) -> str:
    return "dense" if isinstance(form, Dense) else "low_rank"


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
