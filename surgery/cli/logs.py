"""Where log lines go: short ones to stderr, all of them with times to ``--log-file``."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from surgery import progress
from surgery.errors import SurgeryError, printable


@dataclass
class Verbosity:
    """How much is said; filled while the command line is read, which is why it can change."""

    verbose: bool = False
    quiet: bool = False
    log_file: Path | None = None


class Line(logging.Handler):
    """Writes to stderr without tearing a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        tqdm.write(printable(self.format(record)), file=sys.stderr)


@contextmanager
def logging_as(verbosity: Verbosity) -> Iterator[None]:
    """Log lines of this project go where ``verbosity`` says, as long as the context lasts."""
    logger = logging.getLogger("surgery")
    with ExitStack() as stack:
        if verbosity.quiet:
            stack.enter_context(progress.silence())
        for handler in _handlers(verbosity):
            logger.addHandler(handler)
            stack.callback(handler.close)
            stack.callback(logger.removeHandler, handler)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.DEBUG)
        yield


def _handlers(verbosity: Verbosity) -> Iterator[logging.Handler]:
    line = Line(logging.ERROR if verbosity.quiet else logging.DEBUG if verbosity.verbose else logging.INFO)
    line.setFormatter(logging.Formatter("%(name)s: %(message)s" if verbosity.verbose else "%(message)s"))
    yield line
    if verbosity.log_file is not None:
        try:
            file = logging.FileHandler(verbosity.log_file, encoding="utf-8")
        except OSError as error:
            raise SurgeryError(
                f"cannot write the log file {verbosity.log_file}: {error.strerror}. Name a file in a folder "
                "that exists and can be written."
            ) from error
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        yield file


def verbosity_options() -> list[click.Parameter]:
    """``-v``, ``-q`` and ``--log-file``, which the program and every verb understand."""
    return [
        _option(["-v", "--verbose"], "verbose", is_flag=True, help="Say more; show tracebacks of errors."),
        _option(["-q", "--quiet"], "quiet", is_flag=True, help="Say only what went wrong; no progress bars."),
        _option(
            ["--log-file"],
            "log_file",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Append every log line, with times, to this file.",
        ),
    ]


def _option(names: list[str], attribute: str, **details: Any) -> click.Option:
    def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            setattr(context.find_root().obj, attribute, value)

    return click.Option([*names, attribute], expose_value=False, callback=remember, **details)
