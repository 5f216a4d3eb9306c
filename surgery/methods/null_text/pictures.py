"""A folder of pictures as latents, encoded once."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
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
from surgery.errors import ConceptError, MethodError, SurgeryError, raise_all
from surgery.progress import track
from surgery.record import JSON, Finding, file_digest
from surgery.store import Store

ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_FOREIGN: Final = frozenset({".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".raw", ".dng", ".psd"})
"""Of pictures that are not read."""
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
    everything = sorted(path for path in folder.rglob("*") if not _hidden(path, folder))
    paths = [path for path in everything if path.suffix.lower() in ENDINGS]
    foreign = [path for path in everything if path.suffix.lower() in _FOREIGN]
    digests = {path: _digest(path) for path in paths}
    _, height, width = latent_shape(models)
    factor = scale_factor(models.vae)
    frame = (height * factor, width * factor)

    def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
        return _encoded(models, digests, folder, frame)

    tensors: Mapping[str, Tensor]
    told: Mapping[str, Any]
    if store is None:
        tensors, told = compute()
    else:
        held = store.remember(store.key(_meaning(models, digests, folder, frame)), compute)
        tensors, told = held.tensors(), held.data
    findings = (
        *(Finding(**one) for one in told["findings"]),
        *(
            _finding("no-picture", path, folder, f"left out: save it as one of {_endings()}.")
            for path in foreign
        ),
    )
    return PictureSet(names=tuple(told["names"]), findings=findings, **tensors)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _endings() -> str:
    return ", ".join(sorted(ENDINGS))


def _finding(kind: str, path: Path, folder: Path, message: str) -> Finding:
    return Finding(kind=kind, subject=str(path.relative_to(folder)), message=message, severity="warning")


def _digest(path: Path) -> str | None:
    """Of a file's content; None where there is no file, such as of a folder, or none that may be read."""
    try:
        return file_digest(path) if path.is_file() else None
    except (OSError, SurgeryError):
        return None


def _encoded(
    models: Models, digests: Mapping[Path, str | None], folder: Path, frame: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Latents of all that can be read, their names, and what was noticed; each file is read once."""
    names: list[str] = []
    findings: list[Finding] = []
    parts: dict[str, list[Tensor]] = {}
    readable = _readable(digests, folder, frame, findings)
    while some := list(islice(readable, _AT_A_TIME)):
        names += [name for name, _ in some]
        pixels = torch.stack([one for _, one in some])
        for prefix, seen in (("", pixels), ("mirrored_", pixels.flip(3))):
            mean, deviation = encode(models.vae, seen)
            parts.setdefault(f"{prefix}mean", []).append(mean)
            parts.setdefault(f"{prefix}deviation", []).append(deviation)
    if len(names) < 2:
        told = "; ".join(finding.message for finding in findings[:3])
        raise MethodError(
            f"{len(names)} pictures can be read in {str(folder)!r}; expected two or more of "
            f"{_endings()}. {told}".rstrip()
        )
    noticed = {"names": list(names), "findings": [asdict(one) for one in findings]}
    return {name: torch.cat(one) for name, one in parts.items()}, noticed


def _readable(
    digests: Mapping[Path, str | None], folder: Path, frame: tuple[int, int], findings: list[Finding]
) -> Iterator[tuple[str, Tensor]]:
    """Name and pixels of each file that is a picture; what is noticed of files goes into ``findings``."""
    for path in track(list(digests), "encoding pictures", unit="file"):
        if digests[path] is None:
            told = "left out: it is no file, or none that may be read."
            findings.append(_finding("no-picture", path, folder, told))
            continue
        try:
            pixels = load_picture(path, *frame)
        except ConceptError as error:
            findings.append(_finding("no-picture", path, folder, f"left out: {error}"))
            continue
        with Image.open(path) as opened:  # its header alone
            shorter = min(opened.size)
        if shorter < _SMALL * min(frame):
            message = f"its shorter side of {shorter} pixels is blown up to {min(frame)}."
            findings.append(_finding("small-picture", path, folder, message))
        yield str(path.relative_to(folder)), pixels


def _meaning(
    models: Models, digests: Mapping[Path, str | None], folder: Path, frame: tuple[int, int]
) -> dict[str, JSON]:
    device, dtype = device_and_dtype(models.vae)
    return {
        "what": "latents of pictures",
        "vae": weights_digest(models.vae),
        "pictures": {str(path.relative_to(folder)): one for path, one in digests.items()},
        "size": list(frame),
        "passes": [_AT_A_TIME, str(dtype), device.type, torch.get_num_threads()],
    }


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
