"""The protocol of the curves: what is edited, what is held out, and how many pictures a cell has."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.delta import LowRank
from tests.support.small import small_pipeline


@pytest.fixture
def benches(bench: Any) -> tuple[Any, Any]:
    """The bench and its baseline, as scripts/bench imports them."""
    return bench("curves"), bench("uce")


@pytest.fixture
def curves(benches: tuple[Any, Any]) -> Any:
    return benches[0]


@pytest.fixture
def ground(curves: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(curves, "load_pipeline", lambda path: None)
    return curves._ground(
        Namespace(base="pocket-sd", store=tmp_path, out=tmp_path, steps=10, seed=0, dtype="float32")
    )


def test_destinations_and_held_out_names_come_from_the_unedited_half(ground: Any) -> None:
    sources, aims, held = set(ground.sources), set(ground.destinations), set(ground.held_out)
    assert len(ground.sources) == len(ground.destinations) == len(ground.words.concepts) // 2
    assert not sources & aims
    assert not held & (sources | aims)
    assert sources | aims | held == set(ground.words.concepts)


@pytest.mark.parametrize("kind", ["update", "forget"])
@pytest.mark.parametrize("count", [1, 10, 50, 100, 152])
def test_every_cell_has_its_pictures_and_no_edit_names_an_alias(
    curves: Any, ground: Any, kind: str, count: int
) -> None:
    cell = curves.Cell(kind=kind, count=count, method="emcid")
    sections = curves._sections(ground, cell)
    assert curves.PICTURES <= curves._pictures(sections) < 1.4 * curves.PICTURES
    edited = {source for source, _ in curves._edits(ground, cell)}
    aliases = {change.subject for s in sections if s.name == "aliases" for change in s.changes}
    assert not aliases & edited
    assert all((change.new is None) == (kind == "forget") for s in sections for change in s.changes)


def test_uce_moves_sources_onto_destinations_and_leaves_kept_names(
    benches: tuple[Any, Any], tiny_pipeline: Path
) -> None:
    uce = benches[1]
    models: Any = small_pipeline(tiny_pipeline)
    checkpoint = open_checkpoint(tiny_pipeline)
    patch = uce.uce_patch(checkpoint, models, [("cat", "pizza")], ["dog"])
    (term,) = patch.terms
    name, form = next(iter(sorted(term.delta.terms.items())))
    assert name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    assert isinstance(form, LowRank)
    weight, change = checkpoint.read(name).double(), form.left.double() @ form.right.double()
    source, aim, kept = (uce._columns(models, [word]) for word in ("cat", "pizza", "dog"))
    # the normal equations of the objective, over sources, kept names and the ridge
    gradient = (
        ((weight + change) @ source - weight @ aim) @ source.T + change @ kept @ kept.T + uce.RIDGE * change
    )
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-3 * float(weight.norm()), rtol=0)
