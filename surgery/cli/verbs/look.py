"""Verbs that look at a checkpoint without changing anything: inspect, locate."""

from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgery.cli.options import CHECKPOINT, json_option, print_json
from surgery.cli.program import Verb
from surgery.errors import SurgeryError, nearest, printable
from surgery.names import split
from surgery.record import JSON
from surgery.shelf import checkpoint_path

if TYPE_CHECKING:
    from surgery.checkpoint import Checkpoint
    from surgery.checkpoint.header import TensorEntry


@click.command(cls=Verb)
@click.argument("checkpoint", type=CHECKPOINT)
@click.option("--variant", help="Which variant of a folder's files to look at, for example fp16.")
@click.option("--fingerprint", is_flag=True, help="Also the digests of a checkpoint, which reads all of it.")
@json_option
def inspect(checkpoint: str, variant: str | None, fingerprint: bool, as_json: bool) -> None:
    """Show what a checkpoint, a patch or an undo file is.

    Of a checkpoint: layout, types, sizes. Of a patch: its base, how it is written, what it changes.
    """
    from surgery.patch import is_patch, is_undo

    place = checkpoint_path(checkpoint)
    if is_patch(place):
        _inspect_patch(place, as_json)
    elif is_undo(place):
        _inspect_undo(place, as_json)
    else:
        _inspect_checkpoint(place, variant, fingerprint, as_json)


def _inspect_patch(place: Path, as_json: bool) -> None:
    from surgery.patch import describe_patch, load_patch

    facts = describe_patch(load_patch(place))
    if as_json:
        print_json(facts)
        return
    terms = facts["terms"]
    digest = str(facts["digest"])[:12]
    about = f"{place}: a patch for {facts['architecture']}, digest {digest}, {len(terms)} terms"
    print(printable(about))
    if facts["layout"] == "lora":
        print("  every change is a LoRA's: the file is one, for programs that load LoRAs")
    for key, text in (facts["provenance"].get("base_notes") or {}).items():
        print(printable(f"  the base's {key}: {text}"))
    for component, root in facts["roots"].items():
        print(
            printable(f"  made for {component} {root['bytes'][:12]} (half precision {root['value16'][:12]})")
        )
    for term in terms:
        print(printable(f"  {term['source'] or 'a term'}, strength {term['strength']:g}:"))
        for name, form in term["forms"].items():
            rank = f" of rank {form['rank']}" if "rank" in form else ""
            print(printable(f"    {form['op']}{rank}  {name}"))
    for name, change in facts["changes"].items():
        most = f"at most {change['largest']:.3g} each"
        print(printable(f"  {name}: {change['changed']:,} of {change['elements']:,} weights change, {most}"))


def _inspect_undo(place: Path, as_json: bool) -> None:
    from surgery.patch import read_undo

    undo = read_undo(place)
    facts: dict[str, JSON] = {"undo": undo.patch, "tensors": sorted(undo.digests)}
    if as_json:
        print_json(facts)
        return
    print(printable(f"{place}: takes the patch {undo.patch[:12]} out of {len(undo.digests)} tensors again"))
    for name in sorted(undo.digests):
        print(printable(f"  {name}"))


def _inspect_checkpoint(place: Path, variant: str | None, fingerprint: bool, as_json: bool) -> None:
    from surgery.checkpoint import open_checkpoint

    opened = open_checkpoint(place, variant=variant)
    components = _components(opened, fingerprint=fingerprint)
    if as_json:
        facts: dict[str, JSON] = {"layout": opened.layout, "architecture": opened.architecture}
        facts |= {"notes": dict(opened.notes), "leftovers": [str(part) for part in opened.leftovers]}
        print_json({**facts, "components": dict(components)})
        return
    print(printable(f"{opened.path}: {opened.architecture}, {opened.layout}"))
    for key, text in opened.notes.items():
        print(f"  {key}: {text}")
    for name, found in components.items():
        print(f"  {name}: {found['tensors']} tensors, {found['parameters']:,} weights, {found['dtypes']}")
        if fingerprint:
            print(f"    digest of the bytes  {found['bytes']}")
            print(f"    digest of the values {found['value16']}")
    for part in opened.leftovers:
        print(f"  and {part}")


def _components(opened: "Checkpoint", *, fingerprint: bool) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for component in sorted({split(name)[0] for name in opened.tensors}):
        entries = [entry for name, entry in opened.tensors.items() if split(name)[0] == component]
        found[component] = {
            "tensors": len(entries),
            "parameters": sum(prod(entry.shape) for entry in entries),
            "dtypes": ", ".join(sorted({_dtype(entry) for entry in entries})),
        }
    if fingerprint:
        for component, root in opened.fingerprint().roots.items():
            found[component] |= {"bytes": root.bytes, "value16": root.value16}
    return found


def _dtype(entry: "TensorEntry") -> str:
    return str(entry.dtype).removeprefix("torch.")


@click.command(cls=Verb)
@click.argument("checkpoint", type=CHECKPOINT)
@click.argument("selectors", nargs=-1)
@click.option("--phrase", help="Show the tokens of this phrase instead of tensors.")
@click.option("--template", default="{}", show_default=True, help="The prompt around the phrase.")
@json_option
def locate(
    checkpoint: str, selectors: tuple[str, ...], phrase: str | None, template: str, as_json: bool
) -> None:
    """Find tensors by name, or a phrase among its prompt's tokens.

    A selector is a tensor's canonical name with * and ? as wildcards, for example
    'text_encoder/*.mlp.fc2.weight'.
    """
    if (phrase is None) == (not selectors):
        raise click.UsageError("give either selectors or --phrase.")
    found = _tensors(checkpoint, selectors) if phrase is None else _tokens(checkpoint, template, phrase)
    if as_json:
        print_json(found)
        return
    for row in found:
        print(printable("  ".join(str(value) for value in row.values())))


def _tensors(checkpoint: str, selectors: tuple[str, ...]) -> list[dict[str, JSON]]:
    from surgery.checkpoint import open_checkpoint

    tensors = open_checkpoint(checkpoint_path(checkpoint)).tensors
    for selector in selectors:
        if not any(fnmatchcase(name, selector) for name in tensors):
            guess = nearest(selector, tensors)
            hint = f"Did you mean {guess!r}?" if guess else "Names look like 'unet/conv_in.weight'."
            raise SurgeryError(f"selector {selector!r} names no tensor of {checkpoint}. {hint}")
    return [
        {"name": name, "shape": list(entry.shape), "dtype": _dtype(entry)}
        for name, entry in tensors.items()
        if any(fnmatchcase(name, selector) for selector in selectors)
    ]


def _tokens(checkpoint: str, template: str, phrase: str) -> list[dict[str, JSON]]:
    from surgery.anatomy import locate as locate_phrase
    from surgery.checkpoint.components import load_tokenizer

    tokenizer = load_tokenizer(checkpoint_path(checkpoint))
    span = locate_phrase(tokenizer, template, phrase)
    words = tokenizer.convert_ids_to_tokens(list(span.ids))
    return [
        {
            "position": position,
            "id": span.ids[position],
            "token": words[position],
            "edited": position == span.last,
        }
        for position in range(span.start, span.end)
    ]
