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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

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


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is killed: a command that writes into a folder, the files that count, and its record."""

    command: Callable[[Path, bool], list[str]]
    final: tuple[str, ...]
    record: str


def kill_campaign(options: argparse.Namespace) -> bool:
    """Whether every killed run left nothing half-written and, resumed, gave the uninterrupted run's bytes."""
    times = options.times
    with tempfile.TemporaryDirectory(prefix="surgery-kill-") as folder:
        root = Path(folder)
        job = {"run": recipe_job, "train": training_job}[options.what](root, options.base)
        started = time.monotonic()
        begin(job, root / "whole").wait()
        whole_s = time.monotonic() - started
        wanted = digests(job, root / "whole")
        if set(job.final) - {Path(name).parts[0] for name in wanted}:
            print(f"the uninterrupted run did not finish: {sorted(wanted)}")
            return False
        print(f"uninterrupted: {whole_s:.1f} s, {len(wanted)} files")
        chance, good, kills, number = random.Random(options.seed), True, 0, 0
        while kills < times and number < 3 * times:
            number += 1
            moment = chance.uniform(0.02, 0.98) * whole_s
            killed, equal = one_kill(job, root / f"killed-{number}", number, moment, wanted)
            kills, good = kills + killed, good and equal
    print(f"{kills} kills: {'all equal' if good else 'NOT EQUAL'}")
    return good and kills == times


def recipe_job(root: Path, base: str) -> Job:
    recipe = root / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=base))
    return Job(
        command=lambda out, again: [
            *("run", str(recipe), "-o", str(out), "--cache", f"{out}-cache"),
            *(["--overwrite"] if again else []),
        ],
        final=("patch.safetensors", "lora.safetensors", "sheet.png", "checkpoint"),
        record="run.json",
    )


def training_job(root: Path, base: str) -> Job:
    pictures = root / "pictures"
    pictures.mkdir()
    chance = np.random.default_rng(0)
    for number in range(40):
        pixels = np.full((64, 64, 3), chance.integers(0, 255, 3), np.uint8)
        pixels[16:48, 16:48] = chance.integers(0, 255, 3)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    knobs = ("--steps", "60", "--batch", "8", "--check-every", "10", "--patience", "9", "--rank", "8")
    return Job(
        command=lambda out, again: [
            *("train", str(pictures), "--base", base, *knobs, "-o", str(out / "look.safetensors")),
            *(["--overwrite"] if again else []),
        ],
        final=("look.safetensors",),
        record="look.safetensors.training/losses.jsonl",
    )


def one_kill(job: Job, out: Path, number: int, moment: float, wanted: dict[str, str]) -> tuple[bool, bool]:
    """Whether the run was still going when it was killed, and whether all went as it must."""
    process = begin(job, out)
    try:
        process.wait(timeout=moment)
        state = "finished before"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        state = "killed"
    left = digests(job, out)
    wrong = [name for name, digest in left.items() if wanted.get(name) != digest]
    unfinished = not (out / job.record).exists() or readable(out / job.record)
    started = time.monotonic()
    status = begin(job, out, again=state == "finished before").wait()
    again = digests(job, out)
    good = not wrong and unfinished and status == 0 and again == wanted
    print(
        f"{number:3d}  {state} at {moment:6.1f} s  files there {len(left):2d}  half-written {len(wrong)}  "
        f"resumed in {time.monotonic() - started:6.1f} s  {'equal' if again == wanted else 'DIFFERENT'}",
        flush=True,
    )
    return state == "killed", good


def begin(job: Job, out: Path, *, again: bool = False) -> subprocess.Popen[bytes]:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "surgery", "-q", *job.command(out, again)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def digests(job: Job, out: Path) -> dict[str, str]:
    """Sha256 of every file under a final name; records hold clocks and are left out."""
    found = {}
    for name in job.final:
        path = out / name
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                found[file.relative_to(out).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def readable(path: Path) -> bool:
    """Whether a record is whole: one JSON value, or one in each line."""
    try:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text)
    except ValueError:
        return False
    return True
