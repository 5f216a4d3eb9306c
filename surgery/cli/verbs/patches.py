"""Verbs that put patches into checkpoints and take them out: apply, revert, verify."""

from pathlib import Path

import click

from surgery.checkpoint.outputs import refuse_existing, refuse_inputs
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    json_option,
    other_base_option,
    output_option,
    overwrite_option,
    print_json,
)
from surgery.cli.program import FAULTS_FOUND, Verb
from surgery.shelf import checkpoint_path

patch_argument = click.argument("patch", type=FILE)


@click.command(cls=Verb)
@patch_argument
@click.argument("base", type=CHECKPOINT)
@output_option("The new checkpoint, in the layout of BASE.")
@click.option("--strength", type=float, default=1.0, show_default=True, help="1 = the patch as computed.")
@click.option("--undo", type=FILE, help="Also write a file that takes the patch out again without BASE.")
@other_base_option
@overwrite_option
def apply(
    patch: Path,
    base: str,
    output: Path,
    strength: float,
    undo: Path | None,
    allow_other_base: bool,
    overwrite: bool,
) -> None:
    """Write the checkpoint BASE with PATCH in it."""
    place = checkpoint_path(base)
    refuse_inputs(output, [patch, place, undo])
    if undo is not None:
        refuse_inputs(undo, [patch, place])
    refuse_existing(output, overwrite)
    from surgery.patch import apply_patch, load_patch
    from surgery.study.wordless import warn_of_prompts

    loaded = load_patch(patch)
    warn_of_prompts(loaded, patch)
    report = apply_patch(
        loaded,
        place,
        output,
        strength=strength,
        undo=undo,
        overwrite=overwrite,
        allow_other_base=allow_other_base,
    )
    changed = sum(tensor.changed for tensor in report.tensors.values())
    exact = "bit for bit as the patch records" if report.exact else f"at strength {strength:g}"
    if report.other_base:
        exact = f"{report.other_base} of them on another base, where no outcome is recorded"
    print(f"{output}: {changed:,} weights of {len(report.tensors)} tensors changed, {exact}")


@click.command(cls=Verb)
@patch_argument
@click.argument("edited", type=CHECKPOINT)
@output_option("The new checkpoint, without the patch.")
@click.option("--undo", type=FILE, help="The file that 'apply --undo' wrote.")
@click.option("--base", type=CHECKPOINT, help="The checkpoint the patch was applied to.")
@overwrite_option
def revert(
    patch: Path, edited: str, output: Path, undo: Path | None, base: str | None, overwrite: bool
) -> None:
    """Write the checkpoint EDITED without PATCH, byte for byte as it was."""
    if undo is not None and base is not None:
        raise click.UsageError("give --undo or --base, not both: the old bits come from one of them.")
    before = None if base is None else checkpoint_path(base)
    refuse_inputs(output, [patch, undo, before, checkpoint_path(edited)])
    refuse_existing(output, overwrite)
    from surgery.patch import load_patch, revert_patch

    revert_patch(
        load_patch(patch), checkpoint_path(edited), output, undo=undo, base=before, overwrite=overwrite
    )
    print(output)


@click.command(cls=Verb)
@patch_argument
@click.argument("checkpoint", type=CHECKPOINT)
@click.option(
    "--expect",
    type=click.Choice(["after", "before"]),
    default="after",
    show_default=True,
    help="Whether the patch should be in the checkpoint.",
)
@json_option
@click.pass_context
def verify(context: click.Context, patch: Path, checkpoint: str, expect: str, as_json: bool) -> None:
    """Tell tensor by tensor whether PATCH is in CHECKPOINT.

    The exit code is 3 when it is not as expected.
    """
    from surgery.patch import load_patch, verify_patch

    report = verify_patch(load_patch(patch), checkpoint_path(checkpoint))
    if as_json:
        print_json(report.as_json())
    else:
        for name, state in report.tensors.items():
            print(f"{state.word:8} {name}")
        for component, agreement in report.untouched.items():
            print(f"{agreement or 'differs':8} {component}, what the patch leaves alone")
        print(f"{checkpoint}: {_WORDS[report.word]}")
    if report.word not in (expect, "both"):
        context.exit(FAULTS_FOUND)


_WORDS = {
    "after": "the patch is in it",
    "before": "the patch is not in it",
    "both": "the patch changes nothing in it",
    "neither": "neither what the patch was made for nor what it makes",
}
