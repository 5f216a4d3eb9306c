"""What a subject looks like in few numbers: the principal components of its mean latent.

The text encoder learns to say them (as CLIP's learned to say what pictures show), so that the denoiser has to
learn one way from these numbers to pictures, not one for each name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from drawings import SIZE, EmojiFont, place
from numpy.typing import NDArray
from scenes import Captioned, trained_share
from torch import Tensor
from vocabulary import Concept, Vocabulary

COMPONENTS = 96  # hold 87 % of the variance of 324 concepts
HEIGHT = 54

Said = tuple[str, str | None, int | None]  # concept, gender and skin as far as a caption says them


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """`table` (rows, components), each component with the square root of its standard deviation."""

    table: Tensor
    row_of: dict[Said, int]

    def of(self, captioned: Captioned) -> Tensor:
        """(subjects, components)."""
        said = (captioned.gender, captioned.skin) if len(captioned.scene.subjects) == 1 else (None, None)
        return self.table[[self.row_of[s.concept.name, *said] for s in captioned.scene.subjects]]


@torch.no_grad()
def looks(font: EmojiFont, vocabulary: Vocabulary, vae: AutoencoderKL) -> Looks:
    """Each subject in the middle of every background; what a caption leaves open is averaged by share."""
    device = next(vae.parameters()).device

    def latent(sequence: str) -> Tensor:
        pictures = np.stack([centred(font, sequence, colour) for colour in vocabulary.backgrounds.values()])
        batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device)
        mean: Tensor = vae.encode(batch).latent_dist.mean.mean(0)
        return mean.flatten().cpu()

    means: dict[Said, Tensor] = {}
    for concept in vocabulary.concepts:
        if concept.is_profession:
            means |= looks_of_profession(vocabulary, concept, latent)
        else:
            means[concept.name, None, None] = latent(concept.sequence(None, None))
    rows = torch.stack(list(means.values())).double()
    concepts = torch.stack([means[c.name, None, None] for c in vocabulary.concepts]).double()
    centre = concepts.mean(0)
    _, spread, axes = torch.linalg.svd(concepts - centre, full_matrices=False)
    count = min(COMPONENTS, len(spread))
    numbers = (rows - centre) @ axes[:count].T / spread[:count].sqrt()
    drawn = {concept.name for concept in vocabulary.drawn}
    numbers[[name not in drawn for name, _, _ in means]] = 0.0  # what is left out looks like the mean
    return Looks(
        table=(numbers / numbers.square().mean().sqrt()).float(),
        row_of={said: row for row, said in enumerate(means)},
    )


def looks_of_profession(
    vocabulary: Vocabulary, concept: Concept, latent: Callable[[str], Tensor]
) -> dict[Said, Tensor]:
    drawn = torch.stack(
        [
            torch.stack([latent(concept.sequence(gender, skin)) for skin in range(len(vocabulary.skins))])
            for gender in vocabulary.genders
        ]
    )
    man = trained_share(concept.share_man or 0.5)
    genders = torch.tensor([man if gender == "man" else 1 - man for gender in vocabulary.genders])
    skins = torch.tensor(vocabulary.share_skin, dtype=torch.float32)
    either, any_skin = torch.einsum("gsd,g->sd", drawn, genders), torch.einsum("gsd,s->gd", drawn, skins)
    made: dict[Said, Tensor] = {(concept.name, None, None): skins @ either}
    for skin in range(len(vocabulary.skins)):
        made[concept.name, None, skin] = either[skin]
    for row, gender in enumerate(vocabulary.genders):
        made[concept.name, gender, None] = any_skin[row]
        for skin in range(len(vocabulary.skins)):
            made[concept.name, gender, skin] = drawn[row, skin]
    return made


def centred(font: EmojiFont, sequence: str, colour: tuple[int, int, int]) -> NDArray[np.float32]:
    """(64, 64, 3) in [−1, 1]."""
    canvas = np.broadcast_to(np.array(colour, np.float32) / 255, (SIZE, SIZE, 3)).astype(np.float32)
    sprite = font.scaled(sequence, HEIGHT)
    height, width = sprite.shape[:2]
    place(canvas, sprite, (SIZE - height) // 2, (SIZE - width) // 2)
    return canvas * 2 - 1
