"""Picture files as a VAE reads them."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from surgery.errors import ConceptError


def load_picture(path: Path, height: int, width: int) -> Float[Tensor, "3 height width"]:
    """A picture file in [-1, 1]: turned upright, its shorter side resized, its centre cut out.

    What is transparent becomes white; 16 bits become 8; of a film, the first picture is taken.

    Raises:
        ConceptError: when the file is no picture, or one of more than 180 million pixels.
    """
    try:
        with Image.open(path) as opened:
            picture = _opaque(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConceptError(
            f"{str(path)!r} cannot be read as a picture ({error}); expected PNG, JPEG or another format that "
            "Pillow reads."
        ) from error
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1


def _opaque(picture: Image.Image) -> Image.Image:
    """RGB, on white."""
    if picture.mode == "F":
        raise ValueError("its pixels are floats, of which nobody knows what is white")
    if picture.mode.startswith("I"):  # a plain conversion would cut off at 255
        gray = np.asarray(picture).astype(np.float64)
        if picture.mode != "I" or gray.max() > 255:  # 16 bits; "I" may hold 8
            gray /= 257
        return Image.fromarray(gray.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB")
