"""What suites are made of, from the edits that were asked for and the words of the checkpoint."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from surgery.anatomy import locate
from surgery.diffusion import two_encoders
from surgery.diffusion.text import encode_prompts
from surgery.evaluate import Change, Edited, Material
from surgery.judge import Labels, Trait
from surgery.methods import Replacement
from surgery.record import Finding
from surgery.study.balance import balances_of
from surgery.study.effect import changes_of
from surgery.study.words import Words, plainly

# nearest names looked at for each edited one, by embedding and by group each
_NEAREST: Final = 3
_PROMPT: Final = "a photo of {}"


def material_of(
    replacements: Sequence[Replacement],
    preserved: Iterable[str],
    words: Words,
    labels: Labels,
    models: Any,
    held_out: int | None = None,
    *,
    beside: Iterable[str] = (),
) -> tuple[Material, tuple[Finding, ...]]:
    """The material, and which replacements the judge has no name for.

    Held out are names that no edit names as source, destination or preserved, ``held_out`` of them or all;
    neighbours may be destinations.

    Args:
        replacements: What was edited; debiased phrases, which keep their meaning, are counted by group.
        preserved: Names that were kept on purpose.
        words: Of the checkpoint.
        labels: What the judge can tell.
        models: The unedited pipeline, whose text encoder says what is near.
        held_out: How many names, evenly spread over the list.
        beside: Phrases that were edited as well and are not measured: neither held out nor neighbours.
    """
    replaced = [one for one in replacements if not one.groups]
    changes, findings = changes_of(replaced, words, labels)
    taught = {one.source: one.taught for one in replaced}
    beside = tuple(beside)
    sources = {words.name(one.source) for one in replacements}
    edited_names = sources | {words.name(phrase) for phrase in beside}
    named = {words.name(phrase) for one in replacements for phrase in (one.source, one.destination or "")}
    named |= {words.name(phrase) for phrase in (*preserved, *beside)}
    known = [name for name in words.concepts if labels.fault(Trait(name)) is None]
    findings = (*findings, *_unknown([name for name in words.concepts if name not in known]))
    free = replace(words, concepts=tuple(name for name in known if name not in named))
    spelled = {plainly(phrase) for phrase in (*(one.source for one in replaced), *beside)}
    edited = tuple(_edited(change, taught[change.subject], spelled, words) for change in changes)
    count = len(free.concepts) if held_out is None else held_out
    material = Material(
        edited=edited,
        held_out=tuple(free.others((), count)),
        unseen=words.templates("test"),
        neighbours=_neighbours(
            sorted(sources), [name for name in known if name not in edited_names], words, models
        ),
        styles=tuple(style for style in words.styles if style in labels.style and style not in spelled),
        style_templates=words.style_templates,
        balances=balances_of(replacements, words, labels),
        skips=not two_encoders(models),
    )
    return material, findings


def _unknown(names: Sequence[str]) -> list[Finding]:
    """Names of the checkpoint that the judge has none for."""
    if not names:
        return []
    message = (
        f"the judge does not know {len(names)} names of the checkpoint ({', '.join(names[:5])}"
        f"{', …' if len(names) > 5 else ''}); they are not among the held-out ones"
    )
    return [Finding(kind="not-measured", subject="held out", message=message)]


def _edited(change: Change, taught: tuple[str, ...], spelled: Container[str], words: Words) -> Edited:
    """One edited phrase with its other names, those that were edited as well (``spelled``) by themselves."""
    aliases = words.aliases.get(words.name(change.subject), ())
    others = [alias for alias in aliases if plainly(alias) != plainly(change.subject)]
    return Edited(
        subject=change.subject,
        old=change.old,
        new=change.new,
        destination=change.destination,
        taught=taught,
        unseen=change.templates,
        aliases=tuple(alias for alias in others if plainly(alias) not in spelled),
        given=tuple(alias for alias in others if plainly(alias) in spelled),
    )


def _neighbours(
    sources: Sequence[str], others: Sequence[str], words: Words, models: Any
) -> dict[str, tuple[str, ...]]:
    """For each source the unedited names nearest to it by the text encoder, then some of its group."""
    if not sources or not others:
        return {}
    alike = _pooled(models, sources) @ _pooled(models, others).T
    near = alike.argsort(dim=1, descending=True, stable=True)[:, :_NEAREST]
    found: dict[str, tuple[str, ...]] = {}
    for source, row in zip(sources, near.tolist(), strict=True):
        closest = [others[place] for place in row]
        found[source] = tuple(dict.fromkeys([*closest, *_of_group(source, others, words.group_of)]))
    return found


def _of_group(source: str, others: Sequence[str], group_of: Mapping[str, str]) -> list[str]:
    group = group_of.get(source)
    return [] if group is None else [name for name in others if group_of.get(name) == group][:_NEAREST]


def _pooled(models: Any, names: Sequence[str]) -> Tensor:
    """Unit features at the end token of a plain prompt of each name (names, width)."""
    spans = [locate(models.tokenizer, _PROMPT, name, strict=False) for name in names]
    features = encode_prompts(
        models.tokenizer, models.text_encoder, [_PROMPT.replace("{}", name) for name in names]
    )
    return normalize(features[torch.arange(len(names)), [span.eos for span in spans]].float(), dim=1)
