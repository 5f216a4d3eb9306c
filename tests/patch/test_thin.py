"""Smaller masks cut from patches by the scores that they carry."""

from pathlib import Path

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, Places, Rescale
from surgery.errors import PatchError
from surgery.patch import (
    Patch,
    Term,
    apply_patch,
    compose_patches,
    load_patch,
    make_patch,
    patch_digest,
    revert_patch,
    save_patch,
    thinned,
)
from tests.support.folders import CONV_NAME, FC2_NAME, TO_K_NAME, contents, small_weights, write_folder
from tests.support.patches import random_patch

WHERE = {FC2_NAME: [1, 2, 3, 5, 6], CONV_NAME: [1, 3, 4]}
SCORES = {FC2_NAME: [0.9, 0.1, 0.2, 0.3, 1.0], CONV_NAME: [0.95, 0.05, 0.15]}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


def mask(base: Path, *, scored: bool = True) -> Patch:
    checkpoint, forms = open_checkpoint(base), {}
    for name, index in WHERE.items():
        places = Places("elements", checkpoint.shapes[name], torch.tensor(index))
        scores = torch.tensor(SCORES[name]) if scored else None
        forms[name] = Rescale(places, torch.tensor(0.0), scores)
    return make_patch([Term(delta=Delta(forms), source="cad")], checkpoint, {"title": "masked"})


def kept(patch: Patch) -> dict[str, list[int]]:
    found = {}
    for name, form in patch.terms[0].delta.terms.items():
        assert isinstance(form, Rescale)
        assert form.places.index is not None
        found[name] = form.places.index.tolist()
    return found


def test_the_largest_scores_stay(base: Path, tmp_path: Path) -> None:
    save_patch(mask(base), tmp_path / "patch")
    patch = load_patch(tmp_path / "patch")
    assert kept(thinned(patch, base, 0.5)) == {FC2_NAME: [1, 5, 6], CONV_NAME: [1]}
    assert kept(thinned(patch, base, 0.375)) == {FC2_NAME: [1, 6], CONV_NAME: [1]}
    assert kept(thinned(patch, base, 0.1)) == {FC2_NAME: [6]}  # a tensor without weights is not in it
    # what is left over of the first tensor's half goes to the second
    assert kept(thinned(patch, base, 0.5, "tensor")) == {FC2_NAME: [1, 5, 6], CONV_NAME: [1]}


def test_of_each_row_the_largest_stay(base: Path) -> None:
    assert open_checkpoint(base).shapes[FC2_NAME] == (3, 5)  # three in the first row, two in the second
    assert kept(thinned(mask(base), base, 0.5, "row")) == {FC2_NAME: [1, 3, 6], CONV_NAME: [1]}


def test_a_smaller_mask_is_applied_taken_out_and_cut_again(base: Path, tmp_path: Path) -> None:
    whole = mask(base)
    patch = thinned(whole, base, 0.5)
    assert patch.provenance["title"] == "masked"
    assert patch.provenance["thinned"] == {"of": patch_digest(whole), "keep": 0.5, "rule": "global"}
    assert apply_patch(patch, base, tmp_path / "edited", undo=tmp_path / "undo").exact
    before, after = (open_checkpoint(one).read(FC2_NAME).flatten() for one in (base, tmp_path / "edited"))
    assert (after != before).nonzero().flatten().tolist() == [1, 5, 6]
    assert not after[[1, 5, 6]].any()
    revert_patch(patch, tmp_path / "edited", tmp_path / "back", undo=tmp_path / "undo")
    assert contents(tmp_path / "back") == contents(base)
    assert kept(thinned(patch, base, 0.5)) == {FC2_NAME: [6], CONV_NAME: [1]}


def test_what_carries_no_scores_or_is_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="no mask of the patch carries scores"):
        thinned(mask(base, scored=False), base, 0.5)
    with pytest.raises(PatchError, match="no mask of the patch carries scores"):
        thinned(random_patch(base, [FC2_NAME]), base, 0.5)
    with pytest.raises(PatchError, match="expected a share above 0, below 1"):
        thinned(mask(base), base, 1.0)
    with pytest.raises(PatchError, match="nothing is left"):
        thinned(mask(base), base, 0.01)
    other = write_folder(tmp_path / "other", small_weights(seed=1))
    with pytest.raises(PatchError, match=FC2_NAME):
        thinned(mask(base), other, 0.5)
    fine = write_folder(tmp_path / "fine", small_weights(torch.float32))
    with pytest.raises(PatchError, match="half precision only"):
        thinned(mask(fine), base, 0.5)
    with pytest.raises(PatchError, match="composed of several patches"):
        thinned(compose_patches([mask(base), random_patch(base, [TO_K_NAME])]), base, 0.5)


def test_masks_without_scores_stay_whole_and_are_told(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint, terms = open_checkpoint(base), []
    for name, scores in ((FC2_NAME, torch.tensor(SCORES[FC2_NAME])), (CONV_NAME, None)):
        places = Places("elements", checkpoint.shapes[name], torch.tensor(WHERE[name]))
        terms.append(Term(delta=Delta({name: Rescale(places, torch.tensor(0.0), scores)}), source=name))
    both = make_patch(terms, checkpoint)
    with caplog.at_level("WARNING"):
        patch = thinned(both, base, 0.4)
    assert "1 of 2 masks carry no scores" in caplog.text
    assert {name: one.changed for name, one in patch.changes.items()} == {FC2_NAME: 2, CONV_NAME: 3}
    assert patch.roots == both.roots
    assert patch.changes[CONV_NAME] == both.changes[CONV_NAME]
    with pytest.raises(PatchError, match="nothing is left of the masks"):
        thinned(both, base, 0.01)


def test_scores_are_told_apart_as_finely_as_the_file_does(base: Path, tmp_path: Path) -> None:
    places = Places("elements", open_checkpoint(base).shapes[FC2_NAME], torch.tensor([1, 2, 3, 5]))
    form = Rescale(places, torch.tensor(0.0), torch.tensor([0.9, 0.10002, 0.10001, 0.10003]))
    whole = make_patch([Term(delta=Delta({FC2_NAME: form}), source="cad")], open_checkpoint(base))
    save_patch(whole, tmp_path / "patch")
    read = load_patch(tmp_path / "patch")
    assert kept(thinned(whole, base, 0.5)) == kept(thinned(read, base, 0.5)) == {FC2_NAME: [1, 2]}
