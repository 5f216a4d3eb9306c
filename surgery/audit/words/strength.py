"""How strongly a change acts on inputs, told apart from how unusual the inputs are."""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.audit.words.inputs import Inputs
from surgery.numerics import factorise, shrink

# Mixed into the usual second moment: with some ten thousand tokens its weakest directions are noise.
_SHRINKAGE: Final = 1e-3
# The directions that a change listens to: so much of its squared size lies in them.
_ENERGY: Final = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Acting:
    """One change on many inputs.

    Attributes:
        shares: Per input, how much of it lies in the directions that the change listens to, 0 to 1; of an
            ordinary input, where it is smaller than one.
        controls: The same for two changes of the same sizes that are about nothing.
        activations: Per input, its size in usual units: about 1 for ordinary ones.
    """

    shares: Float[Tensor, "phrases"]
    controls: Float[Tensor, "2 phrases"]
    activations: Float[Tensor, "phrases"]


def acting(change: Float[Tensor, "d_out d_in"], inputs: Inputs) -> Acting:
    """The share of each input that a change responds to, both seen in units of what usually arrives.

    ‖ΔW c‖ alone finds unusual inputs rather than edited ones: an edit that spares ordinary inputs, as
    ΔW = R Kᵀ (λC + KKᵀ)⁻¹ does, is largest where C is smallest, and any odd phrase has a part there. With
    C = LLᵀ the second moment of ordinary inputs, ΔW L has the row space of L⁻¹K alone (the push-through
    identity), so the edited keys lie in it, and others only by chance: the share is ‖P L⁻¹c‖² / ‖L⁻¹c‖²,
    with P the projection on the strongest right singular vectors of ΔW L. An input that is next to nothing in
    these units, as that of a phrase that ends in "of", is what all prompts have in common, and heard by
    whatever hears that: it is measured against an ordinary one.

    A change without such directions (a mask, noise) hears the strongest directions of C, and phrases that lie
    there. The controls show how well: the same numbers with the signs of whole columns drawn by lot, which
    keeps every size and knows no phrase. There are two, which tell how far such changes differ by chance.
    """
    lower = factorise(shrink(inputs.usual, _SHRINKAGE)).lower
    whitened = torch.linalg.solve_triangular(lower, inputs.phrases.double().T, upper=False)
    sizes = whitened.square().sum(0)
    against = sizes.clamp(min=len(lower))
    change = change.double()
    signs = torch.randint(0, 2, (2, change.shape[1]), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return Acting(
        shares=_heard(change @ lower, whitened) / against,
        controls=torch.stack([_heard(change * drawn @ lower, whitened) for drawn in signs]) / against,
        activations=sizes / len(lower),
    )


def acting_on_tokens(change: Float[Tensor, "tokens width"], tokens: list[tuple[int, ...]]) -> Acting:
    """The same for a table of token vectors, where an input is a set of rows: the share of changed ones.

    Args:
        change: Of the table.
        tokens: Ids of each phrase.
    """
    changed = change.ne(0).any(1)
    shares = torch.tensor([float(changed[list(ids)].double().mean()) for ids in tokens], dtype=torch.float64)
    return Acting(shares=shares, controls=torch.zeros(2, len(tokens)), activations=torch.ones_like(shares))


def _heard(seen: Float[Tensor, "d_out d_in"], whitened: Float[Tensor, "d_in phrases"]) -> Tensor:
    heard: Tensor = (_directions(seen).T @ whitened).square().sum(0)
    return heard


def _directions(seen: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_in rank"]:
    """Right singular vectors that hold nearly all of a matrix, from the Gram matrix of its shorter side."""
    rows, columns = seen.shape
    squares, vectors = torch.linalg.eigh(seen @ seen.T if rows <= columns else seen.T @ seen)
    squares, vectors = squares.clamp(min=0).flip(0), vectors.flip(1)
    rank = 1 + int((squares.cumsum(0) < _ENERGY * squares.sum()).sum())
    kept: Tensor = vectors[:, :rank]
    return kept if rows > columns else torch.linalg.qr(seen.T @ kept).Q
