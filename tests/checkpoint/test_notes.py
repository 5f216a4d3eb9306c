"""Title and licence come from where people write them, as plain short texts."""

from pathlib import Path

import pytest

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.notes import notes_of_folder, short
from tests.support.folders import small_weights, write_folder
from tests.support.singles import sd1_tensors, write_single


@pytest.mark.parametrize(
    ("readme", "notes"),
    [
        (
            "---\nlicense: creativeml-openrail-m\ntags:\n- x\n---\n\n# Stable Diffusion v1-5\n# Two\n",
            {"title": "Stable Diffusion v1-5", "license": "creativeml-openrail-m"},
        ),
        (
            "---\r\nlicense: other\r\nlicense_name: 'own'\r\nlicense_link: http://x/z\r\n"
            'title: "A: B"\r\n---\r\n',
            {"title": "A: B", "license": "other, own, http://x/z"},
        ),
        ("# Only a heading\n", {"title": "Only a heading"}),
        ("\ufeff---\nlicense: mit\n---", {"license": "mit"}),
        ("---\nlicense:\n---\nno heading", {}),
        ("license: mit\n", {}),
        ("", {}),
    ],
)
def test_a_folder_says_it_in_its_readme(tmp_path: Path, readme: str, notes: dict[str, str]) -> None:
    (tmp_path / "README.md").write_text(readme, encoding="utf-8", newline="")
    assert notes_of_folder(tmp_path) == notes


def test_a_folder_without_a_readable_readme_says_nothing(tmp_path: Path) -> None:
    assert notes_of_folder(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
    assert notes_of_folder(tmp_path) == {}


def test_a_single_file_says_it_in_its_metadata(tmp_path: Path) -> None:
    metadata = {"modelspec.title": "My\x1b[31m model", "modelspec.license": " CC0 ", "modelspec.author": "me"}
    opened = open_checkpoint(write_single(tmp_path / "x.safetensors", sd1_tensors(), metadata))
    assert opened.notes == {"title": "My\\x1b[31m model", "license": "CC0"}


def test_a_checkpoint_folder_has_its_notes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", small_weights())
    assert open_checkpoint(folder).notes == {}
    (folder / "README.md").write_text("# A\u202e model")
    assert open_checkpoint(folder).notes == {"title": "A\\u202e model"}


def test_long_and_many_lined_texts_become_short_lines() -> None:
    assert short("a\nb\tc  d") == "a b c d"
    assert len(short("x" * 10_000)) == 200
    assert len(short("\x1b" * 10_000)) == 200
