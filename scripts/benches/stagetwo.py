"""Stage II of very many concepts at full size against the plain way, encoding included, in one run.

The encoder is a random one with the real vocabulary, and offsets are random directions as long as the source
vectors: what it costs depends on neither. Both ways get the same offsets and the same statistics, and the
published settings, once with each residual; our own defaults (a key for each prompt) stand beside them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from plaintwo import plain_moments, plain_stage_two
from randomsd import text_encoder, tokenizer
from torch.utils.flop_counter import FlopCounterMode

from surgery.anatomy import text_stack, weights_digest
from surgery.methods.emcid import (
    PUBLISHED,
    CaptionFile,
    Concept,
    ConceptEdit,
    CorpusSettings,
    KeyStatistics,
    Target,
    Update,
    UpdateSettings,
    collect_statistics,
    prepare,
    solve_updates,
    sweeps,
    update,
)
from surgery.methods.emcid.walk import Walk
from surgery.store import Store
from tests.support.concepts import target_of
from tests.support.measure import anonymous_bytes, peak_memory

PARTS: Mapping[str, tuple[tuple[Any, str], ...]] = {
    "encoding": ((Walk, "__init__"), (Walk, "keys"), (Walk, "step"), (Walk, "stream_behind")),
    "solving": ((sweeps, "_prior"), (sweeps, "solve")),
    "reports": (
        (sweeps, "_key_condition"),
        (update, "layer_report"),
        (update, "edit_reports"),
        (update, "reconcile"),
    ),
    "products": ((update, "_form"), (update, "join_terms")),
}


@dataclass(kw_only=True)
class Clock:
    """Seconds of each part; what is timed inside of another part counts for the outer one."""

    elapsed_s: dict[str, float] = field(default_factory=dict)
    inside: bool = False

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if self.inside:
                return work(*given, **named)
            started, self.inside = time.perf_counter(), True
            try:
                return work(*given, **named)
            finally:
                self.inside = False
                self.elapsed_s[part] = self.elapsed_s.get(part, 0.0) + time.perf_counter() - started

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for part, places in PARTS.items():
                for owner, name in places:
                    stack.enter_context(patch.object(owner, name, self.timed(part, getattr(owner, name))))
            yield


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a piece of work took; ``multiplied`` are its float operations in matrix products of any type."""

    elapsed_s: float
    memory_bytes: int
    multiplied: int
    found: Any


def spent(work: Callable[[], Any]) -> Spent:
    """The work with its wall time, the memory it took beyond what was there, and its float operations."""
    before = anonymous_bytes()
    with FlopCounterMode(display=False) as counter, peak_memory(0.02) as memory:
        started = time.perf_counter()
        found = work()
        elapsed = time.perf_counter() - started
    return Spent(
        elapsed_s=elapsed,
        memory_bytes=memory.count - before,
        multiplied=counter.get_total_flops(),
        found=found,
    )


def stage_two(options: argparse.Namespace) -> bool:
    """Prints the figures; whether the ratio is what it has to be with the published settings."""
    encoder = text_encoder(options.family, options.component)
    words = tokenizer(options.vocabulary)
    layers = tuple(range(len(text_stack(encoder).blocks) - 1)) if options.layers is None else options.layers
    # behind many random blocks a subject is little more than its last token
    apart = options.component == "text_encoder_2"
    concepts = concepts_of(options.names, options.concepts, words, apart=apart)
    stack, digest = text_stack(encoder), weights_digest(encoder)
    prompts = sum(len(one.spans) for one in concepts)
    print(
        f"{options.family} {options.component}: {len(concepts)} concepts, {prompts} prompts, "
        f"{len(layers)} layers of {stack.width} × {stack.mlp_width}, {torch.get_num_threads()} threads"
    )
    rate32, rate64 = rates(stack.width, stack.mlp_width)
    print(f"matrix products: {rate32 / 1e9:.0f} GFLOP/s in float32, {rate64 / 1e9:.0f} in float64")
    statistics = report_statistics(options, encoder, words, layers, digest, rate32)
    targets = random_targets(encoder, concepts, layers[-1], digest)
    moments = {layer: statistics.moment(layer) for layer in layers}
    _, published = PUBLISHED["objects"]
    good = True
    for residual in options.residuals:
        settings = replace(published, layers=layers, residual=residual)
        ours = report_ours(f"ours, {residual}", encoder, targets, statistics, settings, (rate32, rate64))
        if options.plain:
            plain = spent(partial(plain_stage_two, encoder, words, targets, moments, settings))
            good = report_plain(residual, ours, plain, text_stack(encoder)) and good
    defaults = UpdateSettings(layers=layers)
    report_ours("ours, our own settings", encoder, targets, statistics, defaults, (rate32, rate64))
    return good


def concepts_of(names: Path, count: int, words: Any, *, apart: bool = False) -> tuple[Concept, ...]:
    """Artists to be erased, with the published templates, from a JSON list of names.

    With ``apart`` no two have the last word in common.
    """
    listed = json.loads(names.read_text(encoding="utf-8"))
    if apart:
        listed = list({name.split()[-1].lower(): name for name in reversed(listed)}.values())[::-1]
    listed = listed[:count]
    concepts, _ = prepare([ConceptEdit(source=name, kind="style") for name in listed], words)
    return concepts


def random_targets(encoder: Any, concepts: Sequence[Concept], layer: int, digest: str) -> list[Target]:
    """Offsets in random directions, as long as the source vectors that they are added to."""
    generator, stack = torch.Generator().manual_seed(0), text_stack(encoder)
    blank = [target_of(one, torch.zeros(1), torch.zeros(1), layer, digest) for one in concepts]
    subjects, grouping = sweeps.subjects_of(blank)
    _, streams = sweeps.measure(stack, subjects, [layer])
    firsts = torch.cat([torch.zeros(1).long(), grouping.counts.cumsum(0)[:-1]])
    sources = streams[firsts]
    drawn = torch.randn(sources.shape, generator=generator)
    offsets = drawn / drawn.norm(dim=1, keepdim=True) * sources.norm(dim=1, keepdim=True)
    return [
        target_of(one, offset, source, layer, digest)
        for one, offset, source in zip(concepts, offsets, sources, strict=True)
    ]


def rates(width: int, mlp_width: int) -> tuple[float, float]:
    """Float operations a second of products like the encoder's, and of ones like the solves'."""
    found = []
    for dtype, shape in ((torch.float32, (4096, width, mlp_width)), (torch.float64, (1500, 1500, 1500))):
        rows, inner, columns = shape
        one, other = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
        best = min(elapsed(partial(torch.mm, one, other)) for _ in range(5))
        found.append(2 * rows * inner * columns / best)
    return found[0], found[1]


def elapsed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report_statistics(
    options: argparse.Namespace, encoder: Any, words: Any, layers: tuple[int, ...], digest: str, rate: float
) -> KeyStatistics:
    """Times our one pass and the plain passes over a part of the captions; gives ours, kept in the store."""
    captions = list(islice(CaptionFile(path=options.captions), options.caption_count))
    corpus = CorpusSettings(include_padding=False, shrinkage=options.shrinkage)
    store = Store(options.store)
    ours = spent(lambda: collect_statistics(encoder, words, captions, layers, corpus, digest=digest))
    statistics: KeyStatistics = ours.found
    ratio = ""
    if options.plain:
        some = captions[:: max(1, len(captions) // options.plain_captions)][: options.plain_captions]
        plain = spent(lambda: plain_moments(encoder, words, some, layers))
        each = plain.elapsed_s / len(some) / (ours.elapsed_s / len(captions))
        ratio = (
            f"; the plain way's {len(layers)} passes over {len(some)} of them {plain.elapsed_s:.1f} s, "
            f"{each:.1f} times as much a caption"
        )
    print(
        f"statistics of {len(captions)} captions, {statistics.token_count} tokens: {ours.elapsed_s:.1f} s, "
        f"{ours.multiplied / rate / ours.elapsed_s:.0%} of the speed of bare products{ratio}",
        flush=True,
    )
    if options.padding:
        padded = spent(
            lambda: collect_statistics(encoder, words, captions, layers, store=store, digest=digest)
        )
        print(f"with all 77 tokens of each caption, as by default: {padded.elapsed_s:.1f} s", flush=True)
    return statistics


def report_ours(
    name: str,
    encoder: Any,
    targets: Sequence[Target],
    statistics: KeyStatistics,
    settings: UpdateSettings,
    rates: tuple[float, float],
) -> Spent:
    clock, digest = Clock(), targets[0].encoder_digest
    with clock.watching():
        ours = spent(lambda: solve_updates(encoder, targets, statistics, settings, digest=digest))
    rest = ours.elapsed_s - sum(clock.elapsed_s.values())
    shares = {**clock.elapsed_s, "rest": rest}
    told = ", ".join(
        f"{part} {seconds:.1f} s ({seconds / ours.elapsed_s:.0%})" for part, seconds in shares.items()
    )
    print(f"{name}: {ours.elapsed_s:.1f} s, {ours.memory_bytes / 1e9:.2f} GB more memory: {told}")
    columns = len(targets) * (1 if settings.keys == "mean" else len(targets[0].concept.spans))
    floor = (
        encoding_floor(encoder, targets, settings) / rates[0],
        solving_floor(encoder, columns, settings) / rates[1],
    )
    print(
        f"  floor at bare products' speed: encoding {floor[0]:.1f} s, solving {floor[1]:.1f} s; "
        f"we take {ours.elapsed_s / sum(floor):.1f} times as long",
        flush=True,
    )
    return ours


def encoding_floor(encoder: Any, targets: Sequence[Target], settings: UpdateSettings) -> float:
    """Float operations of the blocks' matrices for the concepts' own tokens."""
    stack = text_stack(encoder)
    tokens = sum(span.end - span.start for one in targets for span in one.concept.spans)
    block = 2 * (4 * stack.width**2 + 2 * stack.width * stack.mlp_width)
    last, count = settings.layers[-1] + 1, len(settings.layers)
    passes = 2 * last  # before anything is changed, and while it is
    if settings.residual == "block":
        passes += sum(last - layer - 1 for layer in settings.layers)
    return float(tokens * block * passes * (count > 0))


def solving_floor(encoder: Any, columns: int, settings: UpdateSettings) -> float:
    """Cholesky and two triangular solves, or where columns are many the same of one system."""
    stack = text_stack(encoder)
    inner = stack.mlp_width
    each = inner**3 / 3 + 2 * inner**2 * columns + 2 * stack.width * inner * columns
    small = 2 * inner * columns**2 if columns < inner else 2 * inner**2 * columns
    return float(len(settings.layers) * (each + small))


def report_plain(residual: str, ours: Spent, plain: Spent, stack: Any) -> bool:
    result: Update = ours.found
    apart = total = 0.0
    for layer, change in plain.found.items():
        mine = result.delta.materialise(stack.name(layer)).double()
        apart += float((mine - change.double()).square().sum())
        total += float(change.double().square().sum())
    ratio = plain.elapsed_s / ours.elapsed_s
    print(
        f"plain, {residual}: {plain.elapsed_s:.1f} s, {plain.memory_bytes / 1e9:.2f} GB more memory, "
        f"{plain.multiplied / 1e12:.1f} TFLOP of products against {ours.multiplied / 1e12:.1f}\n"
        f"  {ratio:.1f} times as long as ours (at least 8); "
        f"the changes differ by {(apart / total) ** 0.5:.1e}",
        flush=True,
    )
    return ratio >= 8
