"""A folder of pictures as latents, encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from surgery.anatomy import weights_digest
from surgery.diffusion import Models, device_and_dtype, encode, load_picture
from surgery.diffusion.pixels import scale_factor
from surgery.diffusion.sampling import latent_shape
from surgery.errors import ConceptError, MethodError, raise_all
from surgery.progress import track
from surgery.record import JSON, Finding, file_digest
from surgery.store import Store

ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_AT_A_TIME: Final = 8
_SMALL: Final = 0.5
"""A picture whose shorter side is below this share of the frame's is blown up: that is noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSet:
    """Latents of pictures and of their mirror images, and what was noticed about the files.

    Attributes:
        names: File names, sorted.
        mean, deviation: Of the posterior of each picture, as the U-Net sees latents.
        mirrored_mean, mirrored_deviation: The same seen from the left.
        findings: Files that were left out or blown up.
    """

    names: tuple[str, ...]
    mean: Float[Tensor, "pictures channels height width"]
    deviation: Float[Tensor, "pictures channels height width"]
    mirrored_mean: Float[Tensor, "pictures channels height width"]
    mirrored_deviation: Float[Tensor, "pictures channels height width"]
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def drawn(self, rows: Tensor, mirrored: Tensor, noise: Tensor) -> Tensor:
        """Latents of some pictures, from their posteriors."""
        turned = mirrored.view(-1, 1, 1, 1)
        mean = torch.where(turned, self.mirrored_mean[rows], self.mean[rows])
        deviation = torch.where(turned, self.mirrored_deviation[rows], self.deviation[rows])
        return mean + deviation * noise


def read_pictures(models: Models, folder: Path, *, store: Store | None = None) -> PictureSet:
    """All pictures below a folder, cut to the checkpoint's size and encoded; files that are none are named.

    Raises:
        MethodError: when there is no folder, or fewer than two pictures in it.
    """
    if not folder.is_dir():
        raise MethodError(f"{str(folder)!r} is no folder; expected one with pictures.")
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and not _hidden(path, folder)
    )
    _, height, width = latent_shape(models)
    factor = scale_factor(models.vae)
    whole, findings = _readable(paths, folder, height * factor, width * factor)
    if len(whole) < 2:
        told = "; ".join(finding.message for finding in findings[:3])
        raise MethodError(
            f"{len(whole)} pictures can be read in {str(folder)!r}; expected two or more of "
            f"{', '.join(sorted(ENDINGS))}. {told}".rstrip()
        )
    tensors = _encoded(models, whole, height * factor, width * factor, store)
    names = tuple(str(path.relative_to(folder)) for path in whole)
    return PictureSet(names=names, findings=tuple(findings), **tensors)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _readable(
    paths: Sequence[Path], folder: Path, height: int, width: int
) -> tuple[list[Path], list[Finding]]:
    whole, findings = [], []
    for path in track(paths, "looking at pictures", unit="file"):
        name = str(path.relative_to(folder))
        try:
            load_picture(path, 8, 8)
        except ConceptError as error:
            findings.append(
                Finding(kind="no-picture", subject=name, message=f"left out: {error}", severity="warning")
            )
            continue
        whole.append(path)
        with Image.open(path) as opened:
            shorter = min(opened.size)
        if shorter < _SMALL * min(height, width):
            message = f"its shorter side of {shorter} pixels is blown up to {min(height, width)}."
            findings.append(Finding(kind="small-picture", subject=name, message=message, severity="warning"))
    return whole, findings


def _encoded(
    models: Any, paths: Sequence[Path], height: int, width: int, store: Store | None
) -> dict[str, Tensor]:
    def compute() -> tuple[dict[str, Tensor], dict[str, JSON]]:
        parts: dict[str, list[Tensor]] = {}
        starts = range(0, len(paths), _AT_A_TIME)
        for start in track(starts, "encoding pictures", unit="batch"):
            some = paths[start : start + _AT_A_TIME]
            pixels = torch.stack([load_picture(path, height, width) for path in some])
            for prefix, seen in (("", pixels), ("mirrored_", pixels.flip(3))):
                mean, deviation = encode(models.vae, seen)
                parts.setdefault(f"{prefix}mean", []).append(mean)
                parts.setdefault(f"{prefix}deviation", []).append(deviation)
        return {name: torch.cat(one) for name, one in parts.items()}, {}

    if store is None:
        return compute()[0]
    device, dtype = device_and_dtype(models.vae)
    meaning: dict[str, JSON] = {
        "what": "latents of pictures",
        "vae": weights_digest(models.vae),
        "pictures": [file_digest(path) for path in paths],
        "size": [height, width],
        "passes": [_AT_A_TIME, str(dtype), device.type, torch.get_num_threads()],
    }
    return store.remember(store.key(meaning), compute).tensors()


def split_off(pictures: PictureSet, share: float) -> tuple[Tensor, Tensor]:
    """Rows to train on and to hold out; the latter are spread evenly over the names."""
    count = len(pictures)
    held = min(count - 1, max(1, round(share * count))) if share > 0 else 0
    places = torch.arange(count)
    if not held:
        return places, places[:0]
    out = (torch.arange(held) * 2 + 1) * count // (2 * held)
    kept = torch.ones(count, dtype=torch.bool)
    kept[out] = False
    faults = [] if bool(kept.any()) else [f"all {count} pictures are held out; expected some to train on."]
    raise_all(MethodError, faults)
    return places[kept], out
