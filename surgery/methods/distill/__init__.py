"""More or less of a concept, distilled from guidance into the U-Net's weights."""

from surgery.methods.distill.door import Distilled, distill
from surgery.methods.distill.settings import DistillConcept, DistillSettings, check_distill

__all__ = ["DistillConcept", "DistillSettings", "Distilled", "check_distill", "distill"]
