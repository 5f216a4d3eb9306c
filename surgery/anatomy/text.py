"""The text encoder taken apart: its blocks found by structure, and run piece by piece.

CLIP's text tower is found in the trees of transformers 4 (``text_model.encoder.layers``) and 5
(``encoder.layers``) alike, by looking for the list of blocks that have an ``mlp.fc2``. Running the pieces
here, instead of the library's ``forward``, gives the input of every ``fc2``, and allows a pass to start after
any block, behind any token, and to end before the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from surgery.errors import MethodError
from surgery.names import canonical

_SUPPORTED = "CLIPTextModel and CLIPTextModelWithProjection (SD 1.x, SD 2.x, SDXL)"
_PARTS = ("layer_norm1", "layer_norm2", "self_attn", "mlp")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Attention keys and values of the tokens before those that a pass computes, split into heads."""

    keys: Float[Tensor, "prompts heads tokens head"]
    values: Float[Tensor, "prompts heads tokens head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStack:
    """A CLIP text tower: embeddings, blocks in order, final layer norm. It holds the modules, not copies."""

    blocks: tuple[Any, ...]
    embeddings: Any
    final_norm: nn.Module
    path: str

    @property
    def width(self) -> int:
        """Size of the residual stream."""
        return int(self.blocks[0].mlp.fc2.out_features)

    @property
    def mlp_width(self) -> int:
        """Inputs of ``fc2``: the size of a key."""
        return int(self.blocks[0].mlp.fc2.in_features)

    @property
    def positions(self) -> int:
        """The longest prompt in tokens."""
        return int(self.embeddings.position_embedding.weight.shape[0])

    @property
    def vocabulary(self) -> int:
        """How many different tokens it knows."""
        return int(self.embeddings.token_embedding.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.blocks[0].mlp.fc2.weight.device
        return device

    def weight(self, layer: int) -> Tensor:
        """The ``fc2`` weight of one block; the caller does not write to it."""
        weight: Tensor = self.blocks[layer].mlp.fc2.weight
        return weight.detach()

    def name(self, layer: int, component: str = "text_encoder") -> str:
        """The canonical name of the ``fc2`` weight of one block."""
        return canonical(component, f"{self.path}.{layer}.mlp.fc2.weight")

    def embed(self, ids: Int[Tensor, "prompts tokens"]) -> Float[Tensor, "prompts tokens width"]:
        """The residual stream before the first block."""
        stream: Tensor = self.embeddings(input_ids=ids)
        return stream


def text_stack(encoder: nn.Module) -> TextStack:
    """The text tower inside an encoder, found by structure.

    Raises:
        MethodError: when there is no list of CLIP blocks, or more than one.
    """
    found = [
        (name, module)
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0 and all(_is_block(item) for item in module)
    ]
    if len(found) != 1:
        raise MethodError(
            f"{type(encoder).__name__} has {len(found)} lists of blocks with self_attn, mlp.fc1 and mlp.fc2; "
            f"expected one. Supported text encoders: {_SUPPORTED}."
        )
    path, blocks = found[0]
    tower: Any = encoder.get_submodule(path.rpartition(".")[0].rpartition(".")[0])
    embeddings = getattr(tower, "embeddings", None)
    if not hasattr(embeddings, "position_embedding") or not hasattr(tower, "final_layer_norm"):
        raise MethodError(
            f"{type(encoder).__name__} has blocks at {path!r} but no embeddings and final_layer_norm above "
            f"them. Supported text encoders: {_SUPPORTED}."
        )
    return TextStack(
        blocks=tuple(blocks),
        embeddings=embeddings,
        final_norm=tower.final_layer_norm,
        path=path,
    )


def text_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The blocks of a CLIP text encoder in order, in the trees of transformers 4 and 5.

    Raises:
        MethodError: as ``text_stack``.
    """
    return list(text_stack(encoder).blocks)


def _is_block(module: nn.Module) -> bool:
    parts = [getattr(module, name, None) for name in _PARTS]
    attention, mlp = parts[2], parts[3]
    return (
        all(isinstance(part, nn.Module) for part in parts)
        and all(hasattr(attention, name) for name in _ATTENTION)
        and isinstance(getattr(mlp, "fc1", None), nn.Linear)
        and isinstance(getattr(mlp, "fc2", None), nn.Linear)
    )


def mlp_keys(block: Any, middle: Float[Tensor, "*any width"]) -> Float[Tensor, "*any d_in"]:
    """The inputs of ``fc2``, which an edit keys on. ``middle`` is the stream after attention."""
    keys: Tensor = block.mlp.activation_fn(block.mlp.fc1(block.layer_norm2(middle)))
    return keys


def after_attention(
    block: Any,
    stream: Float[Tensor, "prompts tokens width"],
    *,
    past: Past | None = None,
    mask: Bool[Tensor, "prompts all_tokens"] | None = None,
    queries: Int[Tensor, "prompts"] | None = None,
) -> Float[Tensor, "prompts tokens width"]:
    """The residual stream between a block's attention and its MLP.

    Args:
        block: A block of ``TextStack.blocks``.
        stream: The stream entering the block, for the tokens behind ``past``.
        past: Keys and values of the tokens before, where these are not computed again.
        mask: True for tokens that may be read, over past and present ones; all of them when left out.
        queries: One token of each prompt; only its stream comes back (tokens = 1).
    """
    attention = block.self_attn
    normed = block.layer_norm1(stream)
    keys, values = (
        split_heads(attention, attention.k_proj(normed)),
        split_heads(attention, attention.v_proj(normed)),
    )
    behind = 0
    if past is not None:
        behind = past.keys.shape[2]
        keys, values = torch.cat([past.keys, keys], 2), torch.cat([past.values, values], 2)
    if queries is not None:
        rows = torch.arange(len(stream), device=stream.device)
        stream, normed = stream[rows, queries][:, None], normed[rows, queries][:, None]
    asked = split_heads(attention, attention.q_proj(normed))
    visible = _visible(keys.shape[2], behind, asked.shape[2], queries, mask, stream.device)
    mixed = scaled_dot_product_attention(asked, keys, values, attn_mask=visible)
    joined = mixed.transpose(1, 2).reshape(stream.shape)
    return stream + torch.as_tensor(attention.out_proj(joined))


def past_of(block: Any, stream: Float[Tensor, "prompts tokens width"]) -> Past:
    """The keys and values of a block for tokens that later passes leave out."""
    attention = block.self_attn
    normed = block.layer_norm1(stream)
    return Past(
        keys=split_heads(attention, attention.k_proj(normed)),
        values=split_heads(attention, attention.v_proj(normed)),
    )


def after_block(
    block: Any,
    stream: Float[Tensor, "prompts tokens width"],
    *,
    past: Past | None = None,
    mask: Bool[Tensor, "prompts all_tokens"] | None = None,
    queries: Int[Tensor, "prompts"] | None = None,
) -> Float[Tensor, "prompts tokens width"]:
    """The residual stream behind a whole block; arguments as in ``after_attention``."""
    middle = after_attention(block, stream, past=past, mask=mask, queries=queries)
    return middle + torch.as_tensor(block.mlp.fc2(mlp_keys(block, middle)))


def through_blocks(
    blocks: Sequence[Any],
    stream: Float[Tensor, "prompts tokens width"],
    mask: Bool[Tensor, "prompts tokens"] | None = None,
) -> Float[Tensor, "prompts tokens width"]:
    """The residual stream behind several blocks."""
    for block in blocks:
        stream = after_block(block, stream, mask=mask)
    return stream


def split_heads(attention: Any, projected: Tensor) -> Tensor:
    """(prompts, tokens, width) as (prompts, heads, tokens, width / heads)."""
    prompts, tokens, width = projected.shape
    heads = int(attention.num_heads)
    return projected.view(prompts, tokens, heads, width // heads).transpose(1, 2)


def _visible(
    known: int,
    behind: int,
    asking: int,
    queries: Tensor | None,
    mask: Tensor | None,
    device: torch.device,
) -> Tensor:
    # causal: a token reads itself and those before it
    positions = torch.arange(known, device=device)
    if queries is None:
        places = behind + torch.arange(asking, device=device)
        visible = (positions[None] <= places[:, None])[None, None]
    else:
        visible = (positions[None] <= behind + queries[:, None])[:, None, None]
    return visible if mask is None else visible & mask[:, None, None]
