"""Stage I against the published way run plainly: what it costs, and what its offsets are worth.

The plain way is ``tests/parity/plain_emcid``, which the method is tested against: one concept at a time,
whole passes of the text encoder with hooks, pictures encoded again and the teacher asked afresh at every
step. Two more things that the release does are left out in its favour: it encodes the source a second time
at every step, and loads and copies models for every concept.

Both ways put the offset behind the same block, and are judged by the same held-out questions (pictures,
timesteps and noise that neither has seen, the whole context) and by pictures after the same Stage II.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch
from massive import draw_edits, recipe_of, shown
from torch import Tensor

from surgery.anatomy import frozen, text_stack, weights_digest
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.evaluate import EditEffect
from surgery.judge import load_judge
from surgery.methods import Outcome, Replacement
from surgery.methods.emcid import (
    PUBLISHED,
    CaptionFile,
    Concept,
    ConceptEdit,
    CorpusSettings,
    EmcidModels,
    KeyStatistics,
    OffsetSettings,
    Target,
    collect_statistics,
    optimise_offsets,
    prepare,
    solve_updates,
)
from surgery.methods.emcid.problem import problem_of
from surgery.methods.emcid.recipe import PRESETS
from surgery.methods.emcid.settings import as_json
from surgery.patch import Term, make_patch
from surgery.progress import track
from surgery.record import JSON
from surgery.shelf import checkpoint_path
from surgery.store import Store
from surgery.study.effect import measure_replacements
from surgery.study.words import read_words
from tests.parity.plain_emcid import Plain, as_released, plain_offset

UNSEEN_STEPS = 10  # of the sampler that draws pictures for these questions
UNSEEN = 1_000_003  # added to each concept's seed for the questions that judge it


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of learning offsets; ``plain`` is the published one as it was released."""

    name: str
    settings: OffsetSettings
    dtype: torch.dtype
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a way found, and the time it took for each concept."""

    targets: list[Target]
    elapsed_s: float
    steps: float


def ways(options: argparse.Namespace) -> list[Way]:
    """Those asked for, the plain one of each type first."""
    ours, _ = PRESETS[options.preset]
    ours = replace(ours, **options.offsets)
    found = []
    for name in options.dtypes:
        dtype, tail = getattr(torch, name), "" if name == "float32" else f", {name}"
        plain = PUBLISHED["objects"][0]
        found.append(Way(name=f"published, plain{tail}", settings=plain, dtype=dtype, plain=True))
        found.append(Way(name=f"ours, both{tail}", settings=replace(ours, mode="both"), dtype=dtype))
    found.append(Way(name="ours, text", settings=replace(ours, mode="text"), dtype=torch.float32))
    return [way for way in found if options.ways is None or way.name.startswith(tuple(options.ways))]


class Bench:
    """Concepts and models of one bench, and its stored results."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.base = options, checkpoint_path(options.base)
        self.words, self.pipeline = read_words(self.base), load_pipeline(self.base)
        self.store, self.edits = Store(options.store), draw_edits(self.words, options.concepts)
        _, self.update = PRESETS[options.preset]
        asked = [ConceptEdit(source=s, destination=d, seed=n) for n, (s, d) in enumerate(self.edits)]
        self.concepts, _ = prepare(asked, self.pipeline.tokenizer)
        self.digest = weights_digest(self.pipeline.text_encoder)

    @property
    def layer(self) -> int:
        """The block behind which all offsets are added."""
        return self.update.layers[-1]

    def models(self, dtype: torch.dtype = torch.float32) -> EmcidModels:
        """The parts of the base, its U-Net and VAE in this type."""
        p = self.pipeline
        unet, vae = (
            part if dtype == torch.float32 else copy.deepcopy(part).to(dtype) for part in (p.unet, p.vae)
        )
        return EmcidModels(
            tokenizer=p.tokenizer, text_encoder=p.text_encoder, unet=unet, vae=vae, scheduler=p.scheduler
        )

    def learned(self, way: Way) -> Learned:
        """The offsets of a way, concept by concept or batch by batch, each stored with its time."""
        models, size = self.models(way.dtype), 1 if way.plain else way.settings.batch
        parts = [self.concepts[start : start + size] for start in range(0, len(self.concepts), size)]
        learn = self._plainly if way.plain else self._ours
        targets: list[Target] = []
        elapsed = 0.0
        for part in track(parts, way.name, unit="concept" if way.plain else "batch"):
            key = self.store.key(self._meaning(way, part))
            entry = self.store.remember(key, partial(learn, models, part, way.settings))
            elapsed += entry.data["elapsed_s"]
            targets += [self._target(concept, row, entry.tensors()) for row, concept in enumerate(part)]
        return Learned(
            targets=targets, elapsed_s=elapsed / len(targets), steps=fmean(one.steps for one in targets)
        )

    def _meaning(self, way: Way, part: Sequence[Concept]) -> dict[str, JSON]:
        return {
            "result": "bench/stage-one",
            "version": 1,
            "text_encoder": self.digest,
            "unet": weights_digest(self.pipeline.unet),
            "way": "plain" if way.plain else "ours",
            "settings": as_json(way.settings),
            "dtype": str(way.dtype),
            "layer": self.layer,
            "threads": torch.get_num_threads(),
            "edits": [[one.edit.source, one.edit.destination, one.edit.seed] for one in part],
        }

    def _plainly(
        self, models: EmcidModels, part: Sequence[Concept], settings: OffsetSettings
    ) -> tuple[dict[str, Tensor], dict[str, JSON]]:
        (concept,) = part
        with frozen(models.text_encoder, models.unet, models.vae):
            started = time.perf_counter()
            plain = Plain(models, concept.edit, self.layer, context=None)
            offset = plain_offset(plain, as_released(models, plain, settings), steps=settings.steps)
            elapsed = time.perf_counter() - started
            source = plain.source_vector()
        steps = torch.tensor([settings.steps])
        return {"offset": offset[None], "source": source[None], "steps": steps}, {"elapsed_s": elapsed}

    def _ours(
        self, models: EmcidModels, part: Sequence[Concept], settings: OffsetSettings
    ) -> tuple[dict[str, Tensor], dict[str, JSON]]:
        started = time.perf_counter()
        found = optimise_offsets(models, part, settings, layer=self.layer)
        elapsed = time.perf_counter() - started
        return {
            "offset": torch.stack([one.offset for one in found]),
            "source": torch.stack([one.source for one in found]),
            "steps": torch.tensor([one.steps for one in found]),
        }, {"elapsed_s": elapsed}

    def _target(self, concept: Concept, row: int, tensors: dict[str, Tensor]) -> Target:
        return Target(
            concept=concept,
            offset=tensors["offset"][row],
            source=tensors["source"][row],
            layer=self.layer,
            encoder_digest=self.digest,
            steps=int(tensors["steps"][row]),
            first_loss=1.0,
            last_loss=0.0,
            settled=True,
            clamped=False,
            finite=True,
        )

    def held_out(self, offsets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each way's noise loss of each concept on questions that none has seen; "unedited" has no offset."""
        settings = OffsetSettings(
            mode="noise", bank_size=self.options.questions, norm_penalty=0.0, sampling_steps=UNSEEN_STEPS
        )
        models, size = self.models(), 16
        total: dict[str, list[Tensor]] = {name: [] for name in ("unedited", *offsets)}
        for start in track(range(0, len(self.concepts), size), "held out", unit="batch"):
            part = [unseen(concept) for concept in self.concepts[start : start + size]]
            with torch.no_grad(), frozen(models.text_encoder, models.unet, models.vae):
                problem = problem_of(models, tuple(part), settings, self.layer)
                everyone = torch.arange(len(part))
                for name in total:
                    given = offsets.get(name, torch.zeros(len(self.concepts), problem.source.shape[1]))
                    mine = given[start : start + size]
                    seen = [problem.losses(step, mine, everyone) for step in range(settings.bank_size)]
                    total[name].append(torch.stack(seen).mean(0))
        return {name: torch.cat(parts) for name, parts in total.items()}

    def statistics(self) -> KeyStatistics:
        captions = CaptionFile(path=self.base / "captions.txt")
        return collect_statistics(
            self.pipeline.text_encoder,
            self.pipeline.tokenizer,
            captions,
            self.update.layers,
            CorpusSettings(count=self.options.captions),
            without=[concept.source_ids for concept in self.concepts],
            store=self.store,
        )

    def effect(self, targets: Sequence[Target], statistics: KeyStatistics) -> EditEffect:
        """What pictures show after Stage II with these offsets."""
        solved = solve_updates(self.pipeline.text_encoder, targets, statistics, self.update)
        replaced = tuple(
            Replacement(source=s, destination=d, kind="update", templates=(), pictures=False)
            for s, d in self.edits
        )
        looked_at = f"""sample: {{steps: {self.options.steps}}}
evaluate: {{samples: {self.options.samples}, held_out: {self.options.held_out}}}
"""
        recipe = recipe_of(self.options, self.edits, "update", self.update.residual, "both", looked_at)
        patch = make_patch([Term(delta=solved.delta, source="bench")], open_checkpoint(self.base))
        outcome = Outcome(delta=solved.delta, replacements=replaced)
        effect, _ = measure_replacements(
            recipe, [outcome], self.words, self.pipeline, patch, load_judge("pocket-judge"), self.store
        )
        if effect is None:
            raise SystemExit("nothing could be measured: the judge knows none of the concepts")
        return effect


def unseen(concept: Concept) -> Concept:
    """The same concept with other pictures, timesteps and noise."""
    return replace(concept, edit=replace(concept.edit, seed=concept.edit.seed + UNSEEN))


def interval(values: Tensor) -> tuple[float, float, float]:
    """The mean over concepts, with the 95 % interval of concepts drawn with replacement."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (4000, len(values)), generator=generator)
    low, high = torch.quantile(values.double()[drawn].mean(1), torch.tensor([0.025, 0.975]).double())
    return float(values.double().mean()), float(low), float(high)


def spelled(values: Tensor, scale: float = 1000) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*(scale * value for value in interval(values)))


def stage_one(options: argparse.Namespace) -> None:
    """Prints a row for each way, and the differences that are to be within their intervals."""
    bench, asked = Bench(options), ways(options)
    print(
        f"{len(bench.concepts)} concepts, offsets behind block {bench.layer}, "
        f"{torch.get_num_threads()} threads"
    )
    print(
        f"at most {cost(asked, len(bench.concepts))} passes of the U-Net; "
        f"finished parts are in {options.store}"
    )
    learned = {way.name: bench.learned(way) for way in asked}
    report_cost(learned, options, len(text_stack(bench.pipeline.text_encoder).blocks) - 1 - bench.layer)
    offsets = {name: torch.stack([one.offset for one in found.targets]) for name, found in learned.items()}
    report_losses(bench.held_out(offsets))
    if options.samples:
        report_effect(bench, {name: found.targets for name, found in learned.items()})


def cost(asked: Sequence[Way], concepts: int) -> str:
    """U-Net passes of all ways; a gradient counts as one more."""
    total = 0
    for way in asked:
        s, rows = way.settings, 3
        if s.mode == "text":
            continue
        drawn, taught = rows * 2 * s.sampling_steps, rows * (s.bank_size or s.steps)
        total += concepts * (drawn + taught + 2 * (s.steps - s.text_steps) * s.rows_at_once(rows))
    return f"{total:,}"


def report_cost(learned: dict[str, Learned], options: argparse.Namespace, behind: int) -> None:
    plain: dict[str, float] = {}
    print(f"\n{'way':28}{'s a concept':>12}{'steps':>8}{'ratio':>8}")
    for name, found in learned.items():
        dtype = name.partition(", ")[2].partition(", ")[2]
        if name.startswith("published"):
            plain[dtype] = found.elapsed_s
        against = plain.get(dtype)
        ratio = f"{against / found.elapsed_s:8.1f}" if against else f"{'–':>8}"
        print(f"{name:28}{found.elapsed_s:12.2f}{found.steps:8.1f}{ratio}", flush=True)
    if options.flops:
        from flops import report_flops

        report_flops({name: found.steps for name, found in learned.items()}, ways(options), behind)


def report_losses(losses: dict[str, Tensor]) -> None:
    print(
        f"\nheld-out noise loss, thousandths, mean over concepts\n"
        f"{'unedited':28}{spelled(losses['unedited'])}"
    )
    plain = next((losses[name] for name in losses if name.startswith("published")), None)
    for name, values in losses.items():
        if name == "unedited":
            continue
        beside = (
            "" if plain is None or plain is values else f"   against the plain way {spelled(values - plain)}"
        )
        print(f"{name:28}{spelled(values)}{beside}", flush=True)


def report_effect(bench: Bench, targets: dict[str, list[Target]]) -> None:
    statistics = bench.statistics()
    names = ("old_before", "old_after", "new_after", "reached", "held_out_change")
    print(f"\n{'after Stage II, % of pictures':28}" + "".join(f"{name:>24}" for name in names))
    published: EditEffect | None = None
    for name, mine in targets.items():
        effect = bench.effect(mine, statistics)
        print(f"{name:28}" + "".join(f"{shown(effect, score):>24}" for score in names), flush=True)
        if name.startswith("published"):
            published = effect
        elif published is not None:
            change = spelled(reached_apart(effect, published), 100)
            print(f"{'':28}reached, against the plain way in points: {change}", flush=True)


def reached_apart(effect: EditEffect, other: EditEffect) -> Tensor:
    """By concept, how much more often the new one is there, divided by how often destinations are."""
    rows = [
        (one.new_after, two.new_after, one.destination)
        for one, two in zip(effect.changes, other.changes, strict=True)
        if one.new_after is not None and two.new_after is not None and one.destination is not None
    ]
    mine, theirs, aims = torch.tensor(rows, dtype=torch.float64).T
    apart: Tensor = (mine - theirs) / aims.mean()
    return apart
