"""Patches of one base become one, in any order, and come out of it again."""

from pathlib import Path

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, LowRank
from surgery.errors import PatchError
from surgery.patch import (
    Patch,
    Term,
    apply_patch,
    compose_patches,
    diff_checkpoints,
    load_patch,
    make_patch,
    overlaps,
    patch_digest,
    save_patch,
    take_out,
)
from tests.support.folders import CONV_NAME, FC2_NAME, TO_K_NAME, contents, small_weights, write_folder
from tests.support.patches import random_patch


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


@pytest.fixture
def patches(base: Path) -> list[Patch]:
    """Three patches; the first two share a tensor, the third has one of its own."""
    return [
        random_patch(base, [FC2_NAME, TO_K_NAME], seed=1),
        random_patch(base, [TO_K_NAME], seed=2),
        random_patch(base, [CONV_NAME], seed=3),
    ]


def test_the_order_makes_no_difference(base: Path, patches: list[Patch]) -> None:
    digests = {
        patch_digest(compose_patches([patches[i] for i in order], base))
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2))
    }
    assert len(digests) == 1
    nested = compose_patches([compose_patches(patches[:2], base), patches[2]])
    assert patch_digest(nested) in digests


def test_a_composed_patch_does_what_one_made_of_all_terms_does(
    base: Path, patches: list[Patch], tmp_path: Path
) -> None:
    composed = compose_patches(patches, base)
    together = make_patch([term for patch in patches for term in patch.terms], open_checkpoint(base))
    assert composed.changes == together.changes
    save_patch(composed, tmp_path / "patch")
    assert apply_patch(load_patch(tmp_path / "patch"), base, tmp_path / "made").exact


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_what_is_taken_out_leaves_what_the_others_alone_give(
    base: Path, patches: list[Patch], gone: int
) -> None:
    rest = [patch for number, patch in enumerate(patches) if number != gone]
    left = take_out(compose_patches(patches, base), patch_digest(patches[gone])[:12], base)
    assert patch_digest(left) == patch_digest(compose_patches(rest, base))


def test_the_last_part_is_the_very_patch_it_was(base: Path, patches: list[Patch]) -> None:
    composed = compose_patches(patches[:2], base)
    assert patch_digest(take_out(composed, patch_digest(patches[1]), base)) == patch_digest(patches[0])


def test_equal_terms_of_two_patches_are_taken_out_one_at_a_time(base: Path) -> None:
    first, second = random_patch(base, [FC2_NAME]), random_patch(base, [FC2_NAME, CONV_NAME])
    composed = compose_patches([first, second], base)
    assert patch_digest(take_out(composed, patch_digest(first), base)) == patch_digest(second)


def test_a_part_that_is_not_there_is_refused_with_those_that_are(base: Path, patches: list[Patch]) -> None:
    composed = compose_patches(patches[:2], base)
    with pytest.raises(PatchError, match=patch_digest(patches[0])[:12]):
        take_out(composed, patch_digest(patches[2]), base)
    with pytest.raises(PatchError, match="names 1 parts of the patch"):
        take_out(patches[0], patch_digest(patches[0]), base)


def test_the_base_is_asked_for_only_where_patches_meet(base: Path, patches: list[Patch]) -> None:
    compose_patches([patches[0], patches[2]])
    with pytest.raises(PatchError, match=r"1 tensors are touched by several patches .*Name the base"):
        compose_patches(patches[:2])
    other = write_folder(base.parent / "other", small_weights(seed=9))
    with pytest.raises(PatchError, match="Is it another base"):
        compose_patches(patches[:2], other)


def test_patches_that_do_not_belong_together_are_refused(base: Path, patches: list[Patch]) -> None:
    with pytest.raises(PatchError, match="at least two were expected"):
        compose_patches(patches[:1])
    with pytest.raises(PatchError, match="comes twice"):
        compose_patches([patches[0], patches[0]], base)
    other = random_patch(write_folder(base.parent / "other", small_weights(seed=9)), [CONV_NAME])
    with pytest.raises(PatchError, match="Only patches of one base can be composed"):
        compose_patches([patches[0], other])


def test_a_patch_on_top_of_another_is_recognised(base: Path, patches: list[Patch], tmp_path: Path) -> None:
    apply_patch(patches[1], base, tmp_path / "made")
    on_top = random_patch(tmp_path / "made", [TO_K_NAME], seed=5)
    with pytest.raises(PatchError, match="made on top of the other"):
        compose_patches([patches[1], on_top], base)


def test_two_claims_on_one_element_are_refused(base: Path, patches: list[Patch], tmp_path: Path) -> None:
    apply_patch(patches[1], base, tmp_path / "made")
    new_values = diff_checkpoints(base, tmp_path / "made").patch
    with pytest.raises(PatchError, match=rf"{patch_digest(new_values)[:12]}.* both claim 12 elements"):
        compose_patches([patches[1], new_values], base)


def test_a_composed_patch_applied_and_composed_with_new_values_elsewhere(base: Path, tmp_path: Path) -> None:
    weights = small_weights()
    weights["vae"]["decoder.conv_in.weight"] += 1
    new_values = diff_checkpoints(base, write_folder(tmp_path / "edited", weights)).patch
    composed = compose_patches([new_values, random_patch(base, [FC2_NAME])])
    apply_patch(composed, base, tmp_path / "both")
    apply_patch(new_values, base, tmp_path / "one")
    apply_patch(random_patch(base, [FC2_NAME]), tmp_path / "one", tmp_path / "two")
    assert contents(tmp_path / "both") == contents(tmp_path / "two")


def test_common_input_directions_are_measured(base: Path) -> None:
    def patch(right: list[float], source: str) -> Patch:
        form = LowRank(torch.ones(4, 1), torch.tensor([right], dtype=torch.float32))
        return make_patch([Term(delta=Delta({TO_K_NAME: form}), source=source)], open_checkpoint(base))

    first, across, along = patch([1, 0, 0], "a"), patch([0, 2, 0], "b"), patch([3, 4, 0], "c")
    found = {overlap.patches[1]: overlap.keys for overlap in overlaps([first, across, along])}
    assert found[patch_digest(across)] == pytest.approx(0)
    assert [o.keys for o in overlaps([first, along])] == [pytest.approx(0.6)]


def test_rows_of_nothing_and_rows_that_others_make_up_are_no_common_direction(base: Path) -> None:
    first, second = torch.zeros(3, 5), torch.zeros(3, 5)
    first[0, 0] = first[1, 0] = 1.0  # the third row is nothing, the second the first one
    second[0, 1] = 1.0
    patches = [
        make_patch([Term(delta=Delta({FC2_NAME: LowRank(torch.ones(3, 3), right)}))], open_checkpoint(base))
        for right in (first, second)
    ]
    (found,) = overlaps(patches)
    assert found.keys == pytest.approx(0, abs=1e-6)
    assert found.rows == (3, 3)
    nothing = make_patch(
        [Term(delta=Delta({FC2_NAME: LowRank(torch.ones(3, 0), torch.ones(0, 5))}))], open_checkpoint(base)
    )
    (found,) = overlaps([patches[0], nothing])
    assert (found.keys, found.rows) == (0.0, (0, 3))
