"""How tests of this room call the program."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.cli import call


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Outcome]


@pytest.fixture
def surgery(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the program in this process: ``surgery("check", "quickstart")``."""

    def run(*arguments: object) -> Outcome:
        code = call([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def patch(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch of rank one on one tensor of the tiny pipeline; never write to it."""
    from surgery.checkpoint import open_checkpoint
    from surgery.delta import Delta, LowRank
    from surgery.patch import Term, make_patch, save_patch

    form = LowRank(left=torch.full((32, 1), 0.5), right=torch.linspace(-1, 1, 128)[None])
    delta = Delta(terms={"text_encoder/text_model.encoder.layers.3.mlp.fc2.weight": form})
    term = Term(delta=delta, strength=1.0, source="by hand")
    path = tmp_path_factory.mktemp("patch") / "patch.safetensors"
    save_patch(make_patch([term], open_checkpoint(tiny_pipeline)), path)
    return path
