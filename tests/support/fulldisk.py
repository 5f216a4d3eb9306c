"""Every writing verb on a full disk; as a program, in a namespace of its own, with a folder to mount on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.older import ROOT

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def namespaces_allowed() -> bool:
    """Whether this system lets a program mount a small disk of its own."""
    if shutil.which("unshare") is None:
        return False
    probe = [*NAMESPACE, "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def run_full(folder: Path) -> dict[str, Any]:
    """What each writing verb did on a full disk that was mounted at ``folder`` for its process alone."""
    command = [*NAMESPACE, sys.executable, "-m", "tests.support.fulldisk", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def fill(disk: Path, room: int) -> None:
    """Use the disk up but for ``room`` bytes."""
    status = os.statvfs(disk)
    size = max(0, status.f_bavail * status.f_frsize - room)
    with (disk / "ballast").open("wb") as ballast:
        ballast.write(bytes(size))


def files(folder: Path) -> dict[str, str]:
    """What lies in a folder: sizes and contents of files by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes().hex()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def verbs(sound: Any, disk: Path) -> Mapping[str, Sequence[object]]:
    """Each writing verb with sound input from elsewhere and its output on the disk."""
    undo = disk / "undo.safetensors"
    return {
        "apply": ("apply", sound.patch, sound.base, "-o", disk / "edited"),
        "apply with undo": ("apply", sound.patch, sound.base, "-o", disk / "edited", "--undo", undo),
        "revert": ("revert", sound.patch, sound.edited, "-o", disk / "back", "--undo", sound.undo),
        "diff": ("diff", sound.base, sound.edited, "-o", disk / "diff.safetensors"),
        "compose": ("compose", sound.patch, sound.second, "-o", disk / "composed.safetensors"),
        "convert to a file": ("convert", sound.base, "-o", disk / "one.safetensors"),
        "convert to a folder": ("convert", sound.single, "-o", disk / "folder"),
        "convert a pickle": ("convert", sound.pickle, "-o", disk / "p.safetensors", "--allow-pickle"),
        "copy": ("copy", "quickstart", disk / "recipe.yaml"),
    }


def trial(arguments: Sequence[object], disk: Path, call: Callable[[list[str]], int]) -> dict[str, Any]:
    """The verb with no room at all, with too little, and with enough; each time what lies on the disk."""
    words = [str(argument) for argument in arguments]
    outcome: dict[str, Any] = {}
    for name, room in (("none", 0), ("little", 8 * 1024)):
        fill(disk, room)
        code = call(words)
        (disk / "ballast").unlink()
        outcome[name] = {"code": code, "left": sorted(files(disk))}
    words.append("--overwrite")
    code = call(words)
    outcome["enough"] = {"code": code, "left": sorted(files(disk))}
    first = files(disk)
    fill(disk, 0)
    code = call(words)
    (disk / "ballast").unlink()
    outcome["again"] = {"code": code, "same": files(disk) == first}
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outcome


def main(disk: Path) -> None:
    import contextlib
    import io
    import tempfile

    import torch
    from safetensors.torch import load_file

    from surgery.cli import call
    from surgery.patch import save_patch
    from tests.bad_input.sound import make_sound
    from tests.support.patches import random_patch

    with tempfile.TemporaryDirectory() as elsewhere:
        sound: Any = make_sound(Path(elsewhere))
        pickle = Path(elsewhere) / "model.ckpt"
        torch.save(load_file(sound.single), pickle)
        second = Path(elsewhere) / "second.safetensors"
        save_patch(random_patch(sound.base, ["vae/decoder.conv_in.weight"]), second)
        known = {name: getattr(sound, name) for name in sound.__dataclass_fields__}
        known |= {"pickle": pickle, "second": second}
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], check=True)
        outcomes = {}
        for name, arguments in verbs(type("Sound", (), known), disk).items():
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                outcomes[name] = trial(arguments, disk, call)
            outcomes[name]["said"] = said.getvalue()
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
