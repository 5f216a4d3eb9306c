"""Evaluate an edit with suites: a patch, or an edited checkpoint, against the unedited one."""

import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.checkpoint.digest import Digest
from surgery.checkpoint.writer import refuse_overlap
from surgery.diffusion import noting_halvings
from surgery.errors import JudgeError, SurgeryError, raise_all
from surgery.evaluate import (
    SUITES,
    DebiasEffect,
    EditEffect,
    Material,
    ProbeResult,
    Sampling,
    as_dict,
    debias_dict,
    headlines,
    measure_balance,
    measure_sections,
    probe_edit,
    probes_dict,
    sections_of,
    suite_fault,
)
from surgery.execute import locked_folder
from surgery.judge import Judge, pictures_in
from surgery.methods import Replacement, method
from surgery.patch import Patch, applied, load_patch, patch_digest
from surgery.patch.diff import diff_checkpoints
from surgery.patch.file import is_patch
from surgery.recipe import Recipe, parse_recipe
from surgery.record import JSON, Finding, Score, json_digest
from surgery.report import ProbeLine, ShareBar, probe_chart, share_chart
from surgery.store import Store
from surgery.study.loading import pipeline_on, refuse_lossy
from surgery.study.material import material_of
from surgery.study.probing import Resurrection, questions_of, resurrect
from surgery.study.weights import picture_cache
from surgery.study.words import Words, plainly, read_words

_log = logging.getLogger(__name__)

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


def evaluate_edit(
    base: Path,
    other: Path,
    out: Path,
    wish: Wish,
    judge: Judge,
    *,
    recipe: Recipe | None = None,
    words: Words | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    offloaded: bool = False,
    cache: Path | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """What an edit did, by the suites that are wished for; written into ``out`` as JSON and as a plot.

    An evaluation that was stopped goes on where it was: pictures lie in the cache, phrase by phrase, and runs
    that share a cache share the pictures of the unedited checkpoint. The record is written last.

    Args:
        base: The unedited checkpoint.
        other: A patch file, or the edited checkpoint.
        out: A new or empty folder, or one of a stopped evaluation.
        wish: What to evaluate.
        judge: Looks at the pictures.
        recipe: Which edits were made; where left out, the one that the patch remembers.
        words: Names and templates; those beside the base when left out.
        device: Where the models run.
        dtype: Of the models' weights.
        offloaded: Whether each model comes to the device only when it is used.
        cache: Folder of stored pictures; None keeps them inside ``out``.
        overwrite: Whether an older evaluation in ``out`` may be replaced.

    Raises:
        SurgeryError: when the edit is not known, does not fit the base, or a suite has nothing to measure.
    """
    started = time.monotonic()
    refuse_evaluation(out, wish, cache=cache, overwrite=overwrite)
    refuse_overlap(base, out)
    unedited = open_checkpoint(base)
    roots = unedited.fingerprint().roots
    patch = load_patch(other) if is_patch(other) else _difference(base, other, roots)
    _refuse_other_base(patch, base, roots)
    refuse_lossy(dtype, patch.changes, unedited)
    edits = _edits(patch, recipe, other)
    asked, preserved = edits.asked, edits.preserved
    wish = replace(wish, suites=wish.suites or _suites_for(asked))
    known = words or read_words(base)
    drawings = None if wish.drawings is None else pictures_in(wish.drawings)
    models = pipeline_on(base, device, dtype, offloaded=offloaded)
    with applied(models, patch):
        pass  # what stands in its way is said before hours of drawing
    material, findings = material_of(
        asked, preserved, known, judge.labels, models, wish.held_out, beside=edits.beside
    )
    sections, empty = sections_of(wish.suites, material, wish.sampling(known))
    with locked_folder(out), noting_halvings() as halved:
        kept = picture_cache(models, patch, Store(cache or out / CACHE))
        balance = None
        if any(SUITES[name].balanced for name in wish.suites):
            sampling = replace(wish.sampling(known), samples=wish.group_samples)
            given = (models, applied(models, patch), material.balances, judge, sampling)
            balance = measure_balance(*given, explicit_samples=wish.samples, cache=kept)
        measured = measure_sections(
            models, applied(models, patch), sections, judge, cache=kept, drawings=drawings
        )
        probes, resurrections = _probed(models, patch, edits.asked, material, judge, wish, known)
        revived = {one.subject for one in resurrections}
        passed_over = [
            Finding(
                kind="not-measured",
                subject=one.source,
                message="the judge cannot tell whether it was drawn back: it has no name for it, or the edit "
                "kept it",
            )
            for one in edits.asked
            if wish.resurrection and one.source not in revived
        ]
        found = Evaluation(
            headlines=headlines(measured),
            sections=measured,
            balance=balance,
            findings=(*edits.findings, *findings, *empty, *passed_over, *dict.fromkeys(halved)),
            probes=probes,
            resurrections=resurrections,
        )
        sources: dict[str, JSON] = {
            "patch": patch_digest(patch),
            "base": {name: root.bytes for name, root in sorted(patch.roots.items())},
            "recipes": [one.digest for one in edits.recipes],
            "judge": {"name": judge.name, "accuracy": dict(judge.accuracy)},
            "words": json_digest(repr(known)),
        }
        machine = {"device": device, "dtype": str(dtype).removeprefix("torch.")}
        record = _record(found, base, other, wish, sources, machine, time.monotonic() - started)
        _write(found, out, record)
    return found


def _probed(
    models: Any,
    patch: Patch,
    asked: Sequence[Replacement],
    material: Material,
    judge: Judge,
    wish: Wish,
    words: Words,
) -> tuple[tuple[ProbeResult, ...], tuple[Resurrection, ...]]:
    """What predictions say, where that is wished for."""
    probes: tuple[ProbeResult, ...] = ()
    sampling = wish.sampling(words)

    def edited() -> AbstractContextManager[Any]:
        return applied(models, patch)

    if wish.probes:
        probes = probe_edit(
            models,
            edited,
            questions_of(asked, material, words),
            guidance=wish.guidance,
            steps=wish.steps,
            seed=wish.seed,
            batch=sampling.batch,
        )
    if not wish.resurrection:
        return probes, ()
    return probes, resurrect(models, edited, material.edited, judge, sampling)


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
    if out.exists() and not out.is_dir():
        raise SurgeryError(f"{out} is a file; an evaluation needs a folder. Name another one.")
    held = {item.name for item in out.iterdir() if not item.name.startswith(".")} if out.is_dir() else set()
    foreign = sorted(held - {RECORD, PLOT, PROBES, CACHE})
    if foreign or (RECORD in held and not overwrite):
        what = f"other files ({', '.join(foreign[:3])})" if foreign else "an evaluation"
        hint = "Name another one." if foreign else "Name another one, or pass --overwrite."
        raise SurgeryError(f"{out} already holds {what}; expected a new or empty folder. {hint}")


def _refuse_other_base(patch: Patch, base: Path, roots: Mapping[str, Digest]) -> None:
    """Pictures are kept by the base that the patch names, so it has to be this one to the last weight."""
    others = [name for name, digest in patch.roots.items() if roots.get(name) != digest]
    if others:
        raise SurgeryError(
            f"the patch is for another base: {', '.join(sorted(others))} of {base} have other weights. Name "
            "the checkpoint that it was made for, or the edited checkpoint in place of the patch."
        )


def _difference(base: Path, other: Path, roots: Mapping[str, Digest]) -> Patch:
    """The patch between two checkpoints, of which one is edited."""
    if open_checkpoint(other).fingerprint().roots == roots:
        raise SurgeryError(
            f"{other} holds the same weights as {base}; an edited checkpoint, or a patch, was expected."
        )
    return diff_checkpoints(base, other).patch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edits:
    """What was edited, which names were kept on purpose or edited ``beside`` that, and what says so."""

    recipes: tuple[Recipe, ...]
    asked: tuple[Replacement, ...]
    preserved: tuple[str, ...]
    beside: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def _edits(patch: Patch, recipe: Recipe | None, other: Path) -> _Edits:
    """What the patch remembers, or what ``recipe`` says; what it remembers beside that is not held out."""
    if recipe is None:
        return _edits_of(_remembered(patch.provenance), other)
    told = _edits_of([recipe], other)
    try:
        also = _edits_of([recipe, *_remembered(patch.provenance)], other)
    except SurgeryError as error:  # the recipe that was given is the way out of one that no longer reads
        _log.info("what the patch remembers is passed over: %s", error)
        return told
    named = {plainly(one.source) for one in told.asked}
    beside = tuple(dict.fromkeys(one.source for one in also.asked if plainly(one.source) not in named))
    if not beside:
        return told
    message = (
        f"the recipe given does not name what the patch was made to edit: {', '.join(beside[:5])}"
        f"{' and others' if len(beside) > 5 else ''}. They are neither measured nor held out."
    )
    _log.warning("%s", message)
    finding = Finding(kind="not-measured", subject=str(other), message=message, severity="warning")
    aims = (one.destination for one in also.asked if one.destination)
    kept = dict.fromkeys([*told.preserved, *also.preserved, *aims])
    return replace(told, preserved=tuple(kept), beside=beside, findings=(finding,))


def _edits_of(recipes: Sequence[Recipe], other: Path) -> _Edits:
    if not recipes:
        raise SurgeryError(
            f"{other} does not say which edits were made; expected a patch that `surgery run` wrote, or one "
            "composed of such. Name the recipe of the edits: --recipe."
        )
    entries = [
        (one, name, entry)
        for one in recipes
        for edit in one.edits
        for name, entry in edit
        if entry is not None
    ]
    return _Edits(
        recipes=tuple(recipes),
        asked=tuple(found for one, name, entry in entries for found in method(name).replacements(entry, one)),
        preserved=tuple(phrase for *_, entry in entries for phrase in getattr(entry, "preserve", ())),
    )


def _suites_for(asked: Sequence[Replacement]) -> tuple[str, ...]:
    """What to ask of the edits when nobody said."""
    debiased = [bool(one.groups) for one in asked]
    return ("debias",) if all(debiased) else ("update", "debias") if any(debiased) else ("update",)


def _remembered(provenance: Mapping[str, Any]) -> list[Recipe]:
    """The recipes that a patch came from, also those of the patches that it was composed of."""
    source, composed = provenance.get("recipe"), provenance.get("composed")
    found = []
    if isinstance(source, str):
        overrides = provenance.get("overrides") or {}
        found.append(parse_recipe(source, overrides=overrides, remembered=True))
    for member in composed if isinstance(composed, list) else ():
        inner = member.get("provenance") if isinstance(member, dict) else None
        found += _remembered(inner) if isinstance(inner, dict) else []
    return found


def _record(
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


def _write(found: Evaluation, out: Path, record: Mapping[str, JSON]) -> None:
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
