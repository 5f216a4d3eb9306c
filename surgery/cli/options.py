"""Options and arguments that several verbs share."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from surgery.record import JSON
from surgery.shelf import checkpoint_names, recipe_names

Function = TypeVar("Function", bound=Callable[..., Any])


class Shelved(click.ParamType[str]):
    """A path, or a name on a shelf; the shell completes both."""

    def __init__(self, name: str, names: Callable[[], Iterable[str]]) -> None:
        self.name = name
        self.names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Shelf names that begin like ``incomplete``, then files."""
        found = [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]
        return [*found, CompletionItem(incomplete, type="file")]


class Finite(click.ParamType[float]):
    """A number that is neither NaN nor infinite, above or from a bound on."""

    name = "float"

    def __init__(self, least: float | None = None, *, above: bool = False) -> None:
        self.least, self.above = least, above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a fault that says what was expected."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        low = self.least is not None and (number <= self.least if self.above else number < self.least)
        if not math.isfinite(number) or low:
            bound = (
                "" if self.least is None else f" {'above' if self.above else 'of at least'} {self.least:g}"
            )
            self.fail(f"{value!r} was given; expected a finite number{bound}.", param, ctx)
        return number


RECIPE = Shelved("recipe", recipe_names)
CHECKPOINT = Shelved("checkpoint", checkpoint_names)
FILE = click.Path(path_type=Path)

recipe_argument = click.argument("recipe", type=RECIPE)
base_option = click.option(
    "--base", type=CHECKPOINT, help="Checkpoint to use in place of the recipe's: a path or a shelf name."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what stands there.")
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda:N|mps", help="Where models run."
)
dtype_option = click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Compute type of the models."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads; part of what makes results equal bit for bit."
)
offload_option = click.option(
    "--offload", is_flag=True, help="Keep models in main memory; each comes to the device when it is used."
)
other_base_option = click.option(
    "--allow-other-base",
    is_flag=True,
    help="Take a fine-tune of the base, too: the same change, without the claim that the outcome is exact.",
)
batch_option = click.option("--batch", type=click.IntRange(min=1), help="Pictures drawn at a time, at most.")


def set_option(function: Function) -> Function:
    """``--set key=value``, any number of times, as a dictionary ``overrides``."""
    decorate = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_pairs,
        help="Change a key of the recipe, for example edits[0].emcid.offsets.steps=50.",
    )
    return decorate(function)


def output_option(what: str) -> Callable[[Function], Function]:
    """``-o``: where the result goes."""
    return click.option("-o", "--output", "output", type=FILE, required=True, help=what)


def rule_option(default: str, what: str) -> Callable[[Function], Function]:
    """``--rule``: what has a quota of a mask."""
    return click.option(
        "--rule",
        type=click.Choice(["row", "tensor", "global"]),
        default=default,
        show_default=True,
        help=f"{what} each row, each tensor, or all together.",
    )


def given_options(context: click.Context) -> set[str]:
    """The options and arguments that the command line names, an option by its longest spelling."""
    return {
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    }


def print_json(value: JSON) -> None:
    """``value`` on stdout, readable; what a terminal would act on is escaped as JSON does."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("".join(sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text))


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} has no '='; expected for example seed=3.")
        if key in pairs:
            raise click.BadParameter(f"{key!r} is set twice; set it once.")
        pairs[key] = text
    return pairs
