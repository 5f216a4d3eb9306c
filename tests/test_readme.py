"""The README: every `surgery …` line, command in its text and Python block runs, in one folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from surgery.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One thing that the README tells its reader to do."""

    kind: str
    text: str

    def command(self) -> list[str]:
        if self.kind == "python":
            return [sys.executable, "-c", self.text]
        return [sys.executable, "-m", "surgery", *shlex.split(self.text, comments=True)[1:]]


def blocks() -> list[tuple[str, str]]:
    return FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def steps() -> list[Step]:
    found = []
    for language, text in blocks():
        if language == "python":
            found.append(Step("python", text))
        lines = text.replace("\\\n", " ").splitlines()
        found += [Step("surgery", line) for line in lines if line.startswith("surgery ")]
    return found


def inline() -> list[Step]:
    """Whole commands in running text; a verb alone is only spoken of."""
    text = FENCE.sub("", (ROOT / "README.md").read_text(encoding="utf-8")).replace("\n", " ")
    spans = re.findall(r"`(surgery [^`]+)`", text)
    return [Step("surgery", span) for span in dict.fromkeys(spans) if len(span.split()) > 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a newcomer has it after scripts/quickstart."""
    place = tmp_path_factory.mktemp("readme")
    for shelf in ("recipes", "checkpoints"):
        shutil.copytree(ROOT / shelf, place / shelf)
    run(Step("surgery", "surgery run recipes/quickstart.yaml -o out/quickstart"), place)
    return place


def pickled(place: Path) -> None:
    """``MODEL.ckpt``, as older programs write it."""
    run(Step("surgery", "surgery convert pocket-sd -o out/to-pickle.safetensors --overwrite"), place)
    torch.save({"state_dict": load_file(place / "out" / "to-pickle.safetensors")}, place / "MODEL.ckpt")


def run(step: Step, place: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    done = subprocess.run(
        step.command(), cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{step.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_quickstart_writes_what_the_readme_promises(folder: Path) -> None:
    promised = re.findall(r"^\| `(\w+(?:/|\.\w+))` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    written = {path.name + "/" * path.is_dir() for path in (folder / "out" / "quickstart").iterdir()}
    assert len(promised) >= 5
    assert set(promised) <= written


@pytest.mark.slow
@pytest.mark.parametrize("step", steps(), ids=lambda step: step.text[:60].strip().replace("\n", " "))
def test_what_the_readme_shows_works(step: Step, folder: Path) -> None:
    run(step, folder)


@pytest.mark.slow
@pytest.mark.parametrize("step", inline(), ids=lambda step: step.text[:60])
def test_commands_in_running_text_work(step: Step, folder: Path) -> None:
    if "MODEL.ckpt" in step.text:
        pickled(folder)
    run(step, folder)


def test_commands_in_running_text_are_found() -> None:
    assert "surgery recipes schema" in {step.text for step in inline()}
    assert any("--allow-pickle" in step.text for step in inline())


def test_the_line_for_the_shell_completes() -> None:
    (line,) = re.findall(r"`(eval .*?)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{line} && complete -p surgery"],
        env={**os.environ, "PATH": beside},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "surgery_completion" in done.stdout


@pytest.mark.slow
def test_revert_gives_the_checkpoint_back_as_the_readme_says(folder: Path) -> None:
    for path in (folder / "checkpoints" / "pocket-sd").rglob("*"):
        if path.is_file():
            back = folder / "out" / "back" / path.relative_to(folder / "checkpoints" / "pocket-sd")
            assert back.read_bytes() == path.read_bytes(), path


def test_every_recipe_in_the_readme_is_sound() -> None:
    recipes = [text for language, text in blocks() if language == "yaml"]
    assert recipes
    for text in recipes:
        parse_recipe(text)


def test_the_readme_shows_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for command in ("    scripts/quickstart", "    scripts/test"):
        assert command in lines


def test_every_verb_stands_in_the_readme() -> None:
    from surgery.cli.program import GROUPS

    shown = {step.text.split()[1] for step in steps() if step.kind == "surgery"}
    assert shown == {verb for verbs in GROUPS.values() for verb in verbs}


def test_every_file_that_the_readme_points_to_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"`?(scripts/\w+)", text):
        assert os.access(ROOT / script, os.X_OK), script
