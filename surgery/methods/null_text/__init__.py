"""Null-text training: a U-Net learns the look of a folder of pictures without a word (arXiv 2312.08195)."""

from surgery.methods.null_text.constants import load_constants, measure_constants, save_constants
from surgery.methods.null_text.door import Trained, train
from surgery.methods.null_text.pictures import PictureSet, read_pictures
from surgery.methods.null_text.settings import TrainSettings, check_settings
from surgery.methods.training import Check

__all__ = [
    "Check",
    "PictureSet",
    "TrainSettings",
    "Trained",
    "check_settings",
    "load_constants",
    "measure_constants",
    "read_pictures",
    "save_constants",
    "train",
]
