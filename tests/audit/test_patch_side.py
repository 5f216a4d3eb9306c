"""A patch as something to audit, with its base and alone."""

from pathlib import Path

import pytest
import torch

from surgery.audit import AuditOptions, audit_patch
from surgery.audit.patch_side import PatchAlone, PatchedBase, change_alone, expectation, open_patch, recorded
from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, LowRank, Operator, Replace, Rescale
from surgery.delta.places import Kind, Places
from surgery.errors import PatchError
from surgery.patch import Patch, Term, apply_patch, make_patch, patch_digest, save_patch
from tests.support.folders import CONV_NAME, FC2_NAME, TO_K_NAME, small_weights, write_folder
from tests.support.patches import random_form, random_patch


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


def saved(patch: Patch, folder: Path) -> Path:
    save_patch(patch, folder / "patch.safetensors")
    return folder / "patch.safetensors"


def halved(base: Path) -> Patch:
    """A patch that halves some elements: what they change by, only the base can tell."""
    checkpoint = open_checkpoint(base)
    places = Places("elements", checkpoint.entry(FC2_NAME).shape, torch.tensor([1, 4, 7]))
    term = Term(
        delta=Delta(terms={FC2_NAME: Rescale(places=places, factors=torch.full((3,), 0.5))}), source="x"
    )
    return make_patch([term], checkpoint)


def test_blocks_of_a_patched_base_are_the_weight_before_and_after(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    side = open_patch(saved(patch, tmp_path), open_checkpoint(base))
    assert isinstance(side, PatchedBase)
    assert side.has_base
    weight = open_checkpoint(base).read(CONV_NAME)
    [block] = side.blocks(CONV_NAME)
    assert torch.equal(block.before, weight.flatten(1))
    assert torch.equal(block.after, patch.edited(CONV_NAME, weight).flatten(1))


def test_tensors_that_the_patch_leaves_alone_are_listed_and_not_read(base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    side = open_patch(saved(random_patch(base, [FC2_NAME]), tmp_path), checkpoint)
    assert side.tensors.keys() == checkpoint.tensors.keys()
    assert list(side.blocks(TO_K_NAME)) == []


def test_a_patch_alone_is_its_change_upon_nothing(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [CONV_NAME], strength=0.5)
    side = open_patch(saved(patch, tmp_path), None)
    assert isinstance(side, PatchAlone)
    assert not side.has_base
    assert list(side.tensors) == [CONV_NAME]
    form = random_form(open_checkpoint(base).entry(CONV_NAME).shape, 0)
    assert isinstance(form, LowRank)
    [block] = side.blocks(CONV_NAME)
    assert not block.before.any()
    # factors are put on a grid when a patch is made
    assert torch.allclose(block.after, 0.5 * form.left @ form.right, atol=1e-3)


def test_changes_of_several_terms_add_up(base: Path) -> None:
    patch = random_patch(base, [FC2_NAME, FC2_NAME])
    parts = [make_patch([term], open_checkpoint(base)) for term in patch.terms]
    both, first, second = (change_alone(one, FC2_NAME) for one in (patch, *parts))
    assert both is not None
    assert first is not None
    assert second is not None
    assert torch.allclose(both, first + second, atol=1e-6)


def test_a_scaling_has_no_change_of_its_own(base: Path, tmp_path: Path) -> None:
    patch = halved(base)
    assert change_alone(patch, FC2_NAME) is None
    assert list(open_patch(saved(patch, tmp_path), None).blocks(FC2_NAME)) == []


def test_what_a_patch_records_of_a_tensor(base: Path) -> None:
    patch = halved(base)
    found = recorded(patch, FC2_NAME)
    change = patch.changes[FC2_NAME]
    assert found.forms == ("Rescale",)
    assert (found.changed, found.largest, found.norm) == (change.changed, change.largest, change.norm)
    assert found.changed == 3
    assert recorded(random_patch(base, [FC2_NAME, FC2_NAME]), FC2_NAME).forms == ("LowRank",)


def test_the_facts_of_a_patch_name_it_and_its_parts(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base, [FC2_NAME, CONV_NAME])
    facts = open_patch(saved(patch, tmp_path), None).facts["patch"]
    assert facts["digest"] == patch_digest(patch)
    assert facts["tensors"] == 2
    assert facts["terms"] == [{"source": term.source, "strength": 1.0} for term in patch.terms]
    assert {term.source for term in patch.terms} == {"edit 0", "edit 1"}
    both = open_patch(tmp_path / "patch.safetensors", open_checkpoint(base)).facts
    assert both.keys() == {"base", "patch"}


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = open_checkpoint(write_folder(tmp_path / "other", small_weights(seed=9)))
    with pytest.raises(PatchError, match="was made for"):
        open_patch(saved(random_patch(base), tmp_path), other)


def test_how_a_checkpoint_stands_to_an_expected_patch(base: Path, tmp_path: Path) -> None:
    patch = random_patch(base)
    file = saved(patch, tmp_path)
    apply_patch(patch, base, tmp_path / "edited")
    assert expectation(file, tmp_path / "edited")["state"] == "after"
    assert expectation(file, base) == {**expectation(file, base), "patch": str(file), "state": "before"}


@pytest.mark.parametrize("spectra", [True, False])
@pytest.mark.parametrize(
    ("kind", "structure", "rows"),
    [("rows", "rows", 1), ("columns", "columns", 3), ("elements", "block", 1), ("all", "everything", 3)],
)
def test_places_that_a_patch_alone_sets_are_told_without_its_base(
    base: Path, tmp_path: Path, kind: Kind, structure: str, rows: int, spectra: bool
) -> None:
    checkpoint = open_checkpoint(base)
    weight = checkpoint.read(FC2_NAME)
    index = None if kind == "all" else torch.tensor([1])
    places = Places(kind, tuple(weight.shape), index)
    forms = {FC2_NAME: Replace(places, places.take(weight) + 1)}
    patch = make_patch([Term(delta=Delta(terms=forms), source="x")], checkpoint)
    record = audit_patch(saved(patch, tmp_path), None, AuditOptions(spectra=spectra))
    [row] = record.tensors
    assert (row.state, row.structure, row.rows[0]) == ("changed", structure, rows)
    assert row.changed == forms[FC2_NAME].new.numel()
    assert row.spectrum is None


def test_a_map_of_inputs_alone_has_no_spectrum(base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    inputs = checkpoint.entry(TO_K_NAME).shape[1]
    form = Operator(torch.randn(inputs, 1), torch.randn(1, inputs))
    patch = make_patch([Term(delta=Delta(terms={TO_K_NAME: form}), source="x")], checkpoint)
    [row] = audit_patch(saved(patch, tmp_path)).tensors
    assert (row.state, row.spectrum) == ("changed", None)
