"""Which text blocks of a checkpoint are edited where nobody says it."""

from itertools import count
from typing import Final

from surgery.checkpoint import Checkpoint
from surgery.errors import MethodError, raise_all
from surgery.names import TEXT_ENCODERS, canonical

_XL: Final = "stable-diffusion-xl-v1-base"
# as released: 8-10 of 12 and 26-30 of 32
_LAST_OF_XL: Final = {"text_encoder": 3, "text_encoder_2": 5}


def site(component: str, layer: int) -> str:
    """The canonical name of the ``fc2`` weight of one text block."""
    return canonical(component, f"text_model.encoder.layers.{layer}.mlp.fc2.weight")


def blocks(base: Checkpoint, component: str) -> int:
    """How many blocks a text encoder of the base has; 0 without that encoder."""
    return next(layer for layer in count() if site(component, layer) not in base.tensors)


def text_components(base: Checkpoint) -> tuple[str, ...]:
    """The base's text encoders: one in SD 1.x and 2.x, two in SDXL.

    Raises:
        MethodError: when its first text encoder is not of CLIP's kind, or missing.
    """
    if blocks(base, TEXT_ENCODERS[0]) == 0:
        raise MethodError(
            f"{base.path} has no text encoder of CLIP's kind; EMCID edits its feed-forward layers."
        )
    return tuple(component for component in TEXT_ENCODERS if blocks(base, component))


def default_layers(base: Checkpoint, component: str) -> tuple[int, ...]:
    """The blocks that an edit of this checkpoint changes: all that have another one behind them.

    SD 1.x 0-10, SD 2.x 0-21. Of SDXL only the last of them, 8-10 and 26-30: the U-Net reads the stream before
    the last block there, and the released configuration leaves what lies further back alone.

    Source: 8.3 of the study.
    """
    total = blocks(base, component)
    first = max(0, total - 1 - _LAST_OF_XL[component]) if base.architecture == _XL else 0
    return tuple(range(first, total - 1))


def check_sites(base: Checkpoint, layers: dict[str, tuple[int, ...]]) -> None:
    """Refuse blocks that a text encoder of the base does not have.

    Raises:
        MethodError: naming each encoder and its blocks.
    """
    faults = []
    for component, chosen in layers.items():
        last = blocks(base, component) - 1
        if last < 0:
            faults.append(f"{base.path} has no {component}. Leave its layers out.")
        elif not chosen or list(chosen) != sorted(set(chosen)) or chosen[-1] > last:
            faults.append(f"{component} has blocks 0 to {last}; found {list(chosen)}. Name some of those.")
    raise_all(MethodError, faults)
