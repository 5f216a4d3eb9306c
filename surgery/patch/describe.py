"""What a patch is, as plain data for people and machines."""

from math import prod
from typing import Any

from surgery.delta.forms import Form, LowRank, Operator
from surgery.patch.encoding import encode
from surgery.patch.file import patch_digest
from surgery.patch.manifest import VERSION, digest_json, lora_of
from surgery.patch.model import Patch
from surgery.record import JSON


def describe_patch(patch: Patch) -> dict[str, Any]:
    """What a patch was made for, how each term is written, and what it changes.

    ``changed`` counts the weights of each tensor whose bits change at strength 1.
    """
    return {
        "format": VERSION,
        "architecture": patch.architecture,
        "digest": patch_digest(patch),
        "layout": "terms" if lora_of(patch) is None else "lora",
        "roots": {component: digest_json(root) for component, root in sorted(patch.roots.items())},
        "terms": [
            {
                "source": term.source,
                "strength": term.strength,
                "forms": {name: _form(form) for name, form in sorted(term.delta.terms.items())},
            }
            for term in patch.terms
        ],
        "changes": {
            name: {
                "changed": change.changed,
                "elements": prod(change.shape),
                "shape": list(change.shape),
                "dtype": str(change.dtype).removeprefix("torch."),
                "largest": change.largest,
                "norm": change.norm,
            }
            for name, change in patch.changes.items()
        },
        "changed": {name: change.changed for name, change in patch.changes.items()},
        "provenance": dict(patch.provenance),
    }


def _form(form: Form) -> dict[str, JSON]:
    encoded = encode(form)
    found: dict[str, JSON] = {"op": encoded.op, "index": encoded.index}
    if isinstance(form, LowRank | Operator):
        found["rank"] = int(form.right.shape[0])
    return found
