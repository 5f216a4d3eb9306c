"""Evaluate an edit with suites: a patch, or an edited checkpoint, against the unedited one."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoint.digest import Digest
from surgery.checkpoint.writer import refuse_overlap
from surgery.diffusion import noting_halvings
from surgery.errors import SurgeryError
from surgery.evaluate import (
    SUITES,
    Cache,
    DebiasEffect,
    Material,
    ProbeResult,
    Section,
    headlines,
    measure_balance,
    measure_sections,
    probe_edit,
    sections_of,
)
from surgery.evaluate.pictures import Pictures
from surgery.execute import locked_folder
from surgery.judge import Judge, pictures_in
from surgery.patch import Patch, applied, load_patch, patch_digest
from surgery.patch.diff import diff_checkpoints
from surgery.patch.file import is_patch
from surgery.recipe import Recipe
from surgery.record import JSON, Finding, json_digest
from surgery.store import Store
from surgery.study.evaluated import CACHE, Evaluation, Wish, record_of, refuse_evaluation, write_evaluation
from surgery.study.loading import pipeline_on, refuse_lossy
from surgery.study.material import material_of
from surgery.study.probing import Resurrection, questions_of, resurrect
from surgery.study.remembered import Edits, edits_of, suites_for
from surgery.study.weights import picture_cache
from surgery.study.words import Words, read_words


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
    patch = _patch_of(other, base, unedited)
    refuse_lossy(dtype, patch.changes, unedited)
    edits = edits_of(patch, recipe, other)
    wish = replace(wish, suites=wish.suites or suites_for(edits.asked))
    known = words or read_words(base)
    drawings = None if wish.drawings is None else pictures_in(wish.drawings)
    models = pipeline_on(base, device, dtype, offloaded=offloaded)
    with applied(models, patch):
        pass  # what stands in its way is said before hours of drawing
    material, findings = material_of(
        edits.asked, edits.preserved, known, judge.labels, models, wish.held_out, beside=edits.beside
    )
    sections, empty = sections_of(wish.suites, material, wish.sampling(known))
    bench = _Bench(models=models, patch=patch, edits=edits, wish=wish, judge=judge, words=known)
    with locked_folder(out), noting_halvings() as halved:
        kept = picture_cache(models, patch, Store(cache or out / CACHE))
        found = bench.measured(material, sections, kept, drawings)
        told = (*edits.findings, *findings, *empty, *found.findings, *dict.fromkeys(halved))
        found = replace(found, findings=told)
        machine = {"device": device, "dtype": str(dtype).removeprefix("torch.")}
        elapsed = time.monotonic() - started
        write_evaluation(found, out, record_of(found, base, other, wish, bench.sources(), machine, elapsed))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """An edit, who looks at it, and what is wished for."""

    models: Any
    patch: Patch
    edits: Edits
    wish: Wish
    judge: Judge
    words: Words

    def measured(
        self,
        material: Material,
        sections: Sequence[Section],
        kept: Cache,
        drawings: Pictures | None,
    ) -> Evaluation:
        """Pictures before and after the edit; then, where that is wished for, predictions."""
        balance = self._balance(material, kept)
        edited = applied(self.models, self.patch)
        measured = measure_sections(self.models, edited, sections, self.judge, cache=kept, drawings=drawings)
        asked = self.edits.asked
        probes, resurrections = self._probes(material), self._resurrections(material)
        revived = {one.subject for one in resurrections}
        passed_over = tuple(
            Finding(
                kind="not-measured",
                subject=one.source,
                message="the judge cannot tell whether it was drawn back: it has no name for it, or the edit "
                "kept it",
            )
            for one in asked
            if self.wish.resurrection and one.source not in revived
        )
        return Evaluation(
            headlines=headlines(measured),
            sections=measured,
            balance=balance,
            findings=passed_over,
            probes=probes,
            resurrections=resurrections,
        )

    def _probes(self, material: Material) -> tuple[ProbeResult, ...]:
        if not self.wish.probes:
            return ()
        return probe_edit(
            self.models,
            partial(applied, self.models, self.patch),
            questions_of(self.edits.asked, material, self.words),
            guidance=self.wish.guidance,
            steps=self.wish.steps,
            seed=self.wish.seed,
            batch=self.wish.sampling(self.words).batch,
        )

    def _resurrections(self, material: Material) -> tuple[Resurrection, ...]:
        if not self.wish.resurrection:
            return ()
        sampling = self.wish.sampling(self.words)
        edited = partial(applied, self.models, self.patch)
        return resurrect(self.models, edited, material.edited, self.judge, sampling)

    def _balance(self, material: Material, kept: Cache) -> DebiasEffect | None:
        if not any(SUITES[name].balanced for name in self.wish.suites):
            return None
        sampling = replace(self.wish.sampling(self.words), samples=self.wish.group_samples)
        edited = applied(self.models, self.patch)
        return measure_balance(
            self.models,
            edited,
            material.balances,
            self.judge,
            sampling,
            explicit_samples=self.wish.samples,
            cache=kept,
        )

    def sources(self) -> dict[str, JSON]:
        """Digests of all that decides the figures."""
        return {
            "patch": patch_digest(self.patch),
            "base": {name: root.bytes for name, root in sorted(self.patch.roots.items())},
            "recipes": [one.digest for one in self.edits.recipes],
            "judge": {"name": self.judge.name, "accuracy": dict(self.judge.accuracy)},
            "words": json_digest(repr(self.words)),
        }


def _patch_of(other: Path, base: Path, unedited: Checkpoint) -> Patch:
    """The patch, or that between both checkpoints; it has to be for this base."""
    roots = unedited.fingerprint().roots
    patch = load_patch(other) if is_patch(other) else _difference(base, other, roots)
    _refuse_other_base(patch, base, roots)
    return patch


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
