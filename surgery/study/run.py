"""Run a recipe whole: patch, edited checkpoint, LoRA, before/after sheet, and the effect in numbers."""

import logging
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoint.writer import refuse_overlap
from surgery.diffusion import before_and_after, noting_halvings
from surgery.diffusion.sampling import SampleKnobs
from surgery.errors import PatchError
from surgery.evaluate import DebiasEffect, EditEffect, as_dict, debias_dict
from surgery.execute import (
    Computed,
    RunFolder,
    check_edits,
    claim_folder,
    compute_patch,
    locked_folder,
    plan_recipe,
    refuse_taken,
)
from surgery.export import export_patch
from surgery.judge import Judge, load_judge
from surgery.methods import Outcome, Replacement
from surgery.methods.emcid.debias import untuned
from surgery.patch import Patch, applied, apply_patch, patch_digest, save_patch
from surgery.plan import Plan
from surgery.recipe import Evaluate, Recipe
from surgery.record import JSON, Finding
from surgery.store import Store
from surgery.study.balance import measure_debiased
from surgery.study.effect import measure_replacements, replacements_of, touched_names
from surgery.study.loading import pipeline_on, refuse_lossy
from surgery.study.samples import sheet_of, write_sheet
from surgery.study.tuning import Tuned, check_groups, tune_recipe, tuned_entries
from surgery.study.words import Words, read_words

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run: its folder, the plan, the patch, and what was measured."""

    folder: RunFolder
    plan: Plan
    patch: Patch
    effect: EditEffect | None
    balance: DebiasEffect | None
    findings: tuple[Finding, ...]
    record: Mapping[str, JSON]
    lines: tuple[str, ...] = ()


class _Clock:
    """Wall time of each stage, for run.json only."""

    def __init__(self) -> None:
        self.elapsed_s: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        _log.info("%s …", name)
        started = time.monotonic()
        yield
        self.elapsed_s[name] = round(time.monotonic() - started, 2)


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    base: Path | None = None,
    device: str = "cpu",
    offloaded: bool = False,
    batch: int | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Everything that a recipe asks for, written into the folder ``out``.

    A run that was stopped goes on where it was when the same command is given again: finished batches lie in
    the cache, finished files in the folder. ``run.json`` is written last.

    Args:
        recipe: What to do.
        out: A new, empty or own unfinished folder.
        base: The checkpoint instead of the recipe's.
        device: Where the models run.
        offloaded: Whether each model comes to the device only when it is used.
        batch: Pictures drawn at a time, at most; None leaves the default.
        cache: Folder of stored results; None keeps them inside ``out``.
        overwrite: Whether an older run in ``out`` may be replaced.

    Raises:
        SurgeryError: when the recipe cannot be carried out; nothing half-written is left behind.
    """
    checkpoint = open_checkpoint(base or recipe.base_path())
    plan = plan_recipe(recipe, checkpoint)
    words = read_words(checkpoint.path)
    # what is missing is said before minutes of work, not after
    judge = _judge(recipe, device)
    refuse_overlap(checkpoint.path, out)
    sites = {name for step in plan.steps for name in step.work.sites}
    refuse_lossy(getattr(torch, recipe.dtype), sites, checkpoint)
    with locked_folder(out):
        refuse_taken(out, plan.identity, overwrite=overwrite)
        clock = _Clock()
        with clock.stage("load"):
            models = pipeline_on(checkpoint.path, device, getattr(torch, recipe.dtype), offloaded=offloaded)
        check_edits(recipe, checkpoint, models)
        # an older run goes only when nothing is known to stand in the way of this one
        folder = claim_folder(out, plan.identity, overwrite=overwrite)
        store = Store(cache or folder.cache)
        with noting_halvings() as halved:
            return _carry_out(
                recipe, plan, checkpoint, words, judge, models, folder, store, clock, device, batch, halved
            )


def _judge(recipe: Recipe, device: str) -> Judge | None:
    """The judge of the measurement, who also tunes; None where nobody asks for one."""
    tuned = any(untuned(entry) for entry in tuned_entries(recipe))
    if recipe.evaluate is None and not tuned:
        return None
    judge = load_judge((recipe.evaluate or Evaluate()).judge, device)
    check_groups(recipe, judge)
    return judge


def _carry_out(
    recipe: Recipe,
    plan: Plan,
    checkpoint: Checkpoint,
    words: Words,
    judge: Judge | None,
    models: Any,
    folder: RunFolder,
    store: Store,
    clock: _Clock,
    device: str,
    batch: int | None,
    halved: list[Finding],
) -> Run:
    tuned = Tuned(recipe=recipe)
    if judge is not None:
        with clock.stage("tune"):
            tuned = tune_recipe(recipe, checkpoint, words, models, judge, store, batch=batch)
    with clock.stage("edit"):
        computed = compute_patch(recipe, plan, checkpoint, models, store, tuned=tuned.recipe)
    with clock.stage("write"):
        unwritten = _write(recipe, computed.patch, checkpoint, folder)
    with clock.stage("sheet"):
        _draw_sheet(recipe, computed.outcomes, words, models, computed.patch, folder, batch)
    effect, balance = None, None
    unmeasured: tuple[Finding, ...] = ()
    if judge is not None:
        with clock.stage("evaluate"):
            effect, unmeasured = measure_replacements(
                recipe, computed.outcomes, words, models, computed.patch, judge, store, batch=batch
            )
            balance = measure_debiased(
                recipe, computed.outcomes, words, models, computed.patch, judge, store, batch=batch
            )
    noticed = [*computed.findings, *(one for outcome in computed.outcomes for one in outcome.findings)]
    findings = (*tuned.findings, *noticed, *unwritten, *unmeasured, *dict.fromkeys(halved))
    record = _record(recipe, plan, computed, effect, findings, clock.elapsed_s, device)
    if judge is not None:
        record["judge"] = {"name": judge.name, "accuracy": dict(judge.accuracy)}
    if tuned.record:
        record["tuning"] = tuned.record
    if balance is not None:
        record["debias"] = debias_dict(balance)
    record["files"] = folder.files()
    return Run(
        folder=folder.finish(record),
        plan=plan,
        patch=computed.patch,
        effect=effect,
        balance=balance,
        findings=findings,
        record=record,
        lines=tuple(line for outcome in computed.outcomes for line in outcome.lines),
    )


def _write(recipe: Recipe, patch: Patch, base: Checkpoint, folder: RunFolder) -> tuple[Finding, ...]:
    """Patch, checkpoint and LoRA, as far as they are asked for; what could not be written, and why."""
    save_patch(patch, folder.patch, overwrite=True)
    if "checkpoint" in recipe.export:
        apply_patch(patch, base.path, folder.checkpoint, overwrite=True)
    if "lora" not in recipe.export:
        return ()
    if not patch.changes:
        message = "the patch changes nothing, and no loader reads a LoRA without layers; none was written."
        _log.warning("%s: %s", folder.lora.name, message)
        return (Finding(kind="not-written", subject=folder.lora.name, message=message, severity="warning"),)
    try:
        export_patch(patch, base.path, folder.lora, to="universal-lora", overwrite=True)
    except PatchError as error:  # masks and new values are no LoRA; the rest of the run stands
        message = f"no LoRA was written. {error}"
        _log.warning("%s: %s", folder.lora.name, message)
        return (Finding(kind="not-written", subject=folder.lora.name, message=message, severity="warning"),)
    return ()


def _draw_sheet(
    recipe: Recipe,
    outcomes: tuple[Outcome, ...],
    words: Words,
    models: Any,
    patch: Patch,
    folder: RunFolder,
    batch: int | None,
) -> None:
    """Edited prompts first, then a few that the edit was to leave alone, the same seeds side by side."""
    labels = _edited_prompts(replacements_of(outcomes), words)
    template = words.templates("test")[0]
    alone = words.others(touched_names(outcomes, words), 4)
    prompts = list(recipe.sample.prompts) or [*labels, *(template.replace("{}", name) for name in alone)]
    seeds = recipe.sample.seeds
    knobs: SampleKnobs = {"steps": recipe.sample.steps, "guidance": recipe.sample.guidance}
    if batch is not None:
        knobs["batch"] = batch
    before, after = before_and_after(models, applied(models, patch), prompts, seeds, **knobs)
    titles = [labels.get(prompt, prompt) for prompt in prompts]
    write_sheet(sheet_of({"before": before, "after": after}, titles, seeds), folder.sheet, overwrite=True)


def _edited_prompts(replacements: tuple[Replacement, ...], words: Words) -> dict[str, str]:
    """One prompt for each replacement, with the label of its row."""
    common = words.templates("test")[0]
    return {
        (r.templates or (common,))[0].replace("{}", r.asked_as.replace("{}", r.source)): r.label
        for r in replacements
    }


def _record(
    recipe: Recipe,
    plan: Plan,
    computed: Computed,
    effect: EditEffect | None,
    findings: tuple[Finding, ...],
    elapsed_s: Mapping[str, float],
    device: str,
) -> dict[str, JSON]:
    """run.json: the one place for clocks and machines."""
    return {
        "recipe": {
            "title": recipe.title,
            "digest": recipe.digest,
            "source": recipe.source,
            "overrides": recipe.overrides,
        },
        "patch": {
            "digest": patch_digest(computed.patch),
            "base": {name: root.bytes for name, root in sorted(computed.patch.roots.items())},
            "versions": computed.patch.provenance["versions"],
        },
        "plan": plan.as_json(),
        "edits": [
            {**outcome.report, "elapsed_s": round(elapsed, 2)}
            for outcome, elapsed in zip(computed.outcomes, computed.elapsed_s, strict=True)
        ],
        "effect": None if effect is None else as_dict(effect),
        "findings": [asdict(finding) for finding in findings],
        "elapsed_s": dict(elapsed_s),
        "machine": {
            "device": device,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
