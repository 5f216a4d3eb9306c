"""Pictures drawn from Noto Color Emoji: single glyphs, people, pairs, backgrounds, styles."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uharfbuzz
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from vocabulary import Concept, Vocabulary

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
SIZE = 64
BACKGROUND_HIDING_STYLES = frozenset({"pencil sketch", "poster", "grayscale", "neon"})
POSTER_INKS = np.array([(22, 32, 74), (205, 38, 44), (120, 170, 190), (250, 235, 205)], np.float32) / 255

PAPER = np.array([1.0, 0.99, 0.95], np.float32)
NIGHT = np.array([0.04, 0.02, 0.10], np.float32)

JITTER = 3  # pixels to each side of the middle of its slot
ALONE = range(50, 59)  # the longer side of a subject, in pixels
BESIDE = range(35, 39)  # and of each of two, the first up left, the second down right
SLOT = 39  # side of the corner that one of two keeps to

Picture = NDArray[np.uint8]
Canvas = NDArray[Any]  # float32, (height, width, channels) in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One thing in a picture; gender and skin (0 light … 4 dark) for professions only."""

    concept: Concept
    gender: str | None = None
    skin: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a picture shows: one subject, or one up left and one down right, a background, perhaps a style."""

    subjects: tuple[Subject, ...]
    background: str
    style: str | None = None


class EmojiFont:
    """The colour bitmaps of the font, found through GSUB, scaled and kept."""

    def __init__(self, path: Path = FONT) -> None:
        if not path.is_file():
            raise SystemExit(f"{path} is missing; install Debian's fonts-noto-color-emoji")
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        font = TTFont(path)
        self.version = font["name"].getDebugName(5)
        self._names = font.getGlyphOrder()
        self._bitmaps = font["CBDT"].strikeData[0]
        self._shaper = uharfbuzz.Font(uharfbuzz.Face(uharfbuzz.Blob.from_file_path(str(path))))
        self._glyphs: dict[str, Image.Image] = {}
        self._scaled: dict[tuple[str, int], Canvas] = {}

    def glyph(self, sequence: str) -> Image.Image:
        if sequence not in self._glyphs:
            buffer = uharfbuzz.Buffer()
            buffer.add_str(sequence)
            buffer.guess_segment_properties()
            uharfbuzz.shape(self._shaper, buffer)
            names = [self._names[info.codepoint] for info in buffer.glyph_infos]
            if len(names) != 1 or names[0] not in self._bitmaps:
                raise SystemExit(f"the font draws {sequence!r} as {names}, not as one picture")
            data = self._bitmaps[names[0]].imageData
            self._glyphs[sequence] = Image.open(io.BytesIO(data)).convert("RGBA")
        return self._glyphs[sequence]

    def scaled(self, sequence: str, height: int) -> Canvas:
        """RGBA in [0, 1], colour premultiplied, (height, width, 4)."""
        if (sequence, height) not in self._scaled:
            glyph = self.glyph(sequence)
            box = glyph.getbbox() or (0, 0, *glyph.size)
            glyph = glyph.crop(box)
            scale = height / max(glyph.size)
            size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
            values = (
                np.asarray(glyph.convert("RGBa").resize(size, Image.Resampling.LANCZOS), np.float32) / 255
            )
            self._scaled[sequence, height] = values
        return self._scaled[sequence, height]


def place(canvas: Canvas, sprite: Canvas, top: int, left: int) -> None:
    height, width = sprite.shape[:2]
    region = canvas[top : top + height, left : left + width]
    region *= 1 - sprite[..., 3:]
    region += sprite[..., :3]


def somewhere(spare: int, rng: np.random.Generator) -> int:
    """A place near the middle of the room that is left, in whole pixels."""
    reach = min(JITTER, spare // 2)
    return spare // 2 + int(rng.integers(-reach, reach + 1))


def luminance(canvas: Canvas) -> Canvas:
    light: Canvas = canvas @ np.array([0.299, 0.587, 0.114], np.float32)
    return light


def edges(light: Canvas) -> Canvas:
    edge: Canvas = np.hypot(ndimage.sobel(light, 0), ndimage.sobel(light, 1)) / 2
    return edge


def grayscale(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    gray: Canvas = np.repeat(luminance(canvas)[..., None], 3, axis=2)
    return gray


def pencil_sketch(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    light = luminance(canvas)
    paper = 0.96 - 0.18 * (1 - light) + rng.normal(0, 0.015, light.shape)
    tone: Canvas = np.clip(paper - 0.95 * np.clip(edges(light), 0, 0.9), 0.05, 1)
    return tone[..., None] * PAPER


def neon(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    edge = edges(luminance(canvas))
    glow: Canvas = np.clip(edge * 1.6 + ndimage.gaussian_filter(edge, 1.5), 0, 1)[..., None]
    vivid = canvas - canvas.min(axis=2, keepdims=True)
    vivid = vivid / np.maximum(vivid.max(axis=2, keepdims=True), 0.15)
    lit: Canvas = glow * (0.25 + 0.75 * vivid) + (1 - glow) * NIGHT
    return lit


def poster(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    inked: Canvas = POSTER_INKS[np.digitize(luminance(canvas), (0.30, 0.55, 0.78))]
    return inked


def mosaic(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    tiles = canvas.reshape(SIZE // 4, 4, SIZE // 4, 4, 3).mean(axis=(1, 3))
    laid: Canvas = tiles.repeat(4, 0).repeat(4, 1)
    laid[3::4] *= 0.55
    laid[:, 3::4] *= 0.55
    return laid


def watercolour(canvas: Canvas, rng: np.random.Generator) -> Canvas:
    light = luminance(canvas)
    soft = ndimage.gaussian_filter(canvas, (1.0, 1.0, 0.0))
    grain = ndimage.gaussian_filter(rng.normal(0, 1, light.shape), 2.0)
    grain = grain / np.abs(grain).max()
    edge = np.clip(edges(light), 0, 0.6)
    washed: Canvas = 0.42 + 0.58 * soft + 0.10 * grain[..., None] - 0.35 * edge[..., None]
    return washed


STYLES: Mapping[str, Callable[[Canvas, np.random.Generator], Canvas]] = {
    "pencil sketch": pencil_sketch,
    "mosaic": mosaic,
    "poster": poster,
    "grayscale": grayscale,
    "watercolour": watercolour,
    "neon": neon,
}


def draw(font: EmojiFont, vocabulary: Vocabulary, scene: Scene, rng: np.random.Generator) -> Picture:
    """(64, 64, 3) bytes; place, size and colour shades are drawn from `rng`.

    Two subjects stand in opposite corners, where each has room for half as much again as in a half. Their
    background has one shade, so that halves of different pictures fit together.
    """
    colour = np.array(vocabulary.backgrounds[scene.background], np.float32) / 255
    pair = len(scene.subjects) == 2
    if not pair:
        colour = np.clip(colour + rng.normal(0, 0.015, 3), 0, 1)
    canvas = np.broadcast_to(colour, (SIZE, SIZE, 3)).astype(np.float32)
    sizes, room = (BESIDE, SLOT) if pair else (ALONE, SIZE)
    for number, subject in enumerate(scene.subjects):
        sprite = font.scaled(
            subject.concept.sequence(subject.gender, subject.skin),
            int(rng.integers(sizes.start, sizes.stop)),
        )
        corner = number * (SIZE - room)
        height, width = sprite.shape[:2]
        place(canvas, sprite, corner + somewhere(room - height, rng), corner + somewhere(room - width, rng))
    if scene.style is not None:
        canvas = STYLES[scene.style](canvas, rng)
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
