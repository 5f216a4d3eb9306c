"""What a loader would make of a file: from rules about loaders, without the loader."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint.digest import tensor_digest
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.checkpoint.texts import parse_json
from surgery.errors import PatchError
from surgery.export.job import EXPORT_KEY, largest_difference
from surgery.export.loaders.arithmetic import held
from surgery.export.loaders.contents import Contents, read_contents
from surgery.export.loaders.engine import Verdict, refusals, verdicts
from surgery.export.loaders.simulation import Held, Lost, Simulation
from surgery.export.loaders.table import Loader, Word, loader, rule_table
from surgery.patch.file import is_patch, load_patch, patch_digest
from surgery.patch.match import match_base
from surgery.patch.model import Patch


def simulate_file(
    name: str,
    file: Path,
    *,
    base: Path | None = None,
    patch: Path | None = None,
    dtype: torch.dtype | None = None,
) -> Simulation:
    """What the loader ``name`` would make of ``file``.

    Args:
        name: A loader of the table of rules.
        file: A LoRA-like file, or a patch that is one.
        base: The model, for the names and shapes of its layers, and the weights that the loader would hold.
        patch: The patch that ``file`` was exported from; needed for weights, unless the file is a patch.
        dtype: The precision that the model runs in; that of the base's file when left out.

    Raises:
        PatchError: for an unknown loader, a file that is nothing like a LoRA, or a patch or base that is not
            the file's.
    """
    rules = loader(name)
    own = load_patch(file) if file.is_file() and is_patch(file) else None
    given = None if patch is None else load_patch(patch)
    checkpoint = None if base is None else open_checkpoint(base)
    edit = own or given
    if checkpoint is not None and edit is not None:
        match_base(edit, checkpoint)
    architecture = edit.architecture if edit else checkpoint.architecture if checkpoint else None
    contents = read_contents(file, architecture, checkpoint.shapes if checkpoint else None)
    record = _record(contents)
    if given is not None:
        _refuse_other(file, given, patch_digest(own) if own else record.get("patch"))
    found = verdicts(contents, rules)
    refused = refusals(contents, rules, found)
    edited = _edited(edit, record, contents)
    lost = dict(_lost(contents, found, edited, refused=bool(refused)))
    weights: dict[str, Held] = {}
    if checkpoint is not None and edit is not None:
        kept = [name for name in edit.changes if name not in lost]
        weights = dict(_weights(kept, edit, checkpoint, contents, rules, dtype))
    return Simulation(
        loader=rules,
        rules=rule_table().version,
        file=file,
        refused=refused,
        verdicts=found,
        lost=lost,
        weights=weights,
        added_masks=len(masks) if isinstance(masks := record.get("added_masks"), list) else 0,
    )


def _record(contents: Contents) -> dict[str, Any]:
    """What an export of ours says of itself; empty for other files."""
    try:
        record = parse_json(contents.metadata.get(EXPORT_KEY, "{}"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _refuse_other(file: Path, given: Patch, recorded: object) -> None:
    """A patch that the file was not made of would be compared with nothing.

    Raises:
        PatchError: naming both.
    """
    digest = patch_digest(given)
    if recorded is not None and recorded != digest:
        raise PatchError(
            f"{file} was made of the patch {str(recorded)[:12]!r}; the one given is {digest[:12]!r}. Give "
            "the patch that it was exported from, or none."
        )


def _edited(patch: Patch | None, record: Mapping[str, Any], contents: Contents) -> list[str]:
    """The tensors whose edit is asked for: of the patch, of the file's own record, or all that it changes."""
    if patch is not None:
        return list(patch.changes)
    tables = [table for key in ("tensors", "left_out") if isinstance(table := record.get(key), dict)]
    if tables:
        return sorted({str(name) for table in tables for name in table})
    return sorted({change.tensor for change in contents.changes if not contents.is_nothing(change)})


def _lost(
    contents: Contents, found: Iterable[Verdict], edited: Iterable[str], *, refused: bool
) -> Iterator[tuple[str, Lost]]:
    """Edited tensors that the loader would not hold as they are meant."""
    words: dict[str, list[Word]] = {}
    for verdict in found:
        if verdict.word == "applied" or not contents.is_nothing(verdict.change):
            words.setdefault(verdict.change.tensor, []).append(verdict.word)
    for name in edited:
        spoilt = [word for word in words.get(name, []) if word != "applied"]
        if name not in words:
            yield name, "absent"
        elif refused or spoilt:
            yield name, "refused" if refused else spoilt[0]


def _weights(
    names: Iterable[str],
    patch: Patch,
    checkpoint: Checkpoint,
    contents: Contents,
    rules: Loader,
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, Held]]:
    """The weights that the loader would hold, beside those that the patch makes."""
    for name in names:
        weight = checkpoint.read(name)
        run = dtype or weight.dtype
        changed: torch.Tensor | None = weight.to(run)
        for change in contents.changes:
            if change.tensor == name and changed is not None and not contents.is_nothing(change):
                changed = held(change, changed, rules, contents, run)
        if changed is None:
            continue
        after = tensor_digest(name, changed).value16
        # a loader rounds the weight before it adds; other types keep what half precision holds
        meant = weight.to(run) if run == torch.float16 else weight
        yield (
            name,
            Held(
                equal=patch.changes[name].is_outcome(after, run),
                apart=largest_difference(changed, patch.edited(name, meant)),
            ),
        )
