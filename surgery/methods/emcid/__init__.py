"""EMCID: many concepts of a text-to-image model edited at once, in the text encoder (arXiv 2403.13807).

Stage I learns for each concept an offset of one token's features (``optimise_offsets``); Stage II writes
all offsets into the second MLP matrices of several text blocks in closed form (``solve_updates``). ``edit``
does both.
"""

from surgery.methods.emcid.concepts import OBJECT_TEMPLATES, STYLE_TEMPLATES, prepare
from surgery.methods.emcid.corpus import CaptionFile
from surgery.methods.emcid.door import EmcidResult, edit
from surgery.methods.emcid.models import EmcidModels
from surgery.methods.emcid.nouns import Concept, ConceptEdit, Kind
from surgery.methods.emcid.offsets import Target, optimise_offsets
from surgery.methods.emcid.reports import EditReport, LayerReport
from surgery.methods.emcid.settings import (
    PUBLISHED,
    ConceptRules,
    CorpusSettings,
    OffsetSettings,
    UpdateSettings,
)
from surgery.methods.emcid.statistics import KeyStatistics, collect_statistics
from surgery.methods.emcid.statistics_file import load_statistics, save_statistics
from surgery.methods.emcid.update import Update, solve_updates

__all__ = [
    "OBJECT_TEMPLATES",
    "PUBLISHED",
    "STYLE_TEMPLATES",
    "CaptionFile",
    "Concept",
    "ConceptEdit",
    "ConceptRules",
    "CorpusSettings",
    "EditReport",
    "EmcidModels",
    "EmcidResult",
    "KeyStatistics",
    "Kind",
    "LayerReport",
    "OffsetSettings",
    "Target",
    "Update",
    "UpdateSettings",
    "collect_statistics",
    "edit",
    "load_statistics",
    "optimise_offsets",
    "prepare",
    "save_statistics",
    "solve_updates",
]
