"""Kill a real run with SIGKILL at seeded times, look at what lies there, resume, and compare every digest."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """surgery: 1
title: A run to be killed
base: {base}
edits:
  - emcid:
      preset: pocket
      concepts:
        - {{source: cat, destination: pizza}}
        - {{source: dog, destination: rocket}}
        - {{source: tree, destination: umbrella}}
        - {{source: bell, destination: butterfly}}
      offsets: {{mode: both, batch: 1, steps: 40}}
      corpus: {{count: 1000}}
sample: {{seeds: 1, steps: 8}}
evaluate: {{samples: 1, held_out: 3}}
"""
FINAL = ("patch.safetensors", "lora.safetensors", "sheet.png", "checkpoint")


def kill_campaign(options: argparse.Namespace) -> bool:
    """Whether every killed run left nothing half-written and, resumed, gave the uninterrupted run's bytes."""
    times = options.times
    with tempfile.TemporaryDirectory(prefix="surgery-kill-") as folder:
        root = Path(folder)
        recipe = root / "recipe.yaml"
        recipe.write_text(RECIPE.format(base=options.base))
        started = time.monotonic()
        run(recipe, root / "whole").wait()
        whole_s = time.monotonic() - started
        wanted = digests(root / "whole")
        if set(FINAL) - {Path(name).parts[0] for name in wanted}:
            print(f"the uninterrupted run did not finish: {sorted(wanted)}")
            return False
        print(f"uninterrupted: {whole_s:.1f} s, {len(wanted)} files")
        chance, good, kills, number = random.Random(options.seed), True, 0, 0
        while kills < times and number < 3 * times:
            number += 1
            moment = chance.uniform(0.02, 0.98) * whole_s
            killed, equal = one_kill(recipe, root / f"killed-{number}", number, moment, wanted)
            kills, good = kills + killed, good and equal
    print(f"{kills} kills: {'all equal' if good else 'NOT EQUAL'}")
    return good and kills == times


def one_kill(
    recipe: Path, out: Path, number: int, moment: float, wanted: dict[str, str]
) -> tuple[bool, bool]:
    """Whether the run was still going when it was killed, and whether all went as it must."""
    process = run(recipe, out)
    try:
        process.wait(timeout=moment)
        state = "finished before"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        state = "killed"
    left = digests(out)
    wrong = [name for name, digest in left.items() if wanted.get(name) != digest]
    unfinished = not (out / "run.json").exists() or readable(out / "run.json")
    started = time.monotonic()
    status = run(recipe, out, *(["--overwrite"] if state == "finished before" else [])).wait()
    again = digests(out)
    good = not wrong and unfinished and status == 0 and again == wanted
    print(
        f"{number:3d}  {state} at {moment:6.1f} s  files there {len(left):2d}  half-written {len(wrong)}  "
        f"resumed in {time.monotonic() - started:6.1f} s  {'equal' if again == wanted else 'DIFFERENT'}",
        flush=True,
    )
    return state == "killed", good


def run(recipe: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "surgery",
        "-q",
        "run",
        str(recipe),
        "-o",
        str(out),
        "--cache",
        f"{out}-cache",
    ]
    return subprocess.Popen([*command, *options], start_new_session=True, stdout=subprocess.DEVNULL)


def digests(out: Path) -> dict[str, str]:
    """Sha256 of every file under a final name; run.json holds clocks and is left out."""
    found = {}
    for name in FINAL:
        path = out / name
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                found[file.relative_to(out).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def readable(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
