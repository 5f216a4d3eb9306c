"""The recipe entry of component attribution: whose weights go, and how they are found.

Settings left out take the preset's value, or without a preset the method's own default
(``surgery.methods.cad.AttributionSettings`` and ``SelectionSettings``, which have the same field names).
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field

from surgery.recipe.model import Knobs, Part
from surgery.recipe.parameters import Count, Left, NotNegative, Phrase, Seed, Share, Template

CadPreset: TypeAlias = Literal["quick", "published-erase", "published-amplify"]
CadKind: TypeAlias = Literal["erase", "amplify"]


class Attributed(Part):
    """One concept whose weights are looked for."""

    source: Phrase
    """The concept's name in a prompt, for example ``golf ball``."""
    templates: tuple[Template, ...] | None = Field(default=None, min_length=1)
    """Prompts with one ``{}`` where the concept's name goes; the method has its own."""
    images: tuple[Phrase, ...] = ()
    """Own pictures of the concept, as paths relative to the recipe; for the objective ``denoise``."""
    seed: Seed | None = None
    """Seed of this concept's noise; without it, it follows from the recipe's seed and the concept's name."""


class Attribution(Knobs):
    """How the weights of a concept are scored."""

    objective: Literal["base_gap", "denoise"] | None = None
    """What is measured: the distance from the base prompt's prediction, or how well noise is predicted."""
    trajectories: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Paths of the sampler that are looked at; templates take turns."""
    sampling_steps: Count | None = None
    """Steps of each path, and of drawn pictures."""
    graded_steps: Count | None = None
    """Steps of each path that are looked at; of a picture, timesteps."""
    staggered: bool | None = None
    """Whether paths pass timesteps between each other's, and pictures have such; else the sampler's own."""
    antithetic: bool | None = None
    """Whether paths start two by two from one noise and its negative, for steadier means."""
    guidance: NotNegative | None = None
    """Guidance scale of the paths and of drawn pictures."""
    base_prompt: str | None = None
    """What the concept's prompt is compared with; nothing when left out."""
    pairing: Literal["matched", "shifted"] | None = None
    """Points with their own timestep, or one step later as published."""
    restart: bool | None = None
    """Whether every step that is looked at has a path of its own, as published."""
    pictures: Count | None = None
    """Pictures of the objective ``denoise``, where the concept has none of its own."""
    weighting: Literal["none", "even"] | None = None
    """Whether gradients are added as they are, or each as a share of its pair's measure."""
    standard_errors: bool | None = None
    """Whether the spread of each score between paths is kept, for the ranking ``t``."""


class Selection(Knobs):
    """Which weights are masked."""

    rule: Literal["row", "tensor", "global"] | None = None
    """What has a quota: each row of a weight, each weight, or all together."""
    ratio: Share | None = None
    """Share of the weights that may be masked."""
    count: Count | None = None
    """So many weights, in the ratio's place."""
    left: Left | None = None
    """In the ratio's place the smallest mask that leaves so much of the concept's direction; 0 is nothing."""
    rounding: Literal["carry", "floor", "ceil"] | None = None
    """How a row's quota becomes a whole number: carried on, or down (published), or up."""
    ranking: Literal["score", "t", "retain", "damage"] | None = None
    """What weights are ordered by: the score alone; over its error; less what ``retain`` needs; or for each
    unit of damage to what ``retain`` names."""
    retain_weight: NotNegative | None = None
    """How much the concepts in ``retain`` count in the rankings ``retain`` and ``damage``."""
    protect: Share | None = None
    """Share of each weight that matters most to the concepts in ``retain``, and is never masked."""
    zeros: bool | None = None
    """Whether scores of exactly nothing may fill a quota, as published."""
    strength: Share | None = None
    """How much of a masked weight is taken away; 1 is all of it."""
    scores: bool | None = None
    """Whether the patch carries the scores of masked weights, by which ``surgery thin`` leaves some out."""


class Cad(Part):
    """Take away the weights that make a concept, or those that stand in its way (arXiv 2412.02542)."""

    preset: CadPreset | None = None
    """Where settings start from; keys given here win. ``quick`` makes scores in half the time."""
    kind: CadKind = "erase"
    """``erase`` masks what makes a concept, ``amplify`` what keeps it from being drawn better."""
    concepts: tuple[Attributed, ...] = Field(min_length=1)
    retain: tuple[Phrase, ...] = ()
    """Names that must stay as they are, for the rankings ``retain`` and ``damage`` and for ``protect``."""
    components: tuple[Phrase, ...] = Field(default=("ff",), min_length=1)
    """Weights that are looked at: ff, ff_out, attn2_kv, attn, conv, linear, all, text_mlp, or patterns."""
    leave_out: tuple[Phrase, ...] = ()
    """Patterns of names among them that are not."""
    combine: Literal["union", "sum", "quota", "intersection", "difference"] = "union"
    """Several concepts: a mask for each, one for the sum of their scores, or one in equal parts; or only what
    the masks of all share, or what that of the first has and those of the others have not."""
    attribution: Attribution = Attribution()
    selection: Selection = Selection()
    controls: bool = True
    """Whether every mask is tried on other noise, beside random masks of its size."""
    micro_batch: Count | None = None
    """Noisy pictures in one pass forward and back; what suits the U-Net and its device when left out."""
    batch: Count | None = None
    """Paths of the sampler at a time; the same."""
    checkpointing: bool = False
    """Compute activations again on the way back: slower, with less memory."""


# Settings of the attribution that one of the objectives alone reads.
_READ_BY: Final[Mapping[str, frozenset[str]]] = {
    "base_gap": frozenset({"trajectories", "antithetic", "base_prompt", "pairing", "restart"}),
    "denoise": frozenset({"pictures"}),
}


def cad_faults(cad: Cad) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Keys that contradict each other, or that nothing reads: place in the entry, and what is wrong."""
    presets = {"erase": ("quick", "published-erase"), "amplify": ("published-amplify",)}[cad.kind]
    if cad.preset is not None and cad.preset not in presets:
        listed = " or ".join(repr(one) for one in presets)
        yield ("preset",), f"{cad.preset!r} is no preset of kind {cad.kind!r}. Use {listed}."
    objective = cad.attribution.objective or ("base_gap" if cad.kind == "erase" else "denoise")
    if cad.preset == "quick" and objective == "denoise":
        yield ("preset",), "'quick' shortens paths, and objective 'denoise' has none. Leave one of them out."
    for name in sorted(cad.attribution.given().keys()):
        other = next((one for one, keys in _READ_BY.items() if name in keys), objective)
        if other != objective:
            yield ("attribution", name), f"belongs to objective {other!r}; it is {objective!r}. Leave it out."
    if objective == "base_gap":
        for number, concept in enumerate(cad.concepts):
            if concept.images:
                hint = "Set attribution.objective to denoise, or leave them out."
                yield ("concepts", number, "images"), f"objective 'base_gap' reads no pictures. {hint}"
    yield from _name_faults(cad)
    yield from _size_faults(cad)
    yield from _unread(cad)
    if cad.selection.ranking in ("retain", "damage") and not cad.retain:
        yield ("selection", "ranking"), "looks at concepts that must stay. Name them under retain."
    reads = cad.selection.ranking in ("retain", "damage") or (cad.selection.protect or 0) > 0
    if cad.retain and not reads:
        hint = "Set selection.ranking to retain or damage, or selection.protect."
        yield ("retain",), f"nothing reads the names. {hint}"


def _size_faults(cad: Cad) -> Iterator[tuple[tuple[str | int, ...], str]]:
    chosen = cad.selection
    for name in ("count", "left"):
        if chosen.ratio is not None and getattr(chosen, name) is not None:
            yield ("selection", name), "takes the ratio's place. Give one of the two."
    if cad.combine in ("intersection", "difference") and len(cad.concepts) < 2:
        yield ("combine",), f"{cad.combine!r} is of the masks of several concepts. Name two or more."
    if cad.combine in ("intersection", "difference") and chosen.scores:
        yield ("selection", "scores"), f"combine {cad.combine!r} leaves no scores to carry. Leave it out."
    if chosen.left is not None and cad.combine not in ("union", "sum"):
        yield ("selection", "left"), f"combine {cad.combine!r} needs a ratio. Use union or sum."
    if chosen.left is not None and cad.kind == "amplify":
        yield ("selection", "left"), "is how far a concept is erased. Give a ratio or a count."


def _unread(cad: Cad) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Keys without which the outcome would be the same."""
    given, chosen = cad.attribution.given(), cad.selection
    usual = cad.preset == "published-erase"
    restart = usual if cad.attribution.restart is None else cad.attribution.restart
    if given.get("standard_errors") and chosen.ranking != "t":
        yield ("attribution", "standard_errors"), "is read by selection.ranking 't' alone. Leave it out."
    if restart and "trajectories" in given:
        yield ("attribution", "trajectories"), "restart has a path for every step. Leave it out."
    for name in ("pictures", "guidance") if all(one.images for one in cad.concepts) else ():
        if name in given:
            yield (
                ("attribution", name),
                "is about drawn pictures; every concept has its own. Leave it out.",
            )
    if chosen.retain_weight is not None and chosen.ranking not in ("retain", "damage"):
        yield ("selection", "retain_weight"), "is read by the rankings retain and damage alone. Leave it out."
    if chosen.count is not None and chosen.rounding not in (None, "carry"):
        yield ("selection", "rounding"), "is about a ratio; a count is exact. Leave it out."


def _name_faults(cad: Cad) -> Iterator[tuple[tuple[str | int, ...], str]]:
    names = [concept.source.casefold() for concept in cad.concepts]
    for number, name in enumerate(names):
        if name in names[:number]:
            yield ("concepts", number, "source"), "stands there twice; expected each concept once."
        goes = number == 0 or cad.combine != "difference"
        if goes and name in {one.casefold() for one in cad.retain}:
            yield ("concepts", number, "source"), "is to go and to be retained; expected one of the two."
