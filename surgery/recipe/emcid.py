"""The recipe entry of EMCID: which concepts become what, and how hard to try.

Settings left out take the preset's value, or without a preset the method's own default
(``surgery.methods.emcid.OffsetSettings`` and ``UpdateSettings``, which have the same field names).
"""

from typing import Literal, TypeAlias

from pydantic import Field

from surgery.recipe.debias import Debias, Joint, Mixed, Shares
from surgery.recipe.model import Knobs, Part
from surgery.recipe.parameters import (
    Count,
    Layers,
    NotNegative,
    Phrase,
    Positive,
    Seed,
    Share,
    Template,
    Timestep,
)

Preset: TypeAlias = Literal[
    "pocket",
    "published-aice",
    "published-objects",
    "published-pictures",
    "published-styles",
    "published-sdxl",
]
Kind: TypeAlias = Literal["update", "forget", "style", "rectify", "debias"]


class Concept(Part):
    """One concept and what the edited model shall draw instead."""

    source: Phrase
    """The concept's name in a prompt, for example ``cat``."""
    destination: str | None = None
    """What is drawn instead, unless ``images`` show it; ``forget`` and ``style`` have a neutral one."""
    kind: Kind | None = None
    """Overrides the entry's ``kind`` for this concept."""
    templates: tuple[Template, ...] | None = Field(default=None, min_length=1)
    """Prompts with one ``{}`` where the concept's name goes; the method has its own for each kind."""
    weight: Positive = 1.0
    """How much this concept counts against the others (1 = like any other)."""
    images: tuple[Phrase, ...] = ()
    """Own pictures of the destination, as paths relative to the recipe; for the modes noise and both."""
    seed: Seed | None = None
    """Seed of this concept's noise; without it, it follows from the recipe's seed and the concept's name."""
    shares: dict[Phrase, Shares] | None = Field(default=None, min_length=1)
    """To debias: attribute → value → share, or a list of values for equal shares."""
    joint: tuple[Joint, ...] | None = Field(default=None, min_length=2)
    """Shares of combinations of values, where the product of ``shares`` is not meant."""
    mixture: tuple[Mixed, ...] | None = Field(default=None, min_length=2)
    """The mixture, where it is known from an earlier run; nothing is tuned then."""


class Offsets(Knobs):
    """Stage I: how the offset of each concept is learned."""

    nullable = frozenset({"patience", "rows_per_step"})

    mode: Literal["text", "noise", "both"] | None = None
    """What the offset is taught by: text features, noise predictions, or both."""
    steps: Count | None = None
    """Optimiser steps at most."""
    text_steps: int | None = Field(default=None, ge=0)
    """Of the steps of mode ``both``, so many at the start look at the text alone."""
    learning_rate: Positive | None = None
    """Adam's learning rate."""
    rate: Literal["absolute", "relative"] | None = None
    """What the learning rate is measured in: the stream's units, or the source vector's root mean square."""
    decay: Literal["none", "cosine"] | None = None
    """Whether the learning rate falls to nothing over the steps, or stays."""
    rows_per_step: Count | None = None
    """Rows of each concept that one step looks at, in turn; ``null`` looks at all in every step."""
    text_weight: NotNegative | None = None
    """Weight of the text loss beside the noise loss."""
    norm_penalty: NotNegative | None = None
    """Weight of the penalty on the offset's length."""
    clamp: Positive | None = None
    """Largest length of the offset, in lengths of the source vector."""
    metric: Literal["pooled", "cross_attention"] | None = None
    """Text loss at the end token's feature, or as cross-attention reads the tokens, half the subject."""
    images: Literal["source", "destination", "none", "given"] | None = None
    """Which pictures the noise loss looks at."""
    samples: Count | None = None
    """Rows of the noise loss for each prompt: as many drawn pictures, or turns of own ones."""
    target: Literal["teacher", "truth"] | None = None
    """What the noise prediction is compared with: the teacher's, or the noise that was added."""
    context: Literal["full", "concept"] | None = None
    """Tokens that the U-Net sees: all 77, or the longest prompt of the concept."""
    latents: Literal["sampler", "recoded"] | None = None
    """Drawn pictures straight from the sampler, or decoded and encoded again."""
    flip: bool | None = None
    """Whether each picture is mirrored at random, once."""
    bank_size: int | None = Field(default=None, ge=0)
    """Pairs of timestep and noise prepared per picture; 0 draws afresh in every step."""
    timesteps: tuple[Timestep, Timestep] | None = None
    """First and last training timestep that the noise loss uses (0 to 999)."""
    sampling_steps: Count | None = None
    """Steps of the sampler that draws the pictures."""
    guidance: NotNegative | None = None
    """Guidance scale of the sampler that draws the pictures."""
    tolerance: float | None = Field(default=None, ge=0, lt=1)
    """Relative improvement below which a concept counts as standing still."""
    patience: Count | None = None
    """Steps without improvement after which a concept stops; ``null`` runs all steps."""
    batch: Count | None = None
    """Concepts optimised together; part of the plan, since regrouping changes the last bits."""
    keep_unconverged: bool | None = None
    """Whether a concept whose loss did not fall is edited all the same."""


class Update(Knobs):
    """Stage II: how the offsets become weight changes."""

    nullable = frozenset({"attained_share", "layers_2", "null_space_threshold"})

    layers: Layers | None = None
    """Text-encoder blocks whose second MLP matrix changes: a list, or text such as ``0-10``."""
    layers_2: Layers | None = None
    """The same of SDXL's second text encoder, 26-30 when left out; ``null`` where there is one encoder."""
    ridge: Positive | None = None
    """How strongly everything else is protected (dimensionless; 4000 = like 4000 average tokens)."""
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """Weight of the edits against the protection, between 0 and 1; one half is neutral."""
    residual: Literal["block", "mlp"] | None = None
    """What is still missing: measured at the block's output, or at the MLP's as in the published code."""
    anchor: Literal["mean", "first"] | None = None
    """The source vector that the offset is added to: of all prompts, or of the first."""
    keys: Literal["mean", "all"] | None = None
    """One key per concept (the mean over templates), or one per template."""
    sweeps: Count | None = None
    """Passes over all layers at most."""
    attained_share: float | None = Field(default=None, gt=0, le=1)
    """Stop sweeping when every concept has reached this share of its offset; ``null`` runs all sweeps."""
    preserve_weight: NotNegative | None = None
    """Weight of the names in ``preserve``."""
    null_space_threshold: Positive | None = None
    """Only directions whose eigenvalues lie below this share of their mean change; ``null``: all do."""


class Corpus(Knobs):
    """Captions whose keys say what must not change."""

    nullable = frozenset({"count"})

    captions: Phrase = "pocket"
    """``pocket`` for the captions beside the checkpoint, or a text file with one caption per line."""
    statistics: Phrase | None = None
    """In place of captions: a file that ``surgery statistics`` made of this very base."""
    count: Count | None = None
    """Captions used, from the file's start; 5,000 when left out (published: 100,000), ``null`` for all."""
    shrinkage: Share | None = None
    """Share of the identity mixed into the statistics; helps small corpora."""
    include_bos: bool | None = None
    """Whether the begin token counts."""
    include_padding: bool | None = None
    """Whether the padding up to 77 tokens counts, as it does by default (published: not)."""
    word_weight: Positive | None = None
    """Weight of each word against a token of padding; 7 when left out (published: 1)."""
    include_sources: bool | None = None
    """Whether captions that name a source protect it, too; not by default (published: yes)."""


class Rules(Part):
    """What to do with concepts that can be read in two ways."""

    merged_spans: Literal["refuse", "nearest"] = "refuse"
    """A name that shares a token with its template: an error, or the token that holds its end."""
    conflicts: Literal["refuse", "last"] = "refuse"
    """One source with several destinations: an error, or the last one wins."""


class Emcid(Part):
    """Edit many concepts at once in the text encoder (arXiv 2403.13807)."""

    preset: Preset | None = None
    """Where settings start from; keys given here win."""
    kind: Kind = "update"
    """What happens to concepts that do not say it themselves."""
    concepts: tuple[Concept, ...] = Field(min_length=1)
    preserve: tuple[Phrase, ...] = ()
    """Names that must keep their meaning."""
    offsets: Offsets = Offsets()
    update: Update = Update()
    corpus: Corpus = Corpus()
    rules: Rules = Rules()
    debias: Debias = Debias()
