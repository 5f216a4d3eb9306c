"""Evaluate an edit with suites: a patch, or an edited checkpoint, against the unedited one."""

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from surgery.checkpoint.atomic import atomic_file, write_bytes
from surgery.errors import SurgeryError
from surgery.evaluate import (
    Cache,
    EditEffect,
    Sampling,
    as_dict,
    headlines,
    measure_sections,
    sections_of,
)
from surgery.execute import locked_folder
from surgery.judge import Judge, pictures_in
from surgery.methods import Replacement, method
from surgery.patch import Patch, applied, load_patch
from surgery.patch.diff import diff_checkpoints
from surgery.patch.file import is_patch
from surgery.recipe import Recipe, parse_recipe
from surgery.record import JSON, Finding, Score
from surgery.report import ShareBar, share_chart
from surgery.store import Store
from surgery.study.loading import pipeline_on
from surgery.study.material import material_of
from surgery.study.weights import weights_names
from surgery.study.words import Words, read_words

RECORD: Final = "evaluation.json"
PLOT: Final = "evaluation.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What suites found: the papers' numbers, then section by section."""

    headlines: tuple[Score, ...]
    sections: Mapping[str, EditEffect]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to evaluate, and how.

    Attributes:
        suites: Names of suites.
        samples: Pictures for each prompt.
        steps: Of the sampler.
        guidance: Guidance scale.
        seed: Where all seeds start.
        batch: Pictures at a time, at most; None for the default.
        held_out: How many unedited names are looked at; None for all.
        drawings: A folder of pictures of how it should look, for the Fréchet distance of ``quality``.
    """

    suites: tuple[str, ...]
    samples: int = 2
    steps: int = 25
    guidance: float = 5.0
    seed: int = 0
    batch: int | None = None
    held_out: int | None = None
    drawings: Path | None = None

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
    patch = load_patch(other) if is_patch(other) else diff_checkpoints(base, other).patch
    asked, preserved = _edits(patch, recipe, other)
    known = words or read_words(base)
    with locked_folder(out):
        _refuse_taken(out, overwrite)
        models = pipeline_on(base, device, dtype, offloaded=offloaded)
        material, findings = material_of(asked, preserved, known, judge.labels, models, wish.held_out)
        sections = sections_of(wish.suites, material, wish.sampling(known))
        before, after = weights_names(models, patch)
        measured = measure_sections(
            models,
            applied(models, patch),
            sections,
            judge,
            cache=Cache(store=Store(cache or out / "cache"), before=before, after=after),
            drawings=None if wish.drawings is None else pictures_in(wish.drawings),
        )
        found = Evaluation(headlines=headlines(measured), sections=measured, findings=findings)
        _write(found, out, _record(found, base, other, wish, device, time.monotonic() - started))
    return found


def _edits(
    patch: Patch, recipe: Recipe | None, other: Path
) -> tuple[tuple[Replacement, ...], tuple[str, ...]]:
    """What was edited, and which names were kept on purpose."""
    if recipe is None:
        source = patch.provenance.get("recipe")
        if not isinstance(source, str):
            raise SurgeryError(
                f"{other} does not say which edits were made; expected a patch that `surgery run` wrote. "
                "Name the recipe of the edits: --recipe."
            )
        overrides: Any = patch.provenance.get("overrides") or {}
        recipe = parse_recipe(source, overrides=overrides)
    entries = [(name, entry) for edit in recipe.edits for name, entry in edit if entry is not None]
    asked = tuple(one for name, entry in entries for one in method(name).replacements(entry, recipe))
    return asked, tuple(phrase for _, entry in entries for phrase in getattr(entry, "preserve", ()))


def _refuse_taken(out: Path, overwrite: bool) -> None:
    if (out / RECORD).exists() and not overwrite:
        raise SurgeryError(
            f"{out} already holds an evaluation; expected a new or empty folder. Name another one, or pass "
            "--overwrite."
        )


def _record(
    found: Evaluation, base: Path, other: Path, wish: Wish, device: str, elapsed_s: float
) -> dict[str, JSON]:
    asked = {**asdict(wish), "drawings": None if wish.drawings is None else str(wish.drawings)}
    return {
        "base": str(base),
        "edited": str(other),
        "asked": asked,
        "headlines": [asdict(score) for score in found.headlines],
        "sections": {name: as_dict(effect) for name, effect in found.sections.items()},
        "findings": [asdict(finding) for finding in found.findings],
        "elapsed_s": round(elapsed_s, 2),
        "machine": {
            "device": device,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def _write(found: Evaluation, out: Path, record: Mapping[str, JSON]) -> None:
    bars = [bar for name, effect in found.sections.items() for bar in _bars(name, effect)]
    with atomic_file(out / PLOT, overwrite=True) as temporary:
        write_bytes(temporary, [share_chart(bars, title="Before and after the edit", kind="png")])
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(out / RECORD, overwrite=True) as temporary:
        write_bytes(temporary, [text.encode()])


def _bars(name: str, effect: EditEffect) -> list[ShareBar]:
    """The shares of one section as lines of a chart."""
    pairs = {"old concept": "old", "new concept": "new", "own concept": "held_out"}
    found = []
    for label, score in pairs.items():
        before, after = effect.score(f"{score}_before"), effect.score(f"{score}_after")
        if before is not None and after is not None:
            found.append(ShareBar(label=f"{name}: {label}", before=before, after=after))
    return found
