"""Verbs that make patches of checkpoints and of other patches: diff, compose, thin."""

from pathlib import Path
from typing import Literal

import click

from surgery.checkpoint.outputs import check_outputs
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    json_option,
    output_option,
    overwrite_option,
    print_json,
    rule_option,
)
from surgery.cli.program import Verb
from surgery.errors import printable
from surgery.record import JSON
from surgery.shelf import checkpoint_path


@click.command(cls=Verb)
@click.argument("base", type=CHECKPOINT)
@click.argument("edited", type=CHECKPOINT)
@output_option("The new patch.")
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    help="Approximate each matrix by this rank; the error is stated. Left out, the patch is exact.",
)
@click.option("--keep-old", is_flag=True, help="Also store the old values, to revert without BASE.")
@overwrite_option
def diff(base: str, edited: str, output: Path, rank: int | None, keep_old: bool, overwrite: bool) -> None:
    """Write the patch that makes EDITED of BASE, in whatever layouts they are."""
    check_outputs([output], [checkpoint_path(base), checkpoint_path(edited)], overwrite=overwrite)
    from surgery.patch import diff_checkpoints, save_patch

    found = diff_checkpoints(checkpoint_path(base), checkpoint_path(edited), rank=rank, keep_old=keep_old)
    digest = save_patch(found.patch, output, overwrite=overwrite)
    changed = sum(change.changed for change in found.patch.changes.values())
    largest = max(found.errors.values())
    exact = "exact" if not largest else f"off by at most {largest:.2g}"
    print(f"{output}: {changed:,} weights of {len(found.patch.changes)} tensors differ; {exact}")
    print(f"  {output.stat().st_size:,} bytes, digest {digest[:12]}")
    for what in found.left_out:
        print(printable(f"left out: {what} differ, and no patch carries them"))


@click.command(cls=Verb)
@click.argument("patches", type=FILE, nargs=-1, required=True)
@output_option("The new patch.")
@click.option("--base", type=CHECKPOINT, help="Their base; needed where two of them change one tensor.")
@click.option("--without", help="Take the part of this digest out of the one composed patch given instead.")
@overwrite_option
@json_option
def compose(
    patches: tuple[Path, ...],
    output: Path,
    base: str | None,
    without: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write several PATCHES of one base as one patch, in any order; or take a part out again."""
    place = None if base is None else checkpoint_path(base)
    check_outputs([output], [*patches, place], overwrite=overwrite)
    from surgery.patch import compose_patches, load_patch, overlaps, save_patch, take_out
    from surgery.patch.terms import shared_masks

    loaded = [load_patch(patch) for patch in patches]
    if without is None:
        made = compose_patches(loaded, place)
    elif len(loaded) == 1:
        made = take_out(loaded[0], without, place)
    else:
        raise click.UsageError("--without takes a part out of one composed patch; give just that one.")
    digest = save_patch(made, output, overwrite=overwrite)
    found = list(overlaps(loaded))
    masked = sum(count for _, _, count in shared_masks(made.terms))
    if as_json:
        terms, tensors = len(made.terms), len(made.changes)
        record: dict[str, JSON] = {"patch": str(output), "digest": digest, "terms": terms, "tensors": tensors}
        told = [overlap.as_json() for overlap in found]
        print_json({**record, "overlaps": told, "shared_masks": masked})
        return
    print(f"{output}: {len(made.terms)} terms, {len(made.changes)} tensors, digest {digest[:12]}")
    for overlap in found:
        first, second = (digest[:12] for digest in overlap.patches)
        both, rows = overlap.rows
        keys = "" if overlap.keys is None else f"; their inputs agree up to a cosine of {overlap.keys:.2f}"
        print(f"  both {first} and {second} change {both} of {rows} rows of {overlap.name}{keys}")
    if masked:
        print(f"  {masked:,} weights are masked by two of them: the stronger mask counts")
    if found:
        print("  their order changes nothing: all are changes of the base's own weight")


@click.command(cls=Verb)
@click.argument("patch", type=FILE)
@output_option("The new patch.")
@click.option("--base", type=CHECKPOINT, required=True, help="The checkpoint that PATCH was made for.")
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    required=True,
    help="Share of the masked weights, those with the largest scores.",
)
@rule_option("global", "Of what the share is taken:")
@overwrite_option
@json_option
def thin(
    patch: Path,
    output: Path,
    base: str,
    keep: float,
    rule: Literal["row", "tensor", "global"],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write PATCH with fewer masked weights, chosen by the scores that it carries; nothing is computed anew.

    Recipes of 'cad' put scores into their patch with selection.scores.
    """
    place = checkpoint_path(base)
    check_outputs([output], [patch, place], overwrite=overwrite)
    from surgery.patch import load_patch, save_patch, thinned

    before = load_patch(patch)
    made = thinned(before, place, keep, rule)
    digest = save_patch(made, output, overwrite=overwrite)
    weights, all_of_them = (sum(one.changed for one in each.changes.values()) for each in (made, before))
    if as_json:
        print_json({"patch": str(output), "digest": digest, "weights": weights, "before": all_of_them})
        return
    print(f"{output}: {weights:,} of {all_of_them:,} changed weights, digest {digest[:12]}")
