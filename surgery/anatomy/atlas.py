"""Where a tensor stands in its model: block and role, told from its canonical name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from surgery.names import split

_UNET_BLOCK: Final = re.compile(r"(?:(?P<half>encoder|decoder)\.)?(?P<way>down|up)_blocks\.(?P<level>\d+)\.")
_TEXT_BLOCK: Final = re.compile(r"text_model\.encoder\.layers\.(\d+)\.")

# The first pattern found in a tensor's path names its role.
_ROLES: Final = (
    (r"attn2\.to_q", "cross_query"),
    (r"attn2\.to_k", "cross_key"),
    (r"attn2\.to_v", "cross_value"),
    (r"attn2\.to_out", "cross_out"),
    (r"(attn1\.|attentions\.\d+\.)to_q|q_proj", "self_query"),
    (r"(attn1\.|attentions\.\d+\.)to_k|k_proj", "self_key"),
    (r"(attn1\.|attentions\.\d+\.)to_v|v_proj", "self_value"),
    (r"(attn1\.|attentions\.\d+\.)to_out|out_proj", "self_out"),
    (r"mlp\.fc1|ff\.net\.0", "mlp_in"),
    (r"mlp\.fc2|ff\.net\.2", "mlp_out"),
    (r"time_emb_proj|time_embedding|add_embedding", "time"),
    (r"token_embedding", "token_embedding"),
    (r"position_embedding", "position_embedding"),
    (r"text_projection", "projection"),
    (r"proj_in", "proj_in"),
    (r"proj_out", "proj_out"),
    (r"conv_shortcut", "shortcut"),
    (r"downsamplers|upsamplers", "resample"),
    (r"norm", "norm"),
    (r"conv", "conv"),
)

ROLES: Final = (*dict.fromkeys(role for _, role in _ROLES), "other")
"""All roles, in the order they are shown in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Component, block (``layer 3``, ``down 1``, ``mid``) and role (``cross_value``) of a tensor."""

    component: str
    block: str
    role: str


def place_of(name: str) -> Place:
    """The place of a tensor.

    Raises:
        ValueError: when ``name`` is no canonical name.
    """
    component, path = split(name)
    block = _text_block(path) if component.startswith("text_encoder") else _unet_block(path)
    role = next((role for pattern, role in _ROLES if re.search(pattern, path)), "other")
    return Place(component=component, block=block, role=role)


def block_order(blocks: Iterable[str]) -> list[str]:
    """Blocks in the order in which a signal passes them."""
    return sorted(set(blocks), key=_rank)


def _text_block(path: str) -> str:
    match = _TEXT_BLOCK.match(path)
    if match:
        return f"layer {match[1]}"
    return "embeddings" if ".embeddings." in f".{path}" else "final"


def _unet_block(path: str) -> str:
    match = _UNET_BLOCK.match(path)
    if match:
        half = f"{match['half']} " if match["half"] else ""
        return f"{half}{match['way']} {match['level']}"
    head = path.split(".")
    half = f"{head.pop(0)} " if head[0] in ("encoder", "decoder") else ""
    words = {"mid_block": "mid", "conv_in": "in", "conv_norm_out": "out", "conv_out": "out"}
    return half + words.get(head[0], head[0].removesuffix("_conv").replace("_", " "))


_ORDER: Final = ("embeddings", "time embedding", "add embedding", "in", "layer", "down", "mid", "up", "out")


def _rank(block: str) -> tuple[int, int, int, str]:
    half = {"encoder": 0, "quant": 1, "post": 2, "decoder": 3}.get(block.split()[0], 0)
    bare = block.removeprefix("encoder ").removeprefix("decoder ")
    word, _, number = bare.rpartition(" ") if bare[-1:].isdigit() else (bare, "", "0")
    place = _ORDER.index(word) if word in _ORDER else len(_ORDER)
    return half, place, int(number), block
