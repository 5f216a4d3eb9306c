"""Component attribution: which weights make a concept, and what masking them does (arXiv 2412.02542)."""

from surgery.methods.cad.door import CadResult, edit
from surgery.methods.cad.maker import MaskReport
from surgery.methods.cad.nouns import CadConcept, concepts_named
from surgery.methods.cad.settings import (
    DENOISE,
    PRESETS,
    AttributionSettings,
    CadSettings,
    SelectionSettings,
    denoising,
)

__all__ = [
    "DENOISE",
    "PRESETS",
    "AttributionSettings",
    "CadConcept",
    "CadResult",
    "CadSettings",
    "MaskReport",
    "SelectionSettings",
    "concepts_named",
    "denoising",
    "edit",
]
