"""The tiny models, a concept, and its noisy pictures."""

from typing import Any

import pytest

from surgery.methods.cad.nouns import CadConcept, Pairs
from surgery.methods.cad.pairs import pairs_of
from surgery.methods.cad.settings import AttributionSettings

QUICK = AttributionSettings(
    trajectories=2, sampling_steps=4, graded_steps=2, staggered=False, antithetic=False
)
CAT = CadConcept(name="cat", prompts=("a photo of a cat", "cat"), seed=3)
FF = "unet/down_blocks.0.attentions.0.transformer_blocks.0.ff.net.{}.weight"
NAMES = (FF.format("0.proj"), FF.format("2"))


@pytest.fixture(scope="session")
def pairs(models: Any) -> Pairs:
    (found,) = pairs_of(models, [CAT], QUICK)
    return found
