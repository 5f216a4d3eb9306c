"""A judge's own accuracy, measured on a folder of labelled pictures."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from surgery.errors import JudgeError, raise_all
from surgery.judge.labels import Trait
from surgery.judge.protocol import Judge
from surgery.progress import track

PICTURES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
_BATCH: Final = 64


def measure_accuracy(judge: Judge, folder: Path) -> dict[str, float]:
    """How often a judge is right on labelled pictures, 0 to 1, as the accuracy that stands in a result.

    ``labelled_top``: the likeliest concept is the picture's name. ``labelled_shown``: the name counts as
    shown, which is what evaluation asks; for judges whose concepts exclude each other both are the same.

    Args:
        judge: Looks at the pictures.
        folder: One sub-folder for each name (ImageFolder's layout), pictures in it. Each picture counts once.

    Raises:
        JudgeError: when there are no pictures, a name is none of the judge's, or a picture cannot be read.
            All faults at once.
    """
    files = _files(folder)
    names = sorted({file.parent.name for file in files})
    faults = [fault for name in names if (fault := judge.labels.fault(Trait(name))) is not None]
    raise_all(JudgeError, [f"{folder}: {fault}" for fault in faults])
    top = shown = 0
    for name, pictures in track(_batches(files), "measuring the judge"):
        verdicts, trait = judge.score(pictures), Trait(name)
        shown += int(verdicts.shows(trait).sum())
        top += int((verdicts.concept.argmax(axis=1) == judge.labels.column(trait)).sum())
    return {"labelled_top": top / len(files), "labelled_shown": shown / len(files)}


def pictures_in(folder: Path) -> UInt8[np.ndarray[Any, Any], "pictures side side 3"]:
    """All pictures in a folder and its sub-folders, as a judge takes them.

    Raises:
        JudgeError: when there are fewer than two, one cannot be read, or they are not squares of one size.
    """
    files = [file for file in sorted(folder.rglob("*")) if _is_picture(file)]
    if len(files) < 2:
        raise JudgeError(
            f"{folder} holds {len(files)} pictures ({', '.join(sorted(PICTURES))}); expected two or more, "
            "better some thousand. Name a folder of them."
        )
    rows = _read(files)
    sizes = sorted({row.shape[:2] for row in rows})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        raise JudgeError(
            f"the pictures in {folder} have the sizes {sizes[:5]}; expected squares of one size. Crop them."
        )
    return np.stack(rows)


def _files(folder: Path) -> list[Path]:
    places = sorted(place for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
    files = [file for place in places for file in sorted(place.iterdir()) if _is_picture(file)]
    if not files:
        kinds = ", ".join(sorted(PICTURES))
        raise JudgeError(
            f"{folder} holds no labelled pictures; expected a sub-folder for each name with pictures "
            f"({kinds}) in it. Name such a folder."
        )
    return files


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURES and not file.name.startswith(".") and file.is_file()


def _batches(files: list[Path]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Pictures of one name and size at a time."""
    for name, group in groupby(files, key=lambda file: file.parent.name):
        of_name = list(group)
        for start in range(0, len(of_name), _BATCH):
            rows = _read(of_name[start : start + _BATCH])
            rows.sort(key=lambda row: row.shape)
            for _, alike in groupby(rows, key=lambda row: row.shape):
                yield name, np.stack(list(alike))


def _read(files: list[Path]) -> list[np.ndarray[Any, Any]]:
    rows, faults = [], []
    for file in files:
        try:
            with Image.open(file) as picture:
                rows.append(np.asarray(picture.convert("RGB")))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            faults.append(f"{file} cannot be read ({error}); expected a picture. Mend or remove it.")
    raise_all(JudgeError, faults)
    return rows
