"""What evaluations ask and find, and the files that hold it."""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.outputs import refuse_existing, refuse_foreign_files
from surgery.errors import JudgeError, SurgeryError, raise_all
from surgery.evaluate import (
    DebiasEffect,
    EditEffect,
    ProbeResult,
    Sampling,
    as_dict,
    debias_dict,
    probes_dict,
    suite_fault,
)
from surgery.record import JSON, Finding, Score
from surgery.report import ProbeLine, ShareBar, probe_chart, share_chart
from surgery.study.probing import Resurrection
from surgery.study.words import Words

RECORD: Final = "evaluation.json"
PLOT: Final = "evaluation.png"
PROBES: Final = "probes.png"
CACHE: Final = "cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What suites found: the papers' numbers, then section by section.

    ``balance`` is what was found of debiased phrases; None where no suite asked for it.
    """

    headlines: tuple[Score, ...]
    sections: Mapping[str, EditEffect]
    balance: DebiasEffect | None
    findings: tuple[Finding, ...]
    probes: tuple[ProbeResult, ...] = ()
    resurrections: tuple[Resurrection, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to evaluate, and how.

    Attributes:
        suites: Names of suites; none for ``update``, or ``debias``, or both, by what was edited.
        samples: Pictures for each prompt.
        group_samples: The same of debiased phrases, whose pictures are counted by group.
        steps: Of the sampler.
        guidance: Guidance scale.
        seed: Where all seeds start.
        batch: Pictures at a time, at most; None for the default.
        held_out: How many unedited names are looked at; None for all.
        drawings: A folder of pictures of how it should look, for the Fréchet distance of ``quality``.
        probes: Whether predictions are probed, too.
        resurrection: Whether it is tried to draw each edited concept back.
    """

    suites: tuple[str, ...] = ()
    samples: int = 2
    group_samples: int = 16
    steps: int = 25
    guidance: float = 5.0
    seed: int = 0
    batch: int | None = None
    held_out: int | None = None
    drawings: Path | None = None
    probes: bool = False
    resurrection: bool = False

    def sampling(self, words: Words) -> Sampling:
        """How pictures are drawn."""
        some = Sampling(
            templates=words.templates("test"),
            samples=self.samples,
            seed=self.seed,
            steps=self.steps,
            guidance=self.guidance,
        )
        return some if self.batch is None else replace(some, batch=self.batch)


def refuse_evaluation(out: Path, wish: Wish, *, cache: Path | None = None, overwrite: bool = False) -> None:
    """Refuse, before anything is loaded, suites that there are not and a folder that holds other things.

    Raises:
        JudgeError: when there is no suite of a name.
        SurgeryError: when ``out`` is a file, holds other files or, without ``overwrite``, an evaluation; when
            ``cache`` is a file.
    """
    raise_all(JudgeError, [fault for name in wish.suites if (fault := suite_fault(name)) is not None])
    if cache is not None and cache.exists() and not cache.is_dir():
        raise SurgeryError(f"{cache} is a file; a folder for stored pictures was expected. Name another one.")
    # the cache, and what a plain listing hides, are left alone
    own = "|".join(map(re.escape, (RECORD, PLOT, PROBES)))
    refuse_foreign_files(out, rf"{own}|{re.escape(CACHE)}/.*|\..*", "an earlier evaluation")
    refuse_existing(out / RECORD, overwrite)


def record_of(
    found: Evaluation,
    base: Path,
    other: Path,
    wish: Wish,
    sources: Mapping[str, JSON],
    machine: Mapping[str, JSON],
    elapsed_s: float,
) -> dict[str, JSON]:
    """All that was found, and all that it came from: the command's words, and digests of what they named."""
    asked = {**asdict(wish), "drawings": None if wish.drawings is None else str(wish.drawings)}
    return {
        "base": str(base),
        "edited": str(other),
        "asked": asked,
        "sources": dict(sources),
        "headlines": [asdict(score) for score in found.headlines],
        "sections": {name: as_dict(effect) for name, effect in found.sections.items()},
        "debias": None if found.balance is None else debias_dict(found.balance),
        "probes": probes_dict(found.probes),
        "resurrection": [one.as_json() for one in found.resurrections],
        "findings": [asdict(finding) for finding in found.findings],
        "elapsed_s": round(elapsed_s, 2),
        "machine": {
            **machine,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def write_evaluation(found: Evaluation, out: Path, record: Mapping[str, JSON]) -> None:
    """Both plots, and the record last."""
    bars = [] if found.balance is None else _group_bars(found.balance)
    bars += [bar for name, effect in found.sections.items() for bar in _bars(name, effect)]
    with atomic_file(out / PLOT, overwrite=True) as temporary:
        write_bytes(temporary, [share_chart(bars, title="Before and after the edit", kind="png")])
    if found.probes:
        lines = [
            ProbeLine(label=one.subject, timesteps=one.timesteps, curves=one.curves) for one in found.probes
        ]
        with atomic_file(out / PROBES, overwrite=True) as temporary:
            write_bytes(temporary, [probe_chart(lines)])
    else:
        (out / PROBES).unlink(missing_ok=True)  # of an evaluation that this one replaces
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(out / RECORD, overwrite=True) as temporary:
        write_bytes(temporary, [text.encode()])


def _group_bars(balance: DebiasEffect) -> list[ShareBar]:
    """The shares of each debiased phrase's groups; the last group is what the others leave."""
    return [
        ShareBar(label=f"{phrase.subject}: {group.title}", before=group.before, after=group.after)
        for phrase in balance.balances
        for group in phrase.groups[:-1]
    ]


def _bars(name: str, effect: EditEffect) -> list[ShareBar]:
    """The shares of one section as lines of a chart."""
    pairs = {"old concept": "old", "new concept": "new", "own concept": "held_out"}
    found = []
    for label, score in pairs.items():
        before, after = effect.score(f"{score}_before"), effect.score(f"{score}_after")
        if before is not None and after is not None:
            found.append(ShareBar(label=f"{name}: {label}", before=before, after=after))
    return found
