"""The verb that tells what changed: audit."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from surgery.cli.options import CHECKPOINT, FILE, json_option, overwrite_option, print_json
from surgery.cli.program import FAULTS_FOUND, Verb
from surgery.shelf import checkpoint_path

if TYPE_CHECKING:
    from surgery.audit import AuditOptions
    from surgery.report import AuditRecord


@click.command(cls=Verb)
@click.argument("before", type=CHECKPOINT, metavar="BASE|PATCH")
@click.argument("edited", type=CHECKPOINT, required=False, metavar="[EDITED]")
@click.option("--base", type=CHECKPOINT, help="Of a PATCH: what it was made for, to see sizes and words.")
@click.option("--expect", type=FILE, help="A patch that should be in EDITED; exit code 3 when it is not.")
@click.option(
    "--words",
    type=FILE,
    help="Phrases to look for, one a line; without it, the names in the base's concepts.json.",
)
@click.option(
    "--captions",
    type=FILE,
    help="Prompts of the usual kind, one a line; without it, the base's captions.txt, or made-up ones.",
)
@click.option(
    "--spectra/--no-spectra",
    default=True,
    show_default=True,
    help="Singular values of every changed matrix; without them, ranks are not told.",
)
@click.option("--other", type=CHECKPOINT, help="A second model that may have been merged into EDITED.")
@click.option("--html", type=FILE, help="Also write a page that stands alone, with everything the JSON has.")
@overwrite_option
@json_option
@click.pass_context
def audit(
    context: click.Context,
    before: str,
    edited: str | None,
    base: str | None,
    expect: Path | None,
    words: Path | None,
    captions: Path | None,
    spectra: bool,
    other: str | None,
    html: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Tell what changed between BASE and EDITED, or what PATCH changes.

    The two may be folders or single files. Says which tensors differ, how, what kind of edit that is and
    which words it is about. The exit code is 3 when there are NaN or infinite weights, or when --expect is
    not met.
    """
    _refuse_mixtures(edited, base, expect, other)
    from surgery.audit import AuditOptions
    from surgery.checkpoint.atomic import atomic_file, write_bytes
    from surgery.checkpoint.outputs import check_outputs
    from surgery.report import audit_page, audit_text

    named = [None if name is None else checkpoint_path(name) for name in (before, edited, base, other)]
    check_outputs([html], [*named, expect, words, captions], overwrite=overwrite)
    merged = named[-1]
    options = AuditOptions(spectra=spectra, words=words, captions=captions, other=merged, expect=expect)
    record = _record(before, edited, base, options)
    if html is not None:
        with atomic_file(html, overwrite=overwrite) as temporary:
            write_bytes(temporary, [audit_page(record).encode()])
    if as_json:
        print_json(record.as_json())
    else:
        print(audit_text(record))
    if not record.sound:
        context.exit(FAULTS_FOUND)


def _record(before: str, edited: str | None, base: str | None, options: "AuditOptions") -> "AuditRecord":
    from surgery.audit import audit_checkpoints, audit_patch
    from surgery.patch import is_patch

    if edited is not None:
        return audit_checkpoints(checkpoint_path(before), checkpoint_path(edited), options)
    place = checkpoint_path(before)
    if not is_patch(place):
        raise click.UsageError(f"{place} is no patch; name the checkpoint to compare it with as well.")
    return audit_patch(place, None if base is None else checkpoint_path(base), options)


def _refuse_mixtures(edited: str | None, base: str | None, expect: Path | None, other: str | None) -> None:
    """Options that belong to the other way of calling it."""
    if edited is not None and base is not None:
        raise click.UsageError("--base belongs to a patch; with two checkpoints the first is the base.")
    if edited is None:
        for option, value in (("--expect", expect), ("--other", other)):
            if value is not None:
                raise click.UsageError(f"{option} needs two checkpoints: BASE and EDITED.")
