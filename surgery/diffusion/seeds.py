"""Seeds and generators of their own for each purpose."""

import hashlib

import torch


def generator_for(seed: int, *purpose: str | int) -> torch.Generator:
    """A generator of its own for each purpose, so that no draw depends on what else is drawn."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A seed below 2⁶³ from a seed and a purpose."""
    text = "|".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
