"""What is printed of files that are read as they should be holds nothing that a terminal acts on."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from surgery.cli import call
from surgery.errors import printable
from tests.bad_input.case import Sound
from tests.bad_input.patches import opened, sealed
from tests.support.singles import sd1_tensors, write_single

NASTY = "\x1b[2J\x9b31m\u202e<script>alert(1)</script>"


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_patch_with_escapes_in_its_texts(
    sound: Sound, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    tensors, texts = opened(sound.patch)
    edit = json.loads(texts["sdpatch.edit"]) | {"recipe": NASTY, NASTY: [NASTY]}
    texts["sdpatch.edit"] = json.dumps(edit, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    patch = sealed(tmp_path / "patch", tensors, texts)
    assert call(["inspect", str(patch), *options]) == 0
    said = capsys.readouterr()
    assert said.out == printable(said.out)
    assert said.err == printable(said.err)
    if options:
        assert json.loads(said.out)["provenance"]["recipe"] == NASTY


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_checkpoint_with_escapes_in_its_path_and_notes(
    sound: Sound, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    folder = Path(shutil.copytree(sound.base, tmp_path / "a\x1b[2Jb"))
    (folder / "README.md").write_text(f"---\nlicense: {NASTY}\n---\n# {NASTY}\n", encoding="utf-8")
    single = write_single(tmp_path / "\x9b1m.safetensors", sd1_tensors(), {"modelspec.title": NASTY})
    for path in (folder, single):
        assert call(["inspect", str(path), *options]) == 0
        said = capsys.readouterr()
        assert said.out == printable(said.out)
        assert said.err == printable(said.err)
        assert "<script>" in said.out  # text stays text; pages escape it
    out = tmp_path / "\x1b[2J.safetensors"
    assert call(["convert", str(folder), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == printable(said.out)
    assert load_file(out)
