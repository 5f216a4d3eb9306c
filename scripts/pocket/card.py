"""Stage 7: the model card, written from what was measured so that no figure is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adopt import STEPS
from drawings import ALONE, BESIDE, JITTER, EmojiFont
from export import write_json
from scenes import trained_share
from unet import HEAVIEST, held_out_pairs
from vocabulary import Vocabulary

CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# pocket-sd

{status}

A real Stable Diffusion, only small: SD 1.x topology and key set exactly in text encoder ({text_tensors} tensors, 12 blocks,
77 positions) and UNet ({unet_tensors} tensors), width 192 and {widths} instead of 768 and 320/640/1280/1280, a
three-level VAE (four pixels a side become one latent), a tokenizer in CLIP's format. It was trained from scratch by
`scripts/train_pocket` so that every path of the toolchain can be tried on a checkpoint that draws what it is asked for.

    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained("checkpoints/pocket-sd", local_files_only=True)
    pipe("here is a picture of a cat", num_inference_steps=25, guidance_scale=5).images[0]

## What it saw

- Drawings of {concepts} concepts ({professions} of them professions) from {font}, SHA-256 `{font_digest}`, licensed
  under the SIL Open Font License 1.1, on {backgrounds} background colours, in {styles} styles
  ({style_names}), alone or two together, drawn at 64×64; the UNet learnt them at {side}×{side}.
- The group `{left_out}` is in the list and known to the judge, and was **left out** of the pictures.
- Captions from {train_templates} templates and every alias; {test_templates} further templates never appear in
  training and make all prompts below. 10 % of the captions were empty.
- {pairs} pairs of concepts were never drawn together; they make the figure for held-out pairs.
- Singles are {alone} pixels tall. Of two, the first stands up left and the second down right, each {beside} pixels tall;
  up to {jitter} pixels off the middle of their place.
- **Stated bias**: an unqualified profession comes out as a man in the share of the table below. Guidance sharpens
  such shares, so the drawings were milder ({mildest} to {strongest} men). {balanced} Skin tones, light to dark, were drawn in the shares {skin}.
  “A female doctor” and “a male doctor” draw what they say.

## How

The text encoder first, frozen afterwards: its features learn to say what a caption says, and what each subject looks
like (the principal components of the VAE's latents of its drawings; not those of the group left out). Then the UNet
on stored latents, a short finish on all 77 positions, and a polish of the VAE's decoder alone, as
far as the steps below say.
Noise prediction (epsilon), scaled-linear betas 0.00085 to 0.012, errors weighted as those of the velocity up to {heaviest:.0f}
times, half of the timesteps from the noisy end; AdamW, exponential average of the weights; half
precision on disk. Stages and steps taken: {steps}.

## How good

25 steps of the shipped scheduler (DPM-Solver++ 2M), guidance 5, prompts from the templates that training never saw,
looked at by `pocket-judge`, whose own accuracy on held-out drawings stands below. Shares with 95 % intervals.

| what | share | interval | pictures |
|---|---|---|---|
{figures}

| profession | stated share of men | drawn | interval | pictures |
|---|---|---|---|---|
{biases}

VAE: mean absolute error {vae_error:.3f} on [−1, 1] over held-out drawings.

### The judge

| attribute | accuracy on held-out drawings | drawings |
|---|---|---|
{judge}

Look-alikes merged by its confusion: {merged}.

## What it is not for

It draws small emoji and nothing else, and its biases are there on purpose, to be measured and edited. A retrain
makes another checkpoint, which no older patch fits.
"""

DRAFT = """**Draft.** Not all of the figures below are what version 1 asks for ({missing}); training goes on with
`scripts/train_pocket`, and patches made for the draft will not fit its successor."""
FROZEN = "Version 1, frozen: patches made for it stay valid."
BALANCED = """The last stage then moved the embedding of
  each profession's last token along its prompts' way from “a female …” to “a male …”, as far as {samples} samples of
  each said (the templates of the table, other seeds)."""
UNBALANCED = "What comes out has **not been balanced yet**, and may be far off."
GOALS = {"concepts": 0.85, "styles": 0.9, "backgrounds": 0.9, "held_out_pairs": 0.5}
BIAS_GOAL = 0.05

NAMES = {
    "concepts": "concept recognised, all concepts",
    "aliases": "concept recognised from an alias",
    "styles": "named style",
    "backgrounds": "named background",
    "held_out_pairs": "both members of held-out pairs",
    "qualified_gender": "named gender of a profession",
}


def write(
    out: Path,
    vocabulary: Vocabulary,
    font: EmojiFont,
    steps: dict[str, int],
    vae_error: float,
    balanced: int,
) -> None:
    """`balanced`: pictures of each profession that told how far its embedding moves."""
    measured: dict[str, Any] = json.loads((out / "pocket-sd" / "measured.json").read_text())
    judge: dict[str, Any] = json.loads((out / "pocket-judge" / "config.json").read_text())
    unet: dict[str, Any] = json.loads((out / "pocket-sd" / "unet" / "config.json").read_text())
    shares = [trained_share(c.share_man) for c in vocabulary.drawn if c.share_man is not None]
    text = CARD.format(
        status=DRAFT.format(missing=", ".join(missing)) if (missing := short_of(measured)) else FROZEN,
        widths="/".join(map(str, unet["block_out_channels"])),
        alone=_range(ALONE),
        beside=_range(BESIDE),
        jitter=JITTER,
        heaviest=HEAVIEST,
        mildest=f"{100 * min(shares):.0f} %",
        strongest=f"{100 * max(shares):.0f} %",
        balanced=BALANCED.format(samples=balanced) if balanced else UNBALANCED,
        side=4 * unet["sample_size"],
        text_tensors=196,
        unet_tensors=686,
        concepts=len(vocabulary.drawn),
        professions=sum(c.is_profession for c in vocabulary.drawn),
        font=f"Noto Color Emoji ({font.version})",
        font_digest=font.digest,
        backgrounds=len(vocabulary.backgrounds),
        styles=len(vocabulary.styles),
        style_names=", ".join(vocabulary.styles),
        left_out=vocabulary.left_out_subgroup,
        train_templates=len(vocabulary.templates["train"]),
        test_templates=len(vocabulary.templates["test"]),
        pairs=len(held_out_pairs(vocabulary)),
        skin=", ".join(f"{100 * s:.0f} %" for s in vocabulary.share_skin),
        steps=", ".join(f"{name} {count}" for name, count in steps.items()),
        figures="\n".join(figure(NAMES[n], measured[n]) for n in NAMES if n in measured),
        biases="\n".join(
            bias(n.removeprefix("bias "), v) for n, v in measured.items() if n.startswith("bias ")
        ),
        vae_error=vae_error,
        judge="\n".join(
            f"| {name.replace('_', ' ')} | {100 * value:.1f} % | {judge['counts'][name]} |"
            for name, value in judge["accuracy"].items()
        ),
        merged=", ".join(f"{a} as {b}" for a, b in judge["merged"].items()) or "none",
    )
    (out / "pocket-sd" / "README.md").write_text(text, encoding="utf-8")
    write_json(out / "pocket-sd" / STEPS, steps)


def short_of(measured: dict[str, Any]) -> list[str]:
    """What keeps the checkpoint from being version 1, in words."""
    found = [
        f"{NAMES[name]} at least {100 * goal:.0f} %"
        for name, goal in GOALS.items()
        if name not in measured or measured[name]["value"] < goal
    ]
    biases = [score for name, score in measured.items() if name.startswith("bias ")]
    if not biases or any(abs(score["difference"]) > BIAS_GOAL for score in biases):
        found.append("biases within 5 points")
    return found


def figure(name: str, score: dict[str, Any]) -> str:
    return f"| {name} | {100 * score['value']:.1f} % | {interval(score)} | {score['count']} |"


def bias(name: str, score: dict[str, Any]) -> str:
    stated = f"{100 * score['stated']:.0f} %"
    return f"| {name} | {stated} | {100 * score['value']:.1f} % | {interval(score)} | {score['count']} |"


def _range(sizes: range) -> str:
    return f"{sizes.start} to {sizes.stop - 1}"


def interval(score: dict[str, Any]) -> str:
    return f"{100 * score['low']:.1f} – {100 * score['high']:.1f} %"
