"""The verbs, loaded when they are called, and what their outcome means to the shell."""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import click

from surgery import __version__
from surgery.cli.logs import Verbosity, logging_as, verbosity_options
from surgery.errors import SurgeryError, nearest, printable

_log = logging.getLogger(__name__)

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
FAULTS_FOUND: Final = 3
INTERRUPTED: Final = 130

# Verbs by group, in the order of the help, and the module that has the function of that name.
GROUPS: Final[dict[str, dict[str, str]]] = {
    "Recipes": {"recipes": "recipes", "show": "recipes", "copy": "recipes", "check": "recipes"},
    "Look": {"inspect": "look", "locate": "look", "attribute": "attribute"},
    "Run": {
        "plan": "run",
        "run": "run",
        "sample": "sample",
        "train": "train",
        "statistics": "statistics",
    },
    "Patches": {
        "apply": "patches",
        "revert": "patches",
        "verify": "patches",
        "diff": "making",
        "compose": "making",
        "thin": "making",
        "audit": "audit",
    },
    "Judge": {"evaluate": "evaluate"},
    "Other programs": {"export": "export", "simulate": "export", "prove": "export"},
    "Checkpoints": {"convert": "checkpoints"},
}
_NO_MEMORY: Final = (
    "out of memory, and what was computed cannot be done in smaller parts; expected more room. Close other "
    "programs, take another --device, or give the models to main memory with --offload."
)
_MODULES: Final = {verb: module for verbs in GROUPS.values() for verb, module in verbs.items()}


class Program(click.Group):
    """The group of all verbs; each is imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name."""
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"surgery.cli.verbs.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb and its arguments; a mistyped one is answered with the nearest."""
        if args and args[0] not in _MODULES and not args[0].startswith("-"):
            guess = nearest(args[0], _MODULES)
            hint = f"Did you mean {guess!r}?" if guess else f"Verbs are: {', '.join(_MODULES)}."
            raise click.UsageError(f"no verb {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs under their groups."""
        for title, verbs in GROUPS.items():
            rows = [(verb, self._command(ctx, verb).get_short_help_str(200)) for verb in verbs]
            with formatter.section(title):
                formatter.write_dl(rows)

    def _command(self, ctx: click.Context, verb: str) -> click.Command:
        command = self.get_command(ctx, verb)
        assert command is not None  # every verb of the table has its function; a test calls them all
        return command


class Verb(click.Command):
    """A command that understands ``-v``, ``-q`` and ``--log-file`` and logs accordingly."""

    def __init__(self, *args: Any, **details: Any) -> None:
        super().__init__(*args, **details)
        self.params += verbosity_options()

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb with logging set up; a failure's traceback goes to ``-v`` and the log file."""
        with logging_as(ctx.find_root().obj):
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit):
                raise
            except BaseException:
                _log.debug("%s failed", ctx.command_path, exc_info=True)
                raise


class VerbGroup(Verb, click.Group):
    """A verb that has verbs of its own."""


@click.group(
    cls=Program,
    params=verbosity_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Shell completion: eval "$(_SURGERY_COMPLETE=bash_source surgery)" (or zsh_source, fish_source).',
)
@click.version_option(__version__, prog_name="surgery")
def program() -> None:
    """Edit Stable Diffusion checkpoints offline and ship the edit as a small patch."""


def main() -> int:
    """The program: offline, and without the chatter of the model libraries."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    return call(sys.argv[1:])


def call(arguments: Sequence[str]) -> int:
    """Run the program on ``arguments`` and return its exit code.

    0 done, 1 an error of ours (one line, no traceback without ``-v``), 2 wrong usage, 3 a verification found
    faults, 130 interrupted.
    """
    try:
        outcome = program.main(list(arguments), prog_name="surgery", standalone_mode=False, obj=Verbosity())
        return outcome if isinstance(outcome, int) else DONE
    except click.Abort:
        return _failed("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SurgeryError as error:
        return _failed(str(error), FAILED)
    except OSError as error:
        return _failed(f"the system refuses: {error}", FAILED)
    except Exception as error:
        if _out_of_memory(error):
            return _failed(_NO_MEMORY, FAILED)
        where = "This is a fault of the program; -v shows where."
        return _failed(f"{type(error).__name__}: {error}. {where}", FAILED)


def _out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # without it nothing large was computed
    if torch is None:
        return isinstance(error, MemoryError)
    from surgery.diffusion import out_of_memory

    return out_of_memory(error)


def _failed(message: str, code: int) -> int:
    print(printable(f"surgery: {message}"), file=sys.stderr)
    return code
