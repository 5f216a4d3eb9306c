"""The rules about diffusers against the real one: what it takes of thirty files, down to every weight."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgery.checkpoint import open_checkpoint, tensor_digest
from surgery.export.loaders import Simulation, rule_table, simulate_file
from surgery.export.loaders.arithmetic import held
from surgery.export.loaders.contents import read_contents
from tests.support.generations import Generation, run_check
from tests.support.lorafiles import files, write_files

LOADERS: Mapping[Generation, str] = {"current": "diffusers", "older": "diffusers-0.35"}
NAMES = sorted(files())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("loras") / "files", files())


@pytest.fixture(scope="module")
def ask(tiny_pipeline: Path, folder: Path) -> Any:
    """What the real loader held after each file, by generation; each is asked once."""
    return cache(lambda generation: run_check(generation, "held", tiny_pipeline, folder))


def predicted(found: Simulation, base: Path) -> dict[str, str]:
    """Digests of the weights that the loader would hold, of the tensors that it would change."""
    checkpoint = open_checkpoint(base)
    contents = read_contents(found.file, checkpoint.architecture, checkpoint.shapes)
    digests = {}
    for verdict in found.verdicts:
        name, change = verdict.change.tensor, verdict.change
        if verdict.word in ("applied", "misapplied") and not contents.is_nothing(change):
            weight: Tensor | None = held(change, checkpoint.read(name), found.loader, contents, torch.float16)
            assert weight is not None
            digests[name] = tensor_digest(name, weight).value16
    return digests


@pytest.mark.slow
@pytest.mark.parametrize("generation", LOADERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_real_loader_does_what_the_rules_say(
    ask: Any, folder: Path, tiny_pipeline: Path, name: str, generation: Generation
) -> None:
    seen = ask(generation)[name]
    found = simulate_file(LOADERS[generation], folder / f"{name}.safetensors", base=tiny_pipeline)
    if isinstance(seen, str):
        assert found.refused, seen
        return
    assert not found.refused
    assert predicted(found, tiny_pipeline) == seen


def test_alphas_that_differ_are_told_before_they_do_harm(folder: Path, tiny_pipeline: Path) -> None:
    found = simulate_file("diffusers", folder / "alphas-differ.safetensors", base=tiny_pipeline)
    assert not found.whole
    assert set(found.lost.values()) == {"misapplied"}
    assert simulate_file("comfyui", folder / "alphas-differ.safetensors", base=tiny_pipeline).whole


def test_every_loader_has_a_rule_for_every_file(folder: Path, tiny_pipeline: Path) -> None:
    for loader in rule_table().loaders:
        for name in NAMES:
            found = simulate_file(loader, folder / f"{name}.safetensors", base=tiny_pipeline)
            assert found.verdicts, (loader, name)
            assert found.whole == (not found.lost and not found.refused)
