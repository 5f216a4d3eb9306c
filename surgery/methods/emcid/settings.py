"""The knobs of EMCID and the published sets of them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from surgery.errors import MethodError, raise_all
from surgery.record import JSON

Mode: TypeAlias = Literal["text", "noise", "both"]
Images: TypeAlias = Literal["source", "destination", "none", "given"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetSettings:
    """Stage I: how the offset of each concept is learned. The defaults are ours, not the published ones."""

    mode: Mode = "both"
    """Taught by the text features, by the U-Net's noise predictions, or by both."""
    steps: int = 120
    """Optimiser steps at most."""
    text_steps: int = 0
    """Of the steps of mode "both", so many at the start look at the text alone: the U-Net finishes."""
    learning_rate: float = 0.2
    """Adam's rate, in units of the stream (rate "absolute") or of the source vector's root mean square."""
    rate: Literal["absolute", "relative"] = "relative"
    """What the learning rate is measured in; "relative" suits encoders of any width and scale."""
    decay: Literal["none", "cosine"] = "none"
    """Whether the learning rate falls to nothing over the steps, along half a cosine, or stays."""
    rows_per_step: int | None = None
    """Rows of each concept that one step looks at, in turn; None looks at all in every step."""
    text_weight: float = 0.01
    """Weight of the text loss beside the noise loss; alone it stands as it is in mode "text"."""
    norm_penalty: float = 5e-4
    """Weight of ‖offset‖ / ‖source vector‖²."""
    clamp: float = 1.5
    """Largest length of the offset, in lengths of the source vector."""
    metric: Literal["pooled", "cross_attention"] = "pooled"
    """Text loss at the EOS feature, or as the U-Net's cross-attention reads the tokens, half the subject."""
    images: Images = "destination"
    """Pictures that the noise loss looks at; "none" uses nearly pure noise, "given" the edit's own files."""
    samples: int = 1
    """Rows of the noise loss for each prompt: as many drawn pictures, or turns of an edit's own ones."""
    target: Literal["teacher", "truth"] = "teacher"
    """What the noise prediction is compared with: the teacher's, or the noise that was added."""
    context: Literal["full", "concept"] = "full"
    """Tokens that the U-Net sees: all 77, or the longest prompt of the concept (as released)."""
    latents: Literal["sampler", "recoded"] = "sampler"
    """Drawn pictures straight from the sampler, or decoded and encoded again (as released)."""
    flip: bool = False
    """Whether each picture is mirrored at random, once, before the loop (as released)."""
    bank_size: int = 16
    """Pairs of timestep and noise per picture, with the teacher's answers prepared; 0 draws afresh."""
    timesteps: tuple[int, int] = (0, 999)
    """First and last training timestep of the noise loss."""
    sampling_steps: int = 20
    """Steps of the sampler that draws the pictures."""
    guidance: float = 7.5
    """Guidance scale of the sampler that draws the pictures."""
    tolerance: float = 0.01
    """Relative improvement of the running mean below which a concept stands still."""
    patience: int | None = 30
    """Steps without improvement after which a concept stops; None runs all steps."""
    batch: int = 16
    """Concepts optimised together; part of the plan, since regrouping changes the last bits."""
    keep_unconverged: bool = False
    """Whether a concept whose loss did not fall is edited all the same."""

    def view_count(self, templates: int, images: int) -> int:
        """Rows of a concept's loss: ``samples`` for each template, and one for each further picture."""
        return max(templates * (1 if self.mode == "text" else self.samples), images)

    def rows_at_once(self, views: int) -> int:
        """How many of a concept's rows one step looks at."""
        return views if self.rows_per_step is None else min(views, self.rows_per_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSettings:
    """Stage II: how the offsets become weight changes."""

    layers: tuple[int, ...] = tuple(range(11))
    """Text blocks whose ``fc2`` changes; the offset is learned at the output of the last of them."""
    layers_2: tuple[int, ...] | None = None
    """The same of SDXL's second text encoder; None where there is none."""
    ridge: float = 4000.0
    """λ: the behaviour on so many average tokens is protected (dimensionless)."""
    alpha: float = 0.5
    """Weight of the edits against the protection, 0 to 1 exclusive; one half is neutral."""
    residual: Literal["block", "mlp"] = "block"
    """What is missing, at the last edited block's output, or at each layer's ``fc2`` (as released)."""
    anchor: Literal["mean", "first"] = "mean"
    """The source vector that the offset is added to: of all prompts, or of the first (as released)."""
    keys: Literal["mean", "all"] = "all"
    """One key per concept, the mean over its prompts (as released), or one per prompt."""
    sweeps: int = 1
    """Passes over all layers at most."""
    attained_share: float | None = None
    """Stop sweeping when every concept has reached this share of its offset; None runs all sweeps."""
    preserve_weight: float = 1.0
    """β: weight of each token of the names to preserve, where an edit's key has weight α."""
    null_space_threshold: float | None = None
    """Change only directions with eigenvalues of C below this share of their mean; None leaves all free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSettings:
    """Which tokens of which captions make the key statistics. The defaults are ours, not the published ones.

    The U-Net reads a prompt's padding as it reads its words, and an edit reaches the padding of every prompt:
    where it does not count, concepts that nobody edited are drawn wrong.
    """

    count: int | None = None
    """Captions used, from the list's start; None uses all (100,000 as released)."""
    include_bos: bool = True
    """Whether the begin token of each caption counts."""
    include_padding: bool = True
    """Whether captions are padded to the encoder's length and the padding counts (not so as released)."""
    word_weight: float = 7.0
    """Weight of each word against a token of padding, of which a caption has several times as many."""
    include_sources: bool = False
    """Whether captions that name an edited source count: they would protect what is to go (as released)."""
    shrinkage: float = 0.0
    """Share of the identity (of equal trace) mixed in; helps small corpora."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptRules:
    """What to do with concepts that can be read in two ways."""

    merged_spans: Literal["refuse", "nearest"] = "refuse"
    """A phrase that shares a token with its template: an error, or the token that holds its end."""
    conflicts: Literal["refuse", "last"] = "refuse"
    """One source with several destinations: an error, or the last one wins."""


_RELEASED_OFFSETS = OffsetSettings(
    steps=200,
    rate="absolute",
    images="source",
    context="concept",
    latents="recoded",
    flip=True,
    bank_size=0,
    sampling_steps=50,
    patience=None,
    batch=1,
    keep_unconverged=True,
)
_RELEASED_UPDATE = UpdateSettings(residual="mlp", anchor="first", keys="mean")

RELEASED_CORPUS = CorpusSettings(count=100_000, include_padding=False, word_weight=1.0, include_sources=True)
"""Of the same configurations; one for all of them."""

PUBLISHED: Mapping[str, tuple[OffsetSettings, UpdateSettings]] = MappingProxyType(
    {
        "objects": (_RELEASED_OFFSETS, _RELEASED_UPDATE),
        "aice": (_RELEASED_OFFSETS, replace(_RELEASED_UPDATE, alpha=0.6)),
        "styles": (replace(_RELEASED_OFFSETS, steps=100), replace(_RELEASED_UPDATE, layers=(7, 8, 9, 10))),
        "pictures": (
            replace(_RELEASED_OFFSETS, steps=300, mode="noise", images="given", samples=3, target="truth"),
            _RELEASED_UPDATE,
        ),
    }
)
"""The settings of the released configurations for SD 1.x, to the letter.

"objects" edits and rectifies concepts, "aice" is its benchmark run, "styles" erases artists, "pictures"
learns from photographs. Two things differ: pictures are drawn by the checkpoint's own sampler, and random
numbers come from the edit's seed, where the release drew them from an unseeded global generator.

Source: the released configurations and scripts of arXiv 2403.13807 (``methods/emcid.md`` 1.3, 1.4 and 3).
"""


PUBLISHED_XL = (
    replace(_RELEASED_OFFSETS, steps=100, learning_rate=0.1, clamp=1.2, norm_penalty=8e-3),
    replace(_RELEASED_UPDATE, layers=(8, 9, 10), layers_2=(26, 27, 28, 29, 30)),
)
"""The released configuration for SDXL, which its authors call untuned. Its text weight of 0.005 for each
encoder is ours of 0.01, since the mean is taken over both."""


def check_settings(
    offsets: OffsetSettings, update: UpdateSettings, blocks: int, blocks_2: int | None = None
) -> None:
    """Refuse settings outside of their ranges, all faults at once.

    Args:
        offsets: Stage I.
        update: Stage II.
        blocks: How many blocks the text encoder has.
        blocks_2: The same of SDXL's second one; None where there is none.

    Raises:
        MethodError: when a setting is out of its range.
    """
    raise_all(MethodError, [*_offset_faults(offsets), *_update_faults(update, blocks, blocks_2)])


def _offset_faults(settings: OffsetSettings) -> list[str]:
    first, last = settings.timesteps
    claims = {
        "steps": (settings.steps >= 1, "1 or more"),
        "text_steps": (
            0 <= settings.text_steps < max(settings.steps, 1) or settings.mode != "both",
            "0 or more, and fewer than steps",
        ),
        "rows_per_step": (
            settings.rows_per_step is None or settings.rows_per_step >= 1,
            "1 or more, or None",
        ),
        "learning_rate": (0 < settings.learning_rate <= 1000, "above 0, at most 1000"),
        "text_weight": (settings.text_weight >= 0, "0 or more"),
        "norm_penalty": (settings.norm_penalty >= 0, "0 or more"),
        "clamp": (settings.clamp > 0, "a positive number"),
        "samples": (settings.samples >= 1, "1 or more"),
        "bank_size": (settings.bank_size >= 0, "0 or more"),
        "timesteps": (0 <= first <= last, "first and last, 0 or more and in order"),
        "sampling_steps": (settings.sampling_steps >= 1, "1 or more"),
        "guidance": (settings.guidance >= 0, "0 or more"),
        "tolerance": (0 <= settings.tolerance < 1, "0 to 1"),
        "patience": (settings.patience is None or settings.patience >= 1, "1 or more, or None"),
        "batch": (settings.batch >= 1, "1 or more"),
    }
    return _faults("offsets", settings, claims)


def _update_faults(settings: UpdateSettings, blocks: int, blocks_2: int | None) -> list[str]:
    share, threshold = settings.attained_share, settings.null_space_threshold
    second = settings.layers_2
    claims = {
        "layers": _layers_claim(settings.layers, blocks),
        "layers_2": (second is None, "None, since there is one text encoder")
        if blocks_2 is None
        else _layers_claim(second or (), blocks_2),
        "ridge": (settings.ridge > 0, "a positive number"),
        "alpha": (0 < settings.alpha < 1, "between 0 and 1"),
        "sweeps": (settings.sweeps >= 1, "1 or more"),
        "attained_share": (share is None or 0 < share <= 1, "between 0 and 1, or None"),
        "preserve_weight": (settings.preserve_weight >= 0, "0 or more"),
        "null_space_threshold": (threshold is None or threshold > 0, "a positive number, or None"),
    }
    return _faults("update", settings, claims)


def _layers_claim(layers: tuple[int, ...], blocks: int) -> tuple[bool, str]:
    # behind the last block nothing mixes tokens any more: an offset there would reach the subject alone
    ordered = bool(layers) and list(layers) == sorted(set(layers)) and layers[0] >= 0
    return (
        ordered and layers[-1] < blocks - 1,
        f"ascending blocks from 0 to {blocks - 2} (this encoder has {blocks}, and the last one has to "
        "carry the edit to the other tokens)",
    )


def _faults(
    part: str, settings: OffsetSettings | UpdateSettings, claims: Mapping[str, tuple[bool, str]]
) -> list[str]:
    return [
        f"{part}.{name} is {getattr(settings, name)!r}; expected {expected}."
        for name, (holds, expected) in claims.items()
        if not holds
    ]


def as_json(settings: OffsetSettings | UpdateSettings | CorpusSettings | ConceptRules) -> dict[str, JSON]:
    """The settings as plain data, for keys and records."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
