"""Picture files as a VAE reads them."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from surgery.errors import ConceptError


def load_picture(path: Path, height: int, width: int) -> Float[Tensor, "3 height width"]:
    """A picture file in [-1, 1]: turned upright, its shorter side resized, its centre cut out.

    Raises:
        ConceptError: when the file is no picture.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ConceptError(
            f"{str(path)!r} cannot be read as a picture ({error}); expected PNG, JPEG or another format that "
            "Pillow reads."
        ) from error
    fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1
