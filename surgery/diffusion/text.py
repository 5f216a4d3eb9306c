"""Prompts to the features that a U-Net reads: each prompt encoded once."""

import logging
import math
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.diffusion.models import Tokenizer, config_of
from surgery.diffusion.offload import device_and_dtype, resident
from surgery.errors import SurgeryError, brief

_log = logging.getLogger(__name__)

# 32 × 77 tokens fill two cores and fit any GPU; larger batches are no faster.
_BATCH = 32
# a tokenizer keeps its padding and truncation in itself, and refuses a second thread meanwhile
_tokenizing = Lock()


def encode_prompts(
    tokenizer: Tokenizer,
    text_encoder: nn.Module,
    prompts: Sequence[str],
    clip_skip: int = 0,
    *,
    in_pieces: bool = False,
    gradients: bool = False,
) -> Float[Tensor, "prompts tokens width"]:
    """Features of the prompts, in their order; equal prompts are encoded once.

    Args:
        tokenizer: CLIP tokenizer; each prompt is padded to its ``model_max_length`` (77).
        text_encoder: CLIP text model; the features have its device and type.
        prompts: Any number of prompts, repeats allowed.
        clip_skip: Blocks left out at the end. The final layer norm is applied either way.
        in_pieces: Whether prompts are read whole, in pieces of 75 tokens whose features stand side by side,
            as A1111 and ComfyUI do (which look for a comma or the end of a word to cut at); all get as many
            pieces as the longest.
        gradients: Whether they flow back into the text encoder.

    Else a prompt that is too long is cut as the stock pipeline cuts it, and a warning names it.

    Raises:
        SurgeryError: when there are no prompts, or ``clip_skip`` leaves no block.

    Source: ``StableDiffusionPipeline.encode_prompt`` of diffusers 0.42, where ``clip_skip`` None is our 0.
    """
    if not prompts:
        raise SurgeryError(
            "no prompts to encode; expected at least one. Pass the prompts as a list of texts."
        )
    blocks = config_of(text_encoder).num_hidden_layers
    if not 0 <= clip_skip < blocks:
        raise SurgeryError(
            f"clip_skip is {clip_skip}; this text encoder has {blocks} blocks. Use 0 to {blocks - 1}."
        )
    unique = list(dict.fromkeys(prompts))
    if not in_pieces:
        warn_of_long_prompts(tokenizer, unique)
    pieces = pieces_needed(tokenizer, unique) if in_pieces else 1
    with resident(text_encoder), torch.set_grad_enabled(gradients):
        parts = [
            _encode(tokenizer, text_encoder, unique[start : start + _BATCH], clip_skip, pieces)
            for start in range(0, len(unique), _BATCH)
        ]
    place = {prompt: row for row, prompt in enumerate(unique)}
    return torch.cat(parts)[[place[prompt] for prompt in prompts]]


def _encode(
    tokenizer: Tokenizer, text_encoder: nn.Module, prompts: Sequence[str], clip_skip: int, pieces: int
) -> Tensor:
    device, dtype = device_and_dtype(text_encoder)
    tokens = tokens_of(tokenizer, prompts) if pieces == 1 else pieces_of(tokenizer, prompts, pieces)
    # CLIP reads its padding; only some derived encoders ask for a mask in their config.
    masked = getattr(config_of(text_encoder), "use_attention_mask", False)
    mask = tokens.attention_mask.to(device) if masked else None
    ids = tokens.input_ids.to(device)
    if clip_skip == 0:
        features: Tensor = text_encoder(ids, attention_mask=mask)[0]
    else:
        hidden = text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        features = _final_norm(text_encoder)(hidden[-(clip_skip + 1)])
    return side_by_side(features.to(dtype), pieces)


def pieces_needed(tokenizer: Tokenizer, prompts: Sequence[str]) -> int:
    """How many pieces the longest of some prompts takes."""
    with _tokenizing:
        tokens = tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids
    return max(1, *(math.ceil(len(ids) / (tokenizer.model_max_length - 2)) for ids in tokens))


def pieces_of(tokenizer: Tokenizer, prompts: Sequence[str], pieces: int) -> Any:
    """The token ids of so many pieces of each prompt, each with its own start, end and padding.

    Prompt by prompt; what is shorter gets empty pieces.
    """
    with _tokenizing:
        tokens = tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids
        room = tokenizer.model_max_length - 2
        parts = [ids[place * room : (place + 1) * room] for ids in tokens for place in range(pieces)]
        framed = [[tokenizer.bos_token_id, *part, tokenizer.eos_token_id] for part in parts]
        return tokenizer.pad(
            {"input_ids": framed}, padding="max_length", max_length=room + 2, return_tensors="pt"
        )


def side_by_side(features: Tensor, pieces: int) -> Tensor:
    """Features of pieces as those of the prompts that they make up."""
    return features.reshape(len(features) // pieces, pieces * features.shape[1], features.shape[2])


def tokens_of(tokenizer: Tokenizer, prompts: Sequence[str]) -> Any:
    """The token ids of some prompts, cut and padded to the encoder's positions, as the pipelines do."""
    with _tokenizing:
        return tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )


def _final_norm(text_encoder: nn.Module) -> Any:
    # transformers 5 took the level `text_model` out of CLIPTextModel
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm


def warn_of_long_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
    """Name the prompts that are too long in the log, and what of them is not read."""
    room = tokenizer.model_max_length
    with _tokenizing:
        tokens = tokenizer(list(prompts)).input_ids
    for prompt, ids in zip(prompts, tokens, strict=True):
        if len(ids) > room:
            lost = tokenizer.decode(ids[room - 1 : -1])
            _log.warning(
                "prompt %s has %d tokens, of which %d fit; not read: %s",
                brief(prompt),
                len(ids),
                room,
                brief(lost),
            )
