"""The folder of a run: claimed, resumed, finished, never taken from somebody else."""

import json
from pathlib import Path

import pytest

from surgery.checkpoint.atomic import fault_hook
from surgery.errors import SurgeryError
from surgery.execute import claim_folder, locked_folder
from tests.support.faults import Kill, Killed, count_steps


def test_a_new_folder_is_made_and_is_not_resumed(tmp_path: Path) -> None:
    folder = claim_folder(tmp_path / "a" / "run", "plan-1")
    assert folder.path.is_dir()
    assert not folder.resumed


def test_a_stopped_run_of_the_same_plan_goes_on(tmp_path: Path) -> None:
    claim_folder(tmp_path, "plan-1")
    assert claim_folder(tmp_path, "plan-1").resumed


def test_a_stopped_run_of_another_plan_is_refused_and_replaced_only_when_asked(tmp_path: Path) -> None:
    claim_folder(tmp_path, "plan-1").patch.write_text("of plan 1")
    with pytest.raises(SurgeryError, match="already holds a run"):
        claim_folder(tmp_path, "plan-2")
    assert not claim_folder(tmp_path, "plan-2", overwrite=True).resumed
    assert claim_folder(tmp_path, "plan-2", overwrite=True).resumed


def test_a_run_that_was_stopped_before_it_wrote_anything_gives_its_folder_to_another(tmp_path: Path) -> None:
    claim_folder(tmp_path, "plan-1").cache.mkdir()
    assert not claim_folder(tmp_path, "plan-2").resumed
    assert claim_folder(tmp_path, "plan-2").resumed


def finished(path: Path, plan: str) -> None:
    """A run that wrote a patch, a LoRA and a checkpoint."""
    folder = claim_folder(path, plan, overwrite=True)
    folder.patch.write_text(plan)
    folder.lora.write_text(plan)
    folder.checkpoint.mkdir(exist_ok=True)
    (folder.checkpoint / "model_index.json").write_text("{}")
    folder.finish({"plan": plan})


def test_a_finished_run_stays_whole_until_the_one_that_replaces_it_is_finished(tmp_path: Path) -> None:
    finished(tmp_path, "plan-1")
    with pytest.raises(SurgeryError, match="--overwrite"):
        claim_folder(tmp_path, "plan-1")
    folder = claim_folder(tmp_path, "plan-2", overwrite=True)
    folder.patch.write_text("plan-2")
    assert (tmp_path / "patch.safetensors").read_text() == "plan-1"
    assert json.loads((tmp_path / "run.json").read_text()) == {"plan": "plan-1"}
    folder = claim_folder(tmp_path, "plan-2", overwrite=True)
    assert folder.resumed
    assert folder.finish({"plan": "plan-2"}).patch.read_text() == "plan-2"
    assert {path.name for path in tmp_path.iterdir()} == {"patch.safetensors", "run.json"}


def test_a_replacement_stopped_at_any_step_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    finished(tmp_path / "whole", "plan-1")
    for step in range(count_steps(lambda: finished(tmp_path / "whole", "plan-2"))):
        out = tmp_path / str(step)
        finished(out, "plan-1")
        with pytest.raises(Killed), fault_hook(Kill(step)):
            finished(out, "plan-2")
        texts = [path.read_text() for path in out.glob("*.safetensors")]
        assert len(texts) == 2  # none is lost at any time
        if (out / "run.json").exists():
            assert set(texts) == {json.loads((out / "run.json").read_text())["plan"]}
        finished(out, "plan-2")
        assert {path.read_text() for path in out.glob("*.safetensors")} == {"plan-2"}
        assert not [path.name for path in out.iterdir() if path.name.startswith("unfinished")]


def test_foreign_files_are_named_and_survive_overwriting(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(SurgeryError, match=r"diary\.txt"):
        claim_folder(tmp_path, "plan-1")
    claim_folder(tmp_path, "plan-1", overwrite=True).finish({})
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_a_folder_of_other_things_in_the_checkpoint_s_place_survives_overwriting(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "diary.txt").write_text("mine")
    with pytest.raises(SurgeryError, match="a folder of other files"):
        claim_folder(tmp_path, "plan-1", overwrite=True)
    assert (tmp_path / "checkpoint" / "diary.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(SurgeryError, match="is a file"):
        claim_folder(tmp_path / "run", "plan-1")


def test_a_damaged_claim_counts_as_another_run(tmp_path: Path) -> None:
    claim_folder(tmp_path, "plan-1").patch.write_text("of plan 1")
    (tmp_path / "unfinished.json").write_text("{")
    with pytest.raises(SurgeryError, match="already holds"):
        claim_folder(tmp_path, "plan-1")


def test_a_resumed_run_keeps_what_is_finished(tmp_path: Path) -> None:
    claim_folder(tmp_path, "plan-1")
    (tmp_path / "patch.safetensors").write_text("whole")
    claim_folder(tmp_path, "plan-1")
    assert (tmp_path / "patch.safetensors").read_text() == "whole"


def test_what_a_killed_writer_left_is_no_foreign_file(tmp_path: Path) -> None:
    (tmp_path / ".unfinished.json.17.17.c4e99aa5.partial").write_text("torn")
    assert not claim_folder(tmp_path, "plan-1").resumed


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run"):
        with pytest.raises(SurgeryError, match="another run is writing"), locked_folder(tmp_path / "run"):
            pass
        assert not claim_folder(tmp_path / "run", "plan-1").resumed
    with locked_folder(tmp_path / "run"):
        assert claim_folder(tmp_path / "run", "plan-1").resumed
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["unfinished.json"]
