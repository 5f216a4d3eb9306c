"""Judges say what a picture shows: the protocol, and the judges that read local files."""

from surgery.judge.classifier import ClassifierJudge
from surgery.judge.clip import ClipJudge, Questions
from surgery.judge.labelled import measure_accuracy, pictures_in
from surgery.judge.labels import AXES, Labels, Trait
from surgery.judge.loading import load_judge
from surgery.judge.pocket_judge import PocketJudge
from surgery.judge.protocol import FeatureJudge, Judge
from surgery.judge.verdicts import Verdicts

__all__ = [
    "AXES",
    "ClassifierJudge",
    "ClipJudge",
    "FeatureJudge",
    "Judge",
    "Labels",
    "PocketJudge",
    "Questions",
    "Trait",
    "Verdicts",
    "load_judge",
    "measure_accuracy",
    "pictures_in",
]
