"""A patch as weights: a merged checkpoint in either layout, or one more variant beside a folder's files.

The only exports that no loader can apply by half.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from surgery.checkpoint.atomic import atomic_folder, make_folder, scratch_folder, write_bytes
from surgery.checkpoint.convert import convert_checkpoint
from surgery.checkpoint.header import open_header
from surgery.checkpoint.keymap import WEIGHT_STEMS
from surgery.checkpoint.layout import Checkpoint
from surgery.checkpoint.outputs import refuse_foreign_files
from surgery.checkpoint.serialise import Lazy, Written, copied, safetensors_chunks
from surgery.checkpoint.writer import refuse_overlap
from surgery.errors import CheckpointError, PatchError
from surgery.export.job import Job, components_of, module_of
from surgery.export.report import ExportReport
from surgery.names import split
from surgery.patch.apply import apply_patch

_VARIANT: Final = re.compile(r"(?!.*-\d{5}-of-\d{5})[A-Za-z0-9_-]+", re.ASCII)


def export_checkpoint(job: Job) -> ExportReport:
    """Write the base with the patch in it, in its own layout or in the other one.

    Raises:
        PatchError: when a tensor does not come out as the patch records.
        CheckpointError: when the base cannot be written in the other layout.
        SurgeryError: when ``out`` exists, or the disk refuses.
    """
    if job.knobs.layout in (None, job.checkpoint.layout):
        apply_patch(job.patch, job.checkpoint.path, job.out, overwrite=job.overwrite)
    else:
        refuse_overlap(job.checkpoint.path, job.out)
        with _edited(job) as edited:
            convert_checkpoint(edited, job.out, overwrite=job.overwrite)
    return _report(job)


def export_variant(job: Job) -> ExportReport:
    """Write whole weight files of the touched components, to be laid beside those of a folder.

    ``from_pretrained(folder, variant=…)`` of diffusers then loads them, and the plain files of all other
    components; a variant that is not there is an error.

    Raises:
        PatchError: when the variant is no word for file names, or a tensor does not come out as recorded.
        SurgeryError: when ``out`` exists or holds something else, or the disk refuses.
    """
    variant = job.knobs.variant
    if not _VARIANT.fullmatch(variant):
        raise PatchError(
            f"{variant!r} cannot name a variant; letters, digits, '-' and '_' were expected, as in 'fp16'."
        )
    refuse_overlap(job.checkpoint.path, job.out)
    refuse_foreign_files(job.out, r"(?:text_encoder(?:_2)?|unet|vae)/[\w.-]+\.safetensors", "an older export")
    metadata = {"format": "pt", **job.record(dict.fromkeys(job.patch.changes, 0.0), {})}
    with atomic_folder(job.out, overwrite=job.overwrite) as temporary:
        for component in components_of(job.patch.changes):
            make_folder(temporary / component)
            file = temporary / component / f"{WEIGHT_STEMS[component]}.{variant}.safetensors"
            write_bytes(file, safetensors_chunks(_component(job, component), metadata))
    return _report(job)


def _component(job: Job, component: str) -> dict[str, Written]:
    """All weights of a component under the keys that old and new libraries read, the edited ones new."""
    tensors: dict[str, Written] = {}
    for name, entry in job.checkpoint.tensors.items():
        owner, path = split(name)
        if owner == component:
            tensors[path] = _new(job, name) if name in job.patch.changes else copied(entry)
    return tensors


def _new(job: Job, name: str) -> Lazy:
    change = job.patch.changes[name]
    dtype = job.checkpoint.entry(name).dtype
    return Lazy(dtype=dtype, shape=change.shape, make=partial(job.published, name))


@contextmanager
def _edited(job: Job) -> Iterator[Checkpoint]:
    """The base as a checkpoint whose touched weights lie edited in a file of their own, beside the output."""
    tensors: dict[str, Written] = {name: _new(job, name) for name in job.patch.changes}
    with scratch_folder(job.out) as place:
        file = place / "edited.safetensors"
        write_bytes(file, safetensors_chunks(tensors, {}))
        entries = {entry.key: entry for entry in open_header(file, CheckpointError).entries}
        yield replace(job.checkpoint, tensors={**job.checkpoint.tensors, **entries})


def _report(job: Job) -> ExportReport:
    names = job.patch.changes
    return job.report(dict.fromkeys(names, 0.0), {}, len({module_of(name) for name in names}))
