"""Pictures drawn as a recipe of guidance says, beside plain ones, onto one labelled sheet."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from surgery.checkpoint.components import load_controlnet
from surgery.diffusion import Control, SampleKnobs, device_and_dtype, load_picture, sample_table
from surgery.diffusion.guide import Guide
from surgery.diffusion.inversion import InversionSettings
from surgery.diffusion.models import config_of
from surgery.diffusion.pixels import scale_factor
from surgery.diffusion.sampling import latent_shape
from surgery.errors import SurgeryError, raise_all
from surgery.guidance.concept_diffusion import INITIAL, LATER, OURS, ConceptSettings, LaterSettings
from surgery.guidance.gcfg import GcfgSettings, GuidedConcept
from surgery.guidance.guides import ConceptGuide, GcfgGuide
from surgery.guidance.phrases import Finder, phrases_by, plain_phrases
from surgery.guidance.scaling_concept import OBJECT, SKETCH, SUBTLE, ScalingSettings, scale_concept
from surgery.patch import load_patch
from surgery.recipe import ConceptDiffusion, Gcfg, GuideRecipe, ScalingConcept
from surgery.recipe.guide import ControlNet
from surgery.record import JSON
from surgery.report import SheetRow, contact_sheet
from surgery.study.loading import pipeline_on
from surgery.study.samples import cell_side, sheet_of
from surgery.study.wordless import looks_in

_log = logging.getLogger(__name__)

_PUBLISHED_STEPS: Final = 50
_PLAIN: Final = 5.0
"""Guidance scale of the pictures beside those of generalised guidance, whose weights are no single one."""
_CONCEPT: Final[Mapping[str, ConceptSettings | LaterSettings]] = {
    "published": INITIAL,
    "later": LATER,
    "ours": OURS,
}
_SCALING: Final[Mapping[str, ScalingSettings]] = {"object": OBJECT, "subtle": SUBTLE, "sketch": SKETCH}


def guided_sheet(
    recipe: GuideRecipe,
    *,
    checkpoint: Path | None = None,
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (),
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    offloaded: bool = False,
    steps: int | None = None,
    batch: int = 16,
) -> Image.Image:
    """A sheet of what a recipe of guidance draws, beside plain guidance, or beside the pictures it scales.

    Args:
        recipe: What guides.
        checkpoint: In place of the recipe's base.
        prompts: In place of the recipe's, one row for each.
        seeds: In place of the recipe's, one column for each.
        device: Where the models run.
        dtype: In which type they run.
        offloaded: Whether each model comes to the device only when it is used.
        steps: In place of the recipe's.
        batch: Pictures at a time.

    Raises:
        SurgeryError: when the checkpoint, a patch or a picture cannot be used, or they do not fit each other.
    """
    models = pipeline_on(checkpoint or recipe.base_path(), device, dtype, offloaded=offloaded)
    steps = recipe.sample.steps if steps is None else steps
    scaling = recipe.guide.scaling_concept
    if scaling is not None:
        if prompts or seeds:
            raise SurgeryError(
                "prompts or seeds were given; expected none, since the recipe's pictures are drawn along "
                "their own paths."
            )
        return _scaled_sheet(models, recipe, scaling, steps, batch)
    asked = tuple(prompts) or recipe.sample.prompts
    columns = tuple(seeds) or recipe.sample.seeds
    guide, labels, plain = guide_of(recipe, models, asked, steps)
    ways = [SampleKnobs(guidance=plain), SampleKnobs(guide=guide)]
    before, after = (
        sample_table(models, asked or ("",), columns, **SampleKnobs(steps=steps, batch=batch, **way))
        for way in ways
    )
    return sheet_of({"plain": before, "guided": after}, labels, columns)


def guide_of(
    recipe: GuideRecipe, models: Any, prompts: Sequence[str], steps: int
) -> tuple[Guide, tuple[str, ...], float]:
    """What guides the drawing of prompts, a label of each, and the scale of plain guidance to compare with.

    Steps of presets are those of fifty, and are scaled to ``steps``.

    Raises:
        SurgeryError: when a patch does not fit the models, or prompts are missing.
    """
    guide = recipe.guide
    if guide.gcfg is not None:
        return _gcfg(recipe, guide.gcfg, models, prompts)
    assert guide.concept_diffusion is not None
    return _concept_diffusion(guide.concept_diffusion, models, prompts, steps)


def _gcfg(
    recipe: GuideRecipe, entry: Gcfg, models: Any, prompts: Sequence[str]
) -> tuple[Guide, tuple[str, ...], float]:
    if not prompts and entry.control_weight != 0:
        raise SurgeryError(
            "there is no prompt, and control_weight is not 0; expected one. Give --prompt, or set "
            "control_weight to 0 to draw without words."
        )
    patches = [load_patch(recipe.file(one.patch)) for one in entry.concepts]
    told = [next(looks_in(patch), {}) for patch in patches]
    concepts = tuple(
        GuidedConcept(
            weight=_weight(one.weight, [header], "concept_weight", GuidedConcept().weight),
            strength=one.strength,
            base_strength=one.base_strength,
            control_strength=one.control_strength,
        )
        for one, header in zip(entry.concepts, told, strict=True)
    )
    control_weight = _weight(entry.control_weight, told, "control_weight", GcfgSettings().control_weight)
    settings = GcfgSettings(
        concepts=concepts, control_weight=control_weight, across=entry.across, limit=entry.limit
    )
    control = None if entry.controlnet is None else _control(recipe, entry.controlnet, models)
    guide = GcfgGuide(models, patches, settings, mode=entry.mode, control=control)
    return guide, tuple(prompts) or ("without words",), _PLAIN


def _weight(given: float | None, headers: Sequence[Mapping[str, JSON]], key: str, usual: float) -> float:
    """What the recipe says, or else the first patch that says it, or else what is usual."""
    if given is not None:
        return given
    told = (header.get(key) for header in headers)
    return next((float(one) for one in told if isinstance(one, int | float)), usual)


def _control(recipe: GuideRecipe, entry: ControlNet, models: Any) -> Control:
    device, dtype = device_and_dtype(models.unet)
    net = load_controlnet(recipe.file(entry.path), device=device, dtype=dtype)
    _refuse_other_family(net, models.unet, recipe.file(entry.path))
    # it halves its picture once for each width but the first, whatever the VAE does
    factor = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    _, height, width = latent_shape(models)
    picture = load_picture(recipe.file(entry.image), height * factor, width * factor)
    return Control(net=net, picture=(picture[None] + 1) / 2, scale=entry.scale)


def _refuse_other_family(net: Any, unet: Any, path: Path) -> None:
    ours, theirs = config_of(unet), config_of(net)
    names = ("in_channels", "block_out_channels", "cross_attention_dim", "addition_embed_type")
    faults = [
        f"{path} has {name} {getattr(theirs, name)}, and the checkpoint's U-Net {getattr(ours, name)}; "
        "expected the same. Take a ControlNet of the checkpoint's family."
        for name in names
        if _plain(getattr(theirs, name)) != _plain(getattr(ours, name))
    ]
    if theirs.conditioning_channels != 3:
        faults.append(
            f"{path} reads pictures of {theirs.conditioning_channels} channels; expected 3, as colours have."
        )
    raise_all(SurgeryError, faults)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _sides(models: Any) -> tuple[int, int]:
    """Height and width in pixels of what the checkpoint draws."""
    factor, (_, height, width) = scale_factor(models.vae), latent_shape(models)
    return height * factor, width * factor


def _concept_diffusion(
    entry: ConceptDiffusion, models: Any, prompts: Sequence[str], steps: int
) -> tuple[Guide, tuple[str, ...], float]:
    if not prompts:
        raise SurgeryError("there is no prompt; expected at least one. Give --prompt.")
    subjects = subjects_of(entry, prompts)
    usual = _CONCEPT[entry.preset]
    last = None if usual.last_step is None else _of_fifty(usual.last_step, steps)
    usual = replace(usual, first_step=_of_fifty(usual.first_step, steps), last_step=last)
    settings: Any = replace(usual, **entry.given())
    guide = ConceptGuide(models=models, subjects=subjects, settings=settings)
    labels = tuple(f"{prompt} ({'; '.join(subjects[prompt])})" for prompt in prompts)
    return guide, labels, settings.guidance


def _of_fifty(step: int, steps: int) -> int:
    """A step of presets, which were published for fifty, among another number of them."""
    return round(step * steps / _PUBLISHED_STEPS)


def subjects_of(entry: ConceptDiffusion, prompts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What each prompt is about, as the recipe says or as its finder finds.

    Raises:
        SurgeryError: when the finder's pipeline is not there.
    """
    unused = sorted(entry.subjects.keys() - set(prompts))
    if unused and not set(prompts) & entry.subjects.keys():
        _log.warning("no prompt is spelled as one of 'subjects': %s", "; ".join(unused))
    unknown = [prompt for prompt in prompts if prompt not in entry.subjects]
    found = dict(entry.subjects)
    if unknown:
        find = _finder(entry.finder)
        found |= {prompt: find(prompt) for prompt in unknown}
    for prompt in unknown:
        if len(found[prompt]) < 2:
            _log.warning(
                "%r: %s found; guidance by subjects needs two to tell apart. Name them in the recipe's "
                "'subjects'.",
                prompt,
                f"only {found[prompt][0]!r} was" if found[prompt] else "no subject was",
            )
    return found


def _finder(name: str) -> Finder:
    if name == "plain":
        return plain_phrases
    try:
        spacy: Any = import_module("spacy")
    except ModuleNotFoundError as error:
        raise SurgeryError(
            f"finder {name!r} is a pipeline of spaCy, which is not installed; expected 'plain', or spaCy. "
            "Install it by: pip install 'sd-surgery[phrases]'"
        ) from error
    try:
        return phrases_by(spacy.load(name))
    except OSError as error:
        raise SurgeryError(
            f"finder {name!r} is no pipeline of spaCy that is installed; expected 'plain', a name or a "
            f"folder. Install it by 'python -m spacy download {name}' where there is a network."
        ) from error


def _scaled_sheet(
    models: Any, recipe: GuideRecipe, entry: ScalingConcept, steps: int, batch: int
) -> Image.Image:
    base = _SCALING[entry.preset]
    base = replace(base, exit_step=_of_fifty(base.exit_step, steps))
    scales = entry.scales or (base.scale,)
    settings: list[Any] = [replace(base, scale=scale, **entry.scaling()) for scale in scales]
    inversion: Any = replace(InversionSettings(), **entry.inversion())
    pixels = torch.stack([load_picture(recipe.file(name), *_sides(models)) for name in entry.images])
    parts = [
        scale_concept(models, some, entry.concept, settings, inversion, steps=steps)
        for some in torch.split(pixels, batch)
    ]
    shown = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    again = np.concatenate([part.again for part in parts])
    scaled = [np.concatenate(column) for column in zip(*(part.pictures for part in parts), strict=True)]
    errors = [error for part in parts for error in part.error]
    columns = [shown, again, *scaled]
    rows = [
        SheetRow(
            label=Path(name).name,
            groups=tuple(column[row : row + 1] for column in columns),
            note=f"drawn again: {100 * errors[row]:.1f} % off",
        )
        for row, name in enumerate(entry.images)
    ]
    return contact_sheet(
        rows,
        groups=["picture", "drawn again", *(f"{scale:g}" for scale in scales)],
        title=f"{entry.concept}, scaled",
        cell=cell_side(shown),
    )
