"""What a single file holds beside the weights of a pipeline, in words: what a folder has no place for."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from surgery.checkpoint.ldm import AVERAGED_PREFIX, SD2_BLOCKS

AVERAGED: Final = "the averaged copy of the U-Net"
UNUSED: Final = "the last block and the projection of the text encoder, which SD 2.x does not use"
FOREIGN: Final = "tensors that are no part of a Stable Diffusion"

_TEXT: Final = r"(?:cond_stage_model|conditioner\.embedders\.0)\.model"
_KINDS: Final[Mapping[str, re.Pattern[str]]] = {
    AVERAGED: re.compile(re.escape(AVERAGED_PREFIX) + ".*"),
    UNUSED: re.compile(rf"{_TEXT}\.(?:transformer\.resblocks\.{SD2_BLOCKS}\..*|text_projection)"),
    "the numbers of the positions": re.compile(r".*embeddings\.position_ids"),
    "the temperature and the mask of the text encoder's training": re.compile(
        r"(?:cond_stage_model|conditioner)\..*\b(?:logit_scale|attn_mask)"
    ),
    "the noise schedule": re.compile(
        r"(?:(?:log_|sqrt_)?(?:one_minus_|recip_|recipm1_)?(?:betas|alphas_cumprod(?:_prev)?)"
        r"|posterior_(?:variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor"
        r"|denoiser\.sigmas|v_pred|ztsnr)"
    ),
    "the judge of the VAE's training": re.compile(r"first_stage_model\.(?:loss|model_ema)\..*"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Tensors of one kind that have no place in a folder: what they are, and their keys in the file."""

    what: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        """In words, with the number of tensors."""
        return f"{self.what} ({len(self.keys)} tensor{'s' if len(self.keys) != 1 else ''})"


def leftovers(keys: Iterable[str], placed: Collection[str]) -> tuple[Leftover, ...]:
    """The tensors of a single file that are no weights of a pipeline, by what they are.

    Args:
        keys: Of the file.
        placed: Those of them that have a canonical name.
    """
    found: dict[str, list[str]] = {}
    for key in keys:
        if key not in placed:
            kind = next((what for what, pattern in _KINDS.items() if pattern.fullmatch(key)), FOREIGN)
            found.setdefault(kind, []).append(key)
    return tuple(Leftover(what=what, keys=tuple(found[what])) for what in (*_KINDS, FOREIGN) if what in found)
