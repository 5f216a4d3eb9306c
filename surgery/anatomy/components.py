"""Which weights are looked at: presets by role, patterns of dotted names, always in one order."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from surgery.anatomy.atlas import place_of
from surgery.errors import MethodError, nearest, raise_all
from surgery.names import TEXT_ENCODERS, split

_ATTENTION: Final = ("query", "key", "value", "out")
_SELF: Final = tuple(f"self_{part}" for part in _ATTENTION)
_CROSS: Final = tuple(f"cross_{part}" for part in _ATTENTION)
_MLP: Final = ("mlp_in", "mlp_out")
_FIRST_BLOCK: Final = re.compile(r"text_encoder/text_model\.encoder\.layers\.(\d+)\.")
_PARTS: Final = (*TEXT_ENCODERS, "unet")

PRESETS: Final[Mapping[str, str]] = {
    "ff": "both matrices of the U-Net's feed-forward layers",
    "ff_out": "the second of them",
    "attn2_kv": "keys and values of its cross-attention",
    "attn": "all matrices of its self- and cross-attention",
    "conv": "its convolutions",
    "linear": "all its matrices",
    "all": "all its matrices and convolutions",
    "text_mlp": "both MLP matrices of the text encoders",
}
"""Names that stand for groups of weights, and what they are."""


def components_of(
    shapes: Mapping[str, Sequence[int]], chosen: Sequence[str], leave_out: Sequence[str] = ()
) -> tuple[str, ...]:
    """Canonical names of the weights that ``chosen`` stands for, sorted; biases and norms never are.

    Args:
        shapes: Shape by canonical name of the checkpoint's tensors.
        chosen: Presets, or patterns of canonical names, in which ``*`` stands for anything.
        leave_out: Patterns of those that do not belong.

    Raises:
        MethodError: naming every entry that matches no weight.
    """
    unread = _unread(shapes)
    weights = {
        name: tuple(shape)
        for name, shape in shapes.items()
        if _is_layer(name, shape) and not name.startswith(unread)
    }
    found: set[str] = set()
    faults = [
        _unmatched(pattern, weights)
        for pattern in leave_out
        if not any(_matches(name, pattern) for name in weights)
    ]
    for entry in chosen:
        own = {name for name, shape in weights.items() if _belongs(name, shape, entry)}
        if not own:
            faults.append(_unmatched(entry, weights))
        found |= own
    raise_all(MethodError, faults)
    kept = [name for name in sorted(found) if not any(_matches(name, pattern) for pattern in leave_out)]
    if not kept:
        raise MethodError(
            f"{', '.join(chosen)} without {', '.join(leave_out)} leaves no weight; expected some. "
            "Leave out less."
        )
    return tuple(kept)


def _unread(shapes: Mapping[str, object]) -> str:
    """What no prediction goes through: the last block of SDXL's first text encoder; else no name."""
    if not any(name.startswith("text_encoder_2/") for name in shapes):
        return " "
    blocks = [int(found[1]) for name in shapes if (found := _FIRST_BLOCK.match(name))]
    return f"text_encoder/text_model.encoder.layers.{max(blocks)}." if blocks else " "


def _is_layer(name: str, shape: Sequence[int]) -> bool:
    """A matrix or convolution that a prompt's prediction goes through; embeddings are tables."""
    embedding = place_of(name).role.endswith("_embedding")
    return name.endswith(".weight") and len(shape) >= 2 and split(name)[0] in _PARTS and not embedding


def _belongs(name: str, shape: tuple[int, ...], entry: str) -> bool:
    if entry not in PRESETS:
        return _matches(name, entry)
    component, _ = split(name)
    role = place_of(name).role
    if entry == "text_mlp":
        return component in TEXT_ENCODERS and role in _MLP
    if component != "unet":
        return False
    match entry:
        case "ff":
            return role in _MLP
        case "ff_out":
            return role == "mlp_out"
        case "attn2_kv":
            return role in ("cross_key", "cross_value")
        case "attn":
            return role in _SELF + _CROSS
        case "conv":
            return len(shape) == 4
        case "linear":
            return len(shape) == 2
        case _:
            return True


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern covers a name, or whole parts of it side by side: ``ff`` is no part of ``diff``."""
    if fnmatchcase(name, pattern):
        return True
    parts, wanted = re.split(r"[./]", name), re.split(r"[./]", pattern)
    return any(
        all(fnmatchcase(part, one) for part, one in zip(parts[start:], wanted, strict=False))
        for start in range(len(parts) - len(wanted) + 1)
    )


def _unmatched(entry: str, weights: Mapping[str, object]) -> str:
    known = [*PRESETS, *weights, *{part for name in weights for part in re.split(r"[./]", name)}]
    return (
        f"components {entry!r} name no weight of the checkpoint; expected {', '.join(PRESETS)}, or a "
        f"pattern of names such as 'unet/mid_block*'. Nearest: {nearest(entry, known)!r}."
    )
