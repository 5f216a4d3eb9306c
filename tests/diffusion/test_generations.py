"""The older diffusers and transformers get the same features and pictures, and their own pipeline agrees."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgery.diffusion import encode_prompts, sample
from tests.support.older import ROOT, older_python

PROMPTS = ["a photo of a cat", "a dog"]

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from surgery.diffusion import encode_prompts, sample
from tests.support.small import small_pipeline
pipeline, prompts = small_pipeline(Path(sys.argv[1])), json.loads(sys.argv[2])
generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
stock = pipeline(prompts, num_inference_steps=2, guidance_scale=5.0, generator=generators, output_type="np")
models = (pipeline.tokenizer, pipeline.text_encoder, prompts)
features, skipped = encode_prompts(*models), encode_prompts(*models, clip_skip=2)
plain, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
short, _ = pipeline.encode_prompt(prompts, "cpu", 1, False, clip_skip=2)
print(json.dumps({
    "features": features.flatten().tolist(),
    "skipped": skipped.flatten().tolist(),
    "pictures": sample(pipeline, prompts, [3, 4], steps=2).tolist(),
    "stock": (stock.images * 255).round().tolist(),
    "equal": [torch.equal(features, plain), torch.equal(skipped, short)],
}))
"""


@pytest.fixture(scope="module")
def older(tiny_pipeline: Path) -> Any:
    done = subprocess.run(
        [older_python(), "-c", SCRIPT, tiny_pipeline, json.dumps(PROMPTS)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_features_are_bit_for_bit_those_of_the_older_stock_pipeline(older: Any) -> None:
    assert older["equal"] == [True, True]


@pytest.mark.parametrize(("key", "clip_skip"), [("features", 0), ("skipped", 2)])
def test_features_agree_between_the_generations(older: Any, pipeline: Any, key: str, clip_skip: int) -> None:
    features = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, PROMPTS, clip_skip)
    torch.testing.assert_close(torch.tensor(older[key]).view_as(features), features)


def test_pictures_agree_between_the_generations_and_with_the_older_stock_pipeline(
    older: Any, pipeline: Any
) -> None:
    pictures = np.array(older["pictures"])
    assert np.abs(pictures - np.array(older["stock"])).max() <= 1
    assert np.abs(pictures - sample(pipeline, PROMPTS, [3, 4], steps=2)).max() <= 1
