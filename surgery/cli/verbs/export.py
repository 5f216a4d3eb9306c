"""Verbs about other programs: export for them, simulate what they load, prove it with the real one."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from surgery.checkpoint.outputs import refuse_existing, refuse_inputs
from surgery.cli.options import CHECKPOINT, FILE, json_option, output_option, overwrite_option, print_json
from surgery.cli.program import FAULTS_FOUND, Verb
from surgery.errors import SurgeryError, printable
from surgery.shelf import checkpoint_path

if TYPE_CHECKING:
    from surgery.export import ExportReport, Proof
    from surgery.export.loaders import Simulation
    from surgery.patch import Patch

base_option = click.option(
    "--base",
    type=CHECKPOINT,
    help="The checkpoint that the patch was made for; that of its recipe if not named.",
)
precision_option = click.option(
    "--dtype",
    "precision",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    help="The precision that the model runs in.",
)


@click.command(cls=Verb)
@click.argument("patch", type=FILE)
@click.option(
    "--to",
    "target",
    required=True,
    metavar="checkpoint|variant|universal-lora|lycoris|comfy|peft",
    help="As what.",
)
@base_option
@output_option("The new file, or the new folder (checkpoint of a folder, variant, peft).")
@click.option("--partial", is_flag=True, help="Leave out what the target cannot carry, and record it.")
@click.option(
    "--nearest",
    is_flag=True,
    help="Where no half-precision change leads to a new value, take the nearest and state the error.",
)
@click.option("--rank", type=int, help="For a universal LoRA: approximate by this rank; the error is stated.")
@click.option("--limit", type=click.IntRange(min=1), help="For a universal LoRA: the largest file, in MB.")
@click.option("--layout", type=click.Choice(["single", "folder"]), help="Of a checkpoint, if not the base's.")
@click.option("--variant", help="The word in the names of a variant's files; 'surgery' when left out.")
@click.option("--transformers", help="For PEFT: the version that names the text encoder's layers, as 4.57.")
@overwrite_option
@json_option
def export(
    patch: Path,
    target: str,
    base: str | None,
    output: Path,
    partial: bool,
    nearest: bool,
    rank: int | None,
    limit: int | None,
    layout: Literal["single", "folder"] | None,
    variant: str | None,
    transformers: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write PATCH in a form that other programs read.

    Everything is held against the weights that the patch makes before it is written. What the target cannot
    carry is refused, tensor by tensor, unless --partial leaves it out.
    """
    from surgery.export import EXACT_LIMIT_BYTES, Knobs, export_patch
    from surgery.patch import load_patch
    from surgery.study.wordless import warn_of_prompts

    loaded = load_patch(patch)
    warn_of_prompts(loaded, patch)
    place = _base(loaded, base)
    refuse_inputs(output, [patch, place])
    refuse_existing(output, overwrite)
    knobs = Knobs(
        partial=partial,
        nearest=nearest,
        rank=rank,
        limit_bytes=EXACT_LIMIT_BYTES if limit is None else limit * 1_000_000,
        layout=layout,
        variant=Knobs().variant if variant is None else variant,
        transformers=transformers,
    )
    report = export_patch(loaded, place, output, to=target, knobs=knobs, overwrite=overwrite)
    if as_json:
        print_json(report.as_json())
    else:
        _print_report(report)


def _warn_of_masks(tensors: int) -> None:
    if tensors:
        print(
            f"{tensors} tensors are masked, by differences: load the file at strength 1 and no other. At 2, "
            "masked weights come out with the opposite sign."
        )


def _print_report(report: "ExportReport") -> None:
    for name, reason in report.left_out.items():
        print(printable(f"left out  {name}: {reason}"))
    for name, error in report.errors.items():
        if error:
            print(f"off by {error:.2g}  {name}")
    _warn_of_masks(len(report.added_masks))
    largest = max(report.errors.values())
    exact = f"off by at most {largest:.2g}" if largest else "every value as the patch makes it"
    print(
        f"{report.path}: {len(report.errors)} tensors in {report.modules} layers, "
        f"{report.size_bytes:,} bytes; {exact}"
    )


@click.command(cls=Verb)
@click.argument("loader", metavar="LOADER")
@click.argument("file", type=FILE)
@click.option("--base", type=CHECKPOINT, help="The model: its layers, and the weights that it would hold.")
@click.option("--patch", type=FILE, help="The patch that FILE was exported from; needed for the weights.")
@precision_option
@json_option
@click.pass_context
def simulate(
    context: click.Context,
    loader: str,
    file: Path,
    base: str | None,
    patch: Path | None,
    precision: str | None,
    as_json: bool,
) -> None:
    """Tell what LOADER applies, drops or refuses of FILE, from rules about it.

    LOADER is diffusers, diffusers-0.35, comfyui, a1111, forge, invokeai, sd.cpp or kohya; FILE a LoRA, a
    LyCORIS file or the like, or a patch that is a LoRA. The exit code is 3 when an edited tensor is lost.
    """
    import torch

    from surgery.export.loaders import simulate_file

    dtype = None if precision is None else getattr(torch, precision)
    place = None if base is None else checkpoint_path(base)
    found = simulate_file(loader, file, base=place, patch=patch, dtype=dtype)
    if as_json:
        print_json(found.as_json())
    else:
        _print_simulation(found)
    if not found.whole:
        context.exit(FAULTS_FOUND)


def _print_simulation(found: "Simulation") -> None:
    for verdict in found.verdicts:
        line = f"{verdict.word:10} {verdict.change.tensor} ({verdict.change.form})"
        if verdict.word != "applied":
            line += f": {verdict.why}; heard: {verdict.heard} [{verdict.evidence}]"
        print(printable(line))
    for name, held in found.weights.items():
        if not held.equal:
            print(f"off by {held.apart:.2g}  {name}")
    for reason in found.refused:
        print(
            printable(f"the whole file is refused: {reason.why}; heard: {reason.heard} [{reason.evidence}]")
        )
    _warn_of_masks(found.added_masks)
    for name, word in found.lost.items():
        print(printable(f"lost, {word}: {name}"))
    source = found.loader.source
    outcome = "all of the edit is applied" if found.whole else f"{len(found.lost)} edited tensors are lost"
    equal = sum(held.equal for held in found.weights.values())
    weights = f"; {equal} of {len(found.weights)} weights as the patch makes them" if found.weights else ""
    print(printable(f"{found.file} in {found.loader.title}: {outcome}{weights}"))
    print(f"  by rules of version {found.rules}: {source.what}, {source.date}")


@click.command(cls=Verb)
@click.argument("file", type=FILE)
@click.option("--with", "loader", default="diffusers", show_default=True, help="The library to ask.")
@base_option
@click.option("--patch", type=FILE, help="The patch that FILE was exported from; FILE itself when left out.")
@click.option(
    "--dtype",
    "precision",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="The precision that the pipeline runs in.",
)
@json_option
@click.pass_context
def prove(
    context: click.Context,
    file: Path,
    loader: str,
    base: str | None,
    patch: Path | None,
    precision: str,
    as_json: bool,
) -> None:
    """Load the LoRA FILE with the real library, fuse it, and hash every weight.

    The exit code is 3 when a weight is not what the patch makes of it.
    """
    import torch

    from surgery.export import prove_file
    from surgery.patch import load_patch

    edit = file if patch is None else patch
    place = _base(load_patch(edit), base)
    proof = prove_file(file, place, edit, loader=loader, dtype=getattr(torch, precision))
    if as_json:
        print_json(proof.as_json())
    else:
        _print_proof(proof)
    if not proof.holds:
        context.exit(FAULTS_FOUND)


def _print_proof(proof: "Proof") -> None:
    if proof.refused:
        print(printable(f"{proof.loader} refuses {proof.file}: {proof.refused}"))
        return
    for name, same in proof.tensors.items():
        print(f"{'equal' if same else 'differs':8} {name}")
    for name in proof.strays:
        print(f"{'stray':8} {name}: the patch leaves it alone")
    equal = sum(proof.tensors.values())
    print(
        f"{proof.file} in {proof.loader}: {equal} of {len(proof.tensors)} weights as the patch makes them, "
        f"{len(proof.strays)} others changed"
    )


def _base(patch: "Patch", named: str | None) -> Path:
    """The base that was named, or that the patch's recipe names."""
    if named is not None:
        return checkpoint_path(named)
    from surgery.recipe import parse_recipe

    recipe = patch.provenance.get("recipe")
    try:
        return parse_recipe(str(recipe)).base_path()
    except SurgeryError as error:
        raise click.UsageError(
            "the patch does not say where its base is; name the checkpoint that it was made for (--base)."
        ) from error
