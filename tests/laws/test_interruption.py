"""Whatever stops a writer, no final name is half-written, and a second run gives the same bytes.

Every writer of the project is stopped at each of its writes, flushes, renames and removals in turn: as a
killed process is (nothing runs afterwards, the file being written is torn), and as a full disk stops it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgery.checkpoint import atomic, convert_checkpoint, open_checkpoint
from surgery.checkpoint.atomic import fault_hook
from surgery.checkpoint.pickles import unpickle_checkpoint
from surgery.errors import SurgeryError
from surgery.export import Knobs, export_patch
from surgery.patch import Patch, apply_patch, load_patch, revert_patch, save_patch
from surgery.store import Store
from tests.support.faults import FullDisk, Kill, Killed, count_steps, names_can_be_swapped
from tests.support.folders import contents, small_weights, write_folder
from tests.support.patches import NAMES, random_patch


@dataclass(frozen=True)
class Inputs:
    """What the writers work on; none of them may write to it."""

    folder: Path
    patch: Patch

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def single(self) -> Path:
        return self.folder / "single.safetensors"

    @property
    def pickle(self) -> Path:
        return self.folder / "model.ckpt"


Write = Callable[[Inputs, Path, bool], object]

KEY = Store.key({"what": "a result"})


def save(inputs: Inputs, place: Path, overwrite: bool) -> object:
    return save_patch(inputs.patch, place / "patch.safetensors", overwrite=overwrite)


def apply(inputs: Inputs, place: Path, overwrite: bool) -> object:
    return apply_patch(
        inputs.patch, inputs.base, place / "edited", undo=place / "undo.safetensors", overwrite=overwrite
    )


def revert(inputs: Inputs, place: Path, overwrite: bool) -> object:
    revert_patch(
        inputs.patch,
        inputs.folder / "edited",
        place / "back",
        undo=inputs.folder / "undo.safetensors",
        overwrite=overwrite,
    )
    return None


def export(target: str, name: str, **knobs: Any) -> Write:
    """The writer of one kind of export."""

    def write(inputs: Inputs, place: Path, overwrite: bool) -> object:
        made = Knobs(**knobs)
        return export_patch(
            inputs.patch, inputs.base, place / name, to=target, knobs=made, overwrite=overwrite
        )

    return write


def to_single(inputs: Inputs, place: Path, overwrite: bool) -> object:
    return convert_checkpoint(open_checkpoint(inputs.base), place / "base.safetensors", overwrite=overwrite)


def to_folder(inputs: Inputs, place: Path, overwrite: bool) -> object:
    return convert_checkpoint(open_checkpoint(inputs.single), place / "folder", overwrite=overwrite)


def into_single(inputs: Inputs, place: Path, overwrite: bool) -> object:
    edited = open_checkpoint(inputs.folder / "edited")
    return convert_checkpoint(edited, place / "like.safetensors", like=inputs.single, overwrite=overwrite)


def unpickle(inputs: Inputs, place: Path, overwrite: bool) -> object:
    return unpickle_checkpoint(inputs.pickle, place / "out.safetensors", overwrite=overwrite)


def put(inputs: Inputs, place: Path, overwrite: bool) -> object:
    return Store(place / "store").put(KEY, {"x": torch.arange(3.0)}, {"loss": 0.5})


WRITERS: Mapping[str, Write] = {
    "save": save,
    "apply": apply,
    "revert": revert,
    "lora": export("universal-lora", "lora.safetensors"),
    "lycoris": export("lycoris", "full.safetensors"),
    "comfy": export("comfy", "comfy.safetensors"),
    "variant": export("variant", "variant"),
    "peft": export("peft", "adapters", transformers="5.23"),
    "merged": export("checkpoint", "merged.safetensors", layout="single"),
    "to_single": to_single,
    "to_folder": to_folder,
    "into_single": into_single,
    "unpickle": unpickle,
    "put": put,
}
each_writer = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    base = write_folder(folder / "base", small_weights())
    patch = random_patch(base, NAMES)
    apply_patch(patch, base, folder / "edited", undo=folder / "undo.safetensors")
    made = Inputs(folder=folder, patch=patch)
    convert_checkpoint(open_checkpoint(base), made.single)
    torch.save({"state_dict": load_file(made.single)}, made.pickle)
    return made


def finals(place: Path) -> dict[str, dict[str, bytes] | bytes]:
    """What stands under final names: the outputs, without what a writer hides while it works."""
    found: dict[str, dict[str, bytes] | bytes] = {}
    root = place / "store" / KEY[:2] if (place / "store").exists() else place
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if not path.name.startswith("."):
            found[path.name] = contents(path) if path.is_dir() else path.read_bytes()
    return found


def hidden(place: Path) -> list[str]:
    return [path.name for path in place.rglob(".*")]


def outcome_of(write: Write, inputs: Inputs, place: Path) -> dict[str, dict[str, bytes] | bytes]:
    place.mkdir()
    write(inputs, place, False)
    return finals(place)


@each_writer
def test_a_kill_at_any_step_leaves_whole_outputs_and_the_next_run_finishes(
    inputs: Inputs, tmp_path: Path, name: str
) -> None:
    write = WRITERS[name]
    before = contents(inputs.folder)
    whole = outcome_of(write, inputs, tmp_path / "whole")
    (tmp_path / "count").mkdir()
    steps = count_steps(lambda: write(inputs, tmp_path / "count", False))
    assert steps >= 4  # at least one write, a flush, a rename, and the flush of the folder
    for at in range(steps):
        place = tmp_path / str(at)
        place.mkdir()
        with pytest.raises(Killed), fault_hook(Kill(at)):
            write(inputs, place, False)
        assert finals(place).items() <= whole.items()
        if finals(place) != whole:
            write(inputs, place, False)
        else:
            write(inputs, place, True)  # killed after the rename: whole, but a second run is told so
        assert finals(place) == whole
        assert hidden(place) == []
    assert contents(inputs.folder) == before


@each_writer
@pytest.mark.parametrize("swap", [True, False], ids=["one-step", "two-steps"])
def test_a_kill_while_replacing_leaves_the_old_or_the_new(
    inputs: Inputs, tmp_path: Path, name: str, swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swap:
        monkeypatch.setattr(atomic, "_swap_names", lambda left, right: False)
    one_step = names_can_be_swapped(tmp_path)
    write = WRITERS[name]
    whole = outcome_of(write, inputs, tmp_path / "whole")

    def with_old(place: Path) -> dict[str, dict[str, bytes] | bytes]:
        old = outcome_of(write, inputs, place)
        for path in place.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-1] + b"~")  # another file of its kind
        return {key: value for key, value in finals(place).items() if value != old[key]}

    with_old(tmp_path / "count")
    steps = count_steps(lambda: write(inputs, tmp_path / "count", True))
    for at in range(steps):
        place = tmp_path / str(at)
        old = with_old(place)
        with pytest.raises(Killed), fault_hook(Kill(at)):
            write(inputs, place, True)
        found = finals(place)
        assert all(found[key] in (old[key], whole[key]) for key in found)
        if one_step:
            assert found.keys() == whole.keys()  # never absent, not even between two steps
        write(inputs, place, True)
        assert finals(place) == whole
        assert hidden(place) == []


@each_writer
def test_a_full_disk_leaves_old_outputs_as_they_were_and_nothing_new(
    inputs: Inputs, tmp_path: Path, name: str
) -> None:
    write = WRITERS[name]
    whole = outcome_of(write, inputs, tmp_path / "whole")
    at = 0
    while True:
        place = tmp_path / str(at)
        place.mkdir()
        try:
            with fault_hook(FullDisk(at)):
                write(inputs, place, False)
        except SurgeryError as error:
            assert "No space left on device" in str(error)
            assert finals(place).items() <= whole.items()
            assert hidden(place) == []
        else:
            break
        at += 1
    assert at >= 2
    assert finals(place) == whole


def test_a_patch_file_that_a_kill_left_is_whole(inputs: Inputs, tmp_path: Path) -> None:
    steps = count_steps(lambda: save(inputs, tmp_path, False))
    place = tmp_path / "killed"
    place.mkdir()
    for at in range(steps):
        with pytest.raises(Killed), fault_hook(Kill(at)):
            save(inputs, place, True)
        if (place / "patch.safetensors").exists():
            assert load_patch(place / "patch.safetensors").changes == inputs.patch.changes
