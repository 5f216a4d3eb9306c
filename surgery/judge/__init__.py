"""Judges say what a picture shows: the protocol, and the judges that read local files."""

from surgery.judge.labels import AXES, Labels, Trait
from surgery.judge.loading import load_judge
from surgery.judge.pocket_judge import PocketJudge
from surgery.judge.protocol import Judge
from surgery.judge.verdicts import Verdicts

__all__ = ["AXES", "Judge", "Labels", "PocketJudge", "Trait", "Verdicts", "load_judge"]
