"""Packaging: what setup.cfg lists is what lies on disk, and the wheel has everything a user needs."""

import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from surgery import __version__
from surgery.shelf import recipe_names

ROOT = Path(__file__).parents[1]
SHELVES = {"surgery._recipes": "recipes", "surgery._checkpoints": "checkpoints"}


@pytest.fixture(scope="session")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built offline: from a copy of the sources an sdist, from the sdist a wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_sources(folder / "source")
    with tarfile.open(build("sdist", folder / "source", folder)) as archive:
        archive.extractall(folder / "sdist", filter="data")
    [unpacked] = (folder / "sdist").iterdir()
    with zipfile.ZipFile(build("wheel", unpacked, folder)) as packed:
        packed.extractall(folder / "wheel")
    return folder / "wheel"


def build(kind: str, source: Path, target: Path) -> Path:
    """An sdist or wheel of ``source`` in ``target``, made by the build backend itself, without an index."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    command = [sys.executable, "-W", "error", "-c", code, str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = target.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return built


def copy_sources(target: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("surgery", "recipes", "checkpoints"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, target / name)


def files_under(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_listed_packages_are_the_folders_on_disk(config: configparser.ConfigParser) -> None:
    modules = {path.parent.relative_to(ROOT) for path in (ROOT / "surgery").rglob("*.py")}
    on_disk = {".".join(folder.parts) for folder in modules}
    listed = config["options"]["packages"].split()
    assert set(listed) == on_disk | set(SHELVES)
    assert listed == sorted(listed)


def test_every_code_folder_says_what_it_is() -> None:
    folders = {path.parent for path in (ROOT / "surgery").rglob("*.py")}
    for folder in folders:
        assert (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""'), folder


def test_only_surgery_is_installed(wheel: Path) -> None:
    tops = {path.name for path in wheel.iterdir()}
    assert tops == {"surgery", f"sd_surgery-{__version__}.dist-info"}


def test_the_wheel_has_every_module(wheel: Path) -> None:
    in_wheel = {
        name for name in files_under(wheel / "surgery") if not name.startswith(("_recipes", "_check"))
    }
    assert in_wheel == files_under(ROOT / "surgery")


@pytest.mark.parametrize(("package", "shelf"), SHELVES.items())
def test_the_wheel_has_every_file_of_the_shelves(wheel: Path, package: str, shelf: str) -> None:
    assert files_under(wheel / package.replace(".", "/")) == files_under(ROOT / shelf)


def test_the_unpacked_wheel_finds_its_shelves(wheel: Path) -> None:
    code = "from surgery.shelf import *; print(recipe_names(), recipe_path('quickstart'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=wheel, capture_output=True, text=True, check=True)
    assert str(recipe_names()) in done.stdout
    assert str(wheel / "surgery" / "_recipes" / "quickstart.yaml") in done.stdout


def test_the_wheel_installs_the_program_and_carries_its_licence(wheel: Path) -> None:
    info = wheel / f"sd_surgery-{__version__}.dist-info"
    assert "surgery = surgery.cli:main" in (info / "entry_points.txt").read_text()
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in files_under(info)}
    assert "License: Apache-2.0" in (info / "METADATA").read_text()


def test_the_floors_allow_what_both_environments_pin(config: configparser.ConfigParser) -> None:
    floors = dict(line.split(">=") for line in config["options"]["install_requires"].split())
    for file in ("constraints.txt", "constraints-older.txt"):
        pins = read_pins(ROOT / "scripts" / file)
        for name, floor in floors.items():
            assert version(pins[name.lower()]) >= version(floor), (file, name)


def test_the_older_environment_stands_at_the_floors_of_the_model_libraries(
    config: configparser.ConfigParser,
) -> None:
    floors = dict(line.split(">=") for line in config["options"]["install_requires"].split())
    pins = read_pins(ROOT / "scripts" / "constraints-older.txt")
    for name in ("diffusers", "peft", "transformers"):
        floor = version(floors[name])
        assert version(pins[name])[: len(floor)] == floor


def test_torch_s_floor_is_not_above_2_11(config: configparser.ConfigParser) -> None:
    floors = dict(line.split(">=") for line in config["options"]["install_requires"].split())
    assert version("2.6") <= version(floors["torch"]) <= version("2.11")


def read_pins(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return {
        name.lower(): pin for name, pin in (line.split("==") for line in lines if not line.startswith("#"))
    }


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_the_shipped_checkpoints_take_at_most_40_megabytes() -> None:
    sizes = [path.stat().st_size for path in (ROOT / "checkpoints").rglob("*") if path.is_file()]
    assert sum(sizes) <= 40e6


def test_pyproject_holds_only_the_build_system() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    assert [line for line in lines if line.startswith("[")] == ["[build-system]"]
