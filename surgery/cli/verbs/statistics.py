"""The verb that collects key statistics for many runs: statistics."""

from pathlib import Path

import click

from surgery.checkpoint.outputs import check_outputs
from surgery.cli.devices import chosen_device, use_threads
from surgery.cli.options import (
    CHECKPOINT,
    FILE,
    Finite,
    device_option,
    output_option,
    overwrite_option,
    threads_option,
)
from surgery.cli.program import Verb
from surgery.errors import MethodError
from surgery.shelf import checkpoint_path


@click.command(cls=Verb)
@click.argument("base", type=CHECKPOINT)
@click.option("--captions", type=FILE, help="One caption a line, any number; left out, those beside BASE.")
@click.option("--count", type=click.IntRange(min=1), help="Captions used, from the start; all when left out.")
@click.option("--no-padding", is_flag=True, help="Leave out the padding that the U-Net reads too.")
@click.option(
    "--word-weight",
    type=Finite(0, above=True),
    default=7.0,
    show_default=True,
    help="Weight of a word against a token of padding.",
)
@click.option("--no-bos", is_flag=True, help="Leave out the begin token of each caption.")
@click.option("--layers", help="Blocks of the text encoder, for example 0-10; left out, those edits change.")
@click.option("--layers-2", help="The same of SDXL's second text encoder.")
@click.option("--cache", type=FILE, help="Folder for parts of the work, to go on after a stop.")
@output_option("The statistics, a safetensors file.")
@overwrite_option
@device_option
@threads_option
def statistics(
    base: str,
    captions: Path | None,
    count: int | None,
    no_padding: bool,
    word_weight: float,
    no_bos: bool,
    layers: str | None,
    layers_2: str | None,
    cache: Path | None,
    output: Path,
    overwrite: bool,
    device: str,
    threads: int | None,
) -> None:
    """Collect what captions say must not change, once for many runs.

    A recipe takes the file as corpus.statistics, in place of captions. It belongs to BASE's text encoders.
    """
    place = checkpoint_path(base)
    path = place / "captions.txt" if captions is None else captions
    check_outputs([output], [place, path], overwrite=overwrite)
    if not path.is_file():
        raise MethodError(
            f"no captions at {path}; expected a text file with one a line. Name it: --captions."
        )
    chosen = {"text_encoder": _layers(layers, "--layers"), "text_encoder_2": _layers(layers_2, "--layers-2")}
    from surgery.methods.emcid import CaptionFile, CorpusSettings, save_statistics
    from surgery.store import Store
    from surgery.study.statistics import statistics_of

    settings = CorpusSettings(
        count=count, include_bos=not no_bos, include_padding=not no_padding, word_weight=word_weight
    )
    use_threads(threads)
    found = statistics_of(
        place,
        CaptionFile(path=path),
        settings,
        layers={component: numbers for component, numbers in chosen.items() if numbers},
        device=chosen_device(device),
        store=None if cache is None else Store(cache),
    )
    save_statistics(found, output, overwrite=overwrite)
    for component, one in found.items():
        counted = f"{one.token_count:,} tokens in {one.caption_count:,} captions"
        print(f"{output}: {component}, {len(one.moments)} layers, {counted}")


def _layers(text: str | None, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    from surgery.recipe.parameters import layer_numbers

    try:
        numbers = layer_numbers(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}.") from error
    assert isinstance(numbers, tuple)
    return numbers
