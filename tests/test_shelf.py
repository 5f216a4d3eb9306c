"""The shelf: a path wins, then a name, and a wrong name is answered with the nearest."""

from pathlib import Path

import pytest

from surgery.errors import SurgeryError
from surgery.shelf import checkpoint_names, checkpoint_path, recipe_names, recipe_path

ROOT = Path(__file__).parents[1]


def test_a_shelf_name_leads_to_the_shipped_file() -> None:
    assert recipe_path("quickstart") == ROOT / "recipes" / "quickstart.yaml"
    assert checkpoint_path("pocket-sd") == ROOT / "checkpoints" / "pocket-sd"


def test_names_are_sorted_and_carry_their_folder() -> None:
    assert recipe_names() == sorted(recipe_names())
    assert "erase/objects" in recipe_names()
    assert "pocket-sd" in checkpoint_names()


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").touch()
    Path("pocket-sd").mkdir()
    assert recipe_path("quickstart") == Path("quickstart")
    assert checkpoint_path("pocket-sd") == Path("pocket-sd")


@pytest.mark.parametrize("name", ["quickstar", "erase/object"])
def test_a_mistyped_recipe_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(SurgeryError, match=f"no recipe '{name}'.*Did you mean '{name}"):
        recipe_path(name)


def test_a_mistyped_checkpoint_is_answered_with_the_nearest() -> None:
    with pytest.raises(SurgeryError, match="no checkpoint 'poket-sd'.*Did you mean 'pocket-sd'"):
        checkpoint_path("poket-sd")


def test_a_name_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(SurgeryError, match="Shipped are: .*quickstart"):
        recipe_path("zzz")


@pytest.mark.parametrize("name", ["../setup", "erase/../quickstart", ""])
def test_a_name_never_leaves_the_shelf(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SurgeryError):
        recipe_path(name)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="is a folder"):
        recipe_path(tmp_path)
