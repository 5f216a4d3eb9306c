"""Text encoders whose words cannot be looked for."""

from pathlib import Path

import torch

from surgery.audit.sides import CheckpointPair
from surgery.audit.tensors import tensor_rows
from surgery.audit.words.reading import unreadable
from surgery.checkpoint import open_checkpoint
from tests.audit.folders import attn2, fc2, pair, weights


def test_words_are_not_looked_for_in_a_text_encoder_that_holds_no_numbers(tmp_path: Path) -> None:
    after = weights()
    after["text_encoder"][fc2(1)][2, 3] = torch.nan
    after["unet"][attn2(0, "to_k")][0, 0] = torch.nan
    first, second = pair(tmp_path, weights(), after)
    sides = CheckpointPair(base=open_checkpoint(first), edited=open_checkpoint(second))
    rows = tensor_rows(sides, spectra=False)
    [finding] = unreadable(rows)
    assert finding.subject == f"text_encoder/{fc2(1)}"
    assert "holds NaN or infinity" in finding.message
    assert list(unreadable([row for row in rows if row.component == "unet"])) == []
