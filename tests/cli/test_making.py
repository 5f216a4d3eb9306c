"""The verbs that make patches: diff and compose."""

from pathlib import Path

import pytest
import torch

from surgery.checkpoint import open_checkpoint
from surgery.delta import Delta, Places, Rescale
from surgery.patch import Term, load_patch, make_patch, patch_digest, save_patch
from tests.cli.conftest import Call
from tests.support.folders import CONV_NAME, FC2_NAME, contents, small_weights, write_folder
from tests.support.patches import random_patch


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "base", small_weights())


@pytest.fixture
def patches(base: Path, tmp_path: Path) -> list[Path]:
    """Two patches of one tensor, and one of another."""
    made = []
    for number, name in enumerate((FC2_NAME, FC2_NAME, CONV_NAME)):
        made.append(tmp_path / f"patch-{number}")
        save_patch(random_patch(base, [name], seed=number), made[-1])
    return made


def test_diff_then_apply_makes_the_edited_checkpoint(
    surgery: Call, base: Path, patches: list[Path], tmp_path: Path
) -> None:
    edited, found, made = (tmp_path / name for name in ("edited", "found", "made"))
    assert surgery("apply", patches[0], base, "-o", edited).code == 0
    done = surgery("diff", base, edited, "-o", found)
    assert done.code == 0
    assert "weights of 1 tensors differ; exact" in done.out
    assert surgery("apply", found, base, "-o", made).code == 0
    assert contents(made) == contents(edited)


def test_diff_of_equal_checkpoints_writes_nothing(surgery: Call, base: Path, tmp_path: Path) -> None:
    done = surgery("diff", base, base, "-o", tmp_path / "found")
    assert done.code == 1
    assert "there is nothing to write" in done.err
    assert not (tmp_path / "found").exists()


def test_diff_at_a_rank_says_how_far_off_it_is(
    surgery: Call, base: Path, patches: list[Path], tmp_path: Path
) -> None:
    assert surgery("apply", patches[0], base, "-o", tmp_path / "edited").code == 0
    done = surgery("diff", base, tmp_path / "edited", "-o", tmp_path / "found", "--rank", 1)
    assert done.code == 0
    assert "off by at most" in done.out


def test_compose_says_where_patches_meet_and_takes_a_part_out_again(
    surgery: Call, base: Path, patches: list[Path], tmp_path: Path
) -> None:
    done = surgery("compose", *patches, "-o", tmp_path / "all", "--base", base)
    assert done.code == 0
    assert "3 terms, 2 tensors" in done.out
    assert f"rows of {FC2_NAME}; their inputs agree up to a cosine of" in done.out
    (met,) = surgery("compose", *patches, "-o", tmp_path / "j", "--base", base, "--json").json["overlaps"]
    assert (met["tensor"], met["rows"]) == (FC2_NAME, [3, 3])
    gone = patch_digest(load_patch(patches[2]))[:12]
    assert surgery("compose", tmp_path / "all", "--without", gone, "-o", tmp_path / "two").code == 0
    assert surgery("compose", *patches[:2], "-o", tmp_path / "both", "--base", base).code == 0
    assert (tmp_path / "two").read_bytes() == (tmp_path / "both").read_bytes()


def test_compose_counts_weights_that_two_masks_take(surgery: Call, base: Path, tmp_path: Path) -> None:
    checkpoint, made = open_checkpoint(base), []
    for number, places in enumerate(([0, 3, 4], [3, 4, 5])):
        where = Places("elements", checkpoint.shapes[FC2_NAME], torch.tensor(places))
        term = Term(delta=Delta({FC2_NAME: Rescale(where, torch.tensor(0.5 * number))}), source="cad")
        made.append(tmp_path / f"mask-{number}")
        save_patch(make_patch([term], checkpoint), made[-1])
    done = surgery("compose", *made, "-o", tmp_path / "all", "--base", base)
    assert done.code == 0
    assert "2 weights are masked by two of them: the stronger mask counts" in done.out
    assert surgery("compose", *made, "-o", tmp_path / "j", "--base", base, "--json").json["shared_masks"] == 2


def test_thin_cuts_a_smaller_mask(surgery: Call, base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    where = Places("elements", checkpoint.shapes[FC2_NAME], torch.tensor([1, 3, 4, 5]))
    form = Rescale(where, torch.tensor(0.0), torch.tensor([0.2, 1.0, 0.1, 0.4]))
    term = Term(delta=Delta({FC2_NAME: form}), source="cad")
    save_patch(make_patch([term], checkpoint), tmp_path / "mask")
    done = surgery("thin", tmp_path / "mask", "--keep", 0.5, "--base", base, "-o", tmp_path / "less")
    assert done.code == 0
    assert "2 of 4 changed weights" in done.out
    told = surgery(
        "thin", tmp_path / "mask", "--keep", 0.5, "--base", base, "-o", tmp_path / "j", "--json"
    ).json
    assert (told["weights"], told["before"]) == (2, 4)
    assert surgery("thin", tmp_path / "mask", "--keep", 1, "--base", base, "-o", tmp_path / "x").code == 2


def test_compose_asks_for_the_base_where_it_is_needed(
    surgery: Call, patches: list[Path], tmp_path: Path
) -> None:
    done = surgery("compose", *patches, "-o", tmp_path / "all")
    assert done.code == 1
    assert "Name the base" in done.err
    assert not (tmp_path / "all").exists()


def test_without_and_several_patches_is_2(surgery: Call, patches: list[Path], tmp_path: Path) -> None:
    assert surgery("compose", *patches, "-o", tmp_path / "all", "--without", "0").code == 2
