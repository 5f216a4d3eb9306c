"""The older transformers has another tree and another tokenizer class; the answers are the same."""

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from surgery.anatomy import locate, text_stack, through_blocks, weights_digest
from tests.support.older import ROOT, older_python

PHRASES = [("a photo of a {}", "cat"), ("A  {} in", "bōa 🧑🏽"), ("{}", "cafe\u0301")]

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from surgery.anatomy import locate, text_stack, through_blocks, weights_digest
from surgery.checkpoint.components import load_text_encoder, load_tokenizer
folder, phrases = Path(sys.argv[1]), json.loads(sys.argv[2])
tokenizer, encoder = load_tokenizer(folder), load_text_encoder(folder)
spans = [locate(tokenizer, *pair) for pair in phrases]
stack, ids = text_stack(encoder), torch.tensor([spans[0].ids])
with torch.no_grad():
    features = stack.final_norm(through_blocks(stack.blocks, stack.embed(ids)))
    whole = encoder(ids).last_hidden_state
print(json.dumps({
    "spans": [[span.start, span.end, *span.ids] for span in spans],
    "name": stack.name(3),
    "digest": weights_digest(encoder),
    "same": torch.equal(features, whole),
    "features": features.flatten().tolist(),
}))
"""


def test_spans_names_digests_and_features_are_those_of_the_older_generation(
    tiny_pipeline: Path, tokenizer: Any, encoder: Any
) -> None:
    done = subprocess.run(
        [older_python(), "-c", SCRIPT, tiny_pipeline, json.dumps(PHRASES)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    older = json.loads(done.stdout.splitlines()[-1])
    spans = [locate(tokenizer, *pair) for pair in PHRASES]
    assert older["spans"] == [[span.start, span.end, *span.ids] for span in spans]
    stack = text_stack(encoder)
    assert (older["name"], older["digest"], older["same"]) == (stack.name(3), weights_digest(encoder), True)
    features = stack.final_norm(through_blocks(stack.blocks, stack.embed(torch.tensor([spans[0].ids]))))
    torch.testing.assert_close(torch.tensor(older["features"]).view_as(features), features)
