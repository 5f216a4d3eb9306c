"""Phrases ranked by how strongly a change acts on them, and which of them it may be said to be about."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.audit.operator import matrices
from surgery.audit.sides import Sides
from surgery.audit.words.background import background_phrases
from surgery.audit.words.inputs import FEATURES, Located, collect, locate_all
from surgery.audit.words.reading import Site, overlooked, put_in, sites_in, unreadable
from surgery.audit.words.strength import Acting, acting, acting_on_tokens
from surgery.audit.words.towers import Towers, load_towers
from surgery.checkpoint import Checkpoint
from surgery.record import Finding
from surgery.report.audit_record import TensorRow, WordReport, WordRow

# A phrase is touched when the change hears it so many times as well as others, so well in all, and one of two
# things shows that this is no chance: a share so many times as large as a control's of any phrase; or what is
# heard beyond a control lies more robust standard deviations (of the logarithm) above the other phrases than
# this, and, with a margin, further than any phrase's does for a second control.
TOUCHED_STRENGTH: Final = 4.0
TOUCHED_SHARE: Final = 0.1
TOUCHED_CHANCES: Final = 2.0
TOUCHED_DEVIATIONS: Final = 4.0
_CONTROL_MARGIN: Final = 1.2
# A list of so many phrases is compared with itself; to a shorter one, common nouns are added.
_ENOUGH_PHRASES: Final = 200
# Shares below count as this: next to nothing, and the logarithm stays finite.
_LEAST_SHARE: Final = 1e-3
_LEAST_SPREAD: Final = 0.1
_TO_NORMAL: Final = 1.4826  # from the median absolute deviation to a normal distribution's standard deviation
# Inputs held at once, a quarter of a gigabyte; for more sites the text encoder runs again.
_HELD_ELEMENTS: Final = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Per phrase, over the sites of one kind: mean logarithm of the shares, mean size of the inputs."""

    log_shares: Float[Tensor, "phrases"]
    log_controls: Float[Tensor, "2 phrases"]
    activations: Float[Tensor, "phrases"]


def rank_words(
    sides: Sides,
    rows: Sequence[TensorRow],
    base: Checkpoint,
    phrases: Sequence[str],
    captions: Sequence[str],
) -> tuple[WordReport | None, tuple[Finding, ...]]:
    """The phrases, the touched ones first, and what could not be looked at.

    Each phrase is put into a few templates, and the input of every changed weight that reads text is taken at
    its last token; in the edited encoder, since an edit of several layers is made for the inputs as the
    layers below leave them. A short list gets common nouns beside it, so that even a list of edited words
    alone has something to stand out from.

    Args:
        sides: The model before and after.
        rows: Its tensors.
        base: Where the text encoders and the tokenizer are.
        phrases: What to look for.
        captions: Ordinary prompts, which tell what usually arrives at a weight; some made of common nouns
            and the phrases themselves where there are none.

    Raises:
        CheckpointError: when the base's text encoder or tokenizer cannot be loaded.
    """
    findings = tuple(unreadable(rows))
    changed = [row for row in rows if row.state == "changed"]
    if findings or not changed:
        return None, findings
    towers = load_towers(base)
    sites = sites_in(towers, changed)
    put_in(towers, sides, changed)
    added = background_phrases() if len(phrases) < _ENOUGH_PHRASES else ()
    everything = tuple(dict.fromkeys([*phrases, *added])) if sites else ()
    located = locate_all(towers.tokenizer, everything, towers.positions)
    found = _by_kind(towers, sides, sites, located, captions)
    tables = [judged(combined(acting), located.phrases) for acting in found if acting]
    report = _report(phrases, located, tables, len(sites), len(everything) - len(phrases))
    return report, tuple(overlooked(sites, changed))


def combined(found: Sequence[Acting]) -> Scores:
    """Sites of one kind together."""

    def mean_log(shares: Sequence[Tensor]) -> Tensor:
        return torch.stack([one.clamp(min=_LEAST_SHARE).log() for one in shares]).mean(0)

    return Scores(
        log_shares=mean_log([one.shares for one in found]),
        log_controls=mean_log([one.controls for one in found]),
        activations=torch.stack([one.activations for one in found]).mean(0),
    )


def judged(scores: Scores, phrases: Sequence[str]) -> list[WordRow]:
    """Every phrase against the median of them all, which a change that is about few of them leaves alone."""
    control, second = scores.log_controls
    above = scores.log_shares - scores.log_shares.median()
    deviations, by_chance = _standing_out(scores.log_shares - control), _standing_out(second - control)
    needed = max(TOUCHED_DEVIATIONS, _CONTROL_MARGIN * float(by_chance.max()))
    shares, chance = scores.log_shares.exp(), float(scores.log_controls.exp().max())
    unlike_chance = (shares >= TOUCHED_CHANCES * chance) | (deviations >= needed)
    touched = (above.exp() >= TOUCHED_STRENGTH) & (shares >= TOUCHED_SHARE) & unlike_chance
    return [
        WordRow(
            phrase=phrase,
            strength=float(above[index].exp()),
            deviations=float(deviations[index]),
            needed=needed,
            share=float(shares[index]),
            chance=chance,
            activation=float(scores.activations[index]),
            touched=bool(touched[index]),
        )
        for index, phrase in enumerate(phrases)
    ]


def _standing_out(logs: Float[Tensor, "phrases"]) -> Tensor:
    """How far each lies above the median, in robust standard deviations."""
    above = logs - logs.median()
    return above / max(_LEAST_SPREAD, _TO_NORMAL * float(above.abs().median()))


def _by_kind(
    towers: Towers,
    sides: Sides,
    sites: Sequence[Site],
    located: Located,
    captions: Sequence[str],
) -> Iterator[list[Acting]]:
    """Token vectors, each text encoder's weights, cross-attention: each kind speaks for itself."""
    yield [
        acting_on_tokens(matrices(sides, site.row.name)[1], located.tokens)
        for site in sites
        if not site.reads
    ]
    linear = {name: module for tower in towers.every for name, module in tower.linear().items()}
    kinds: dict[str, list[Acting]] = {}
    for group in _groups([site for site in sites if site.reads], len(located.phrases)):
        names = sorted({site.reads for site in group} - {FEATURES})
        inputs = collect(towers, located, captions, {name: linear[name] for name in names})
        for site in group:
            heard = acting(matrices(sides, site.row.name)[1], inputs[site.reads])
            kinds.setdefault(site.row.component, []).append(heard)
    yield from kinds.values()


def _groups(sites: Sequence[Site], phrases: int) -> Iterator[list[Site]]:
    """Sites whose inputs fit into memory together; those with one input stay together."""
    group: list[Site] = []
    held = 0
    for site in sorted(sites, key=lambda site: site.reads):
        size = 0 if group and group[-1].reads == site.reads else phrases * site.row.columns[1]
        if group and held + size > _HELD_ELEMENTS:
            yield group
            group, held = [], 0
        group.append(site)
        held += size
    if group:
        yield group


def _report(
    phrases: Sequence[str], located: Located, tables: Sequence[Sequence[WordRow]], sites: int, added: int
) -> WordReport:
    """For each phrase the kind of weights that hears it best speaks."""
    asked = set(phrases)
    best = [
        max(rows, key=lambda row: (row.touched, row.deviations / row.needed))
        for rows in zip(*tables, strict=True)
        if rows[0].phrase in asked
    ]
    ordered = tuple(sorted(best, key=lambda row: (-row.touched, -row.strength, row.phrase)))
    return WordReport(
        statement=_statement(sum(row.touched for row in ordered), len(phrases), sites),
        rows=ordered,
        strength=TOUCHED_STRENGTH,
        share=TOUCHED_SHARE,
        added=added,
        sites=sites,
        left_out=tuple(f"{phrase}: {why}" for phrase, why in located.left_out.items() if phrase in asked),
    )


def _statement(touched: int, count: int, sites: int) -> str:
    if touched:
        return f"The change is about {touched:,} of {count:,} phrases: it hears them far better than others."
    if not sites:
        return "No words: none of the changed weights reads text."
    return f"No words: none of {count:,} phrases stands out, so the change is not known to be about any."
