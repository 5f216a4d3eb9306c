"""The program as a whole: exit codes, help, logging, and what it loads."""

import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from surgery import __version__
from surgery.cli.program import GROUPS, program
from surgery.cli.verbs import recipes as recipe_verbs
from tests.cli.conftest import Call

VERBS = [verb for verbs in GROUPS.values() for verb in verbs]


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make ``surgery recipes`` raise ``error``."""

    def titles() -> dict[str, str]:
        raise error

    monkeypatch.setattr(recipe_verbs, "recipe_titles", titles)


def test_done_is_0(surgery: Call) -> None:
    assert surgery("recipes").code == 0


def test_an_error_of_ours_is_1_and_one_line_without_traceback(surgery: Call) -> None:
    done = surgery("show", "quikstart")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("surgery: no recipe 'quikstart'")
    assert len(done.err.splitlines()) == 1


def test_verbose_shows_the_traceback_before_the_line(surgery: Call) -> None:
    done = surgery("show", "-v", "quikstart")
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("surgery: no recipe")


def test_a_refusal_of_the_system_is_1(surgery: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, PermissionError(13, "Permission denied", "/root/x"))
    done = surgery("recipes")
    assert (done.code, done.err) == (
        1,
        "surgery: the system refuses: [Errno 13] Permission denied: '/root/x'\n",
    )


def test_a_fault_of_the_program_is_1_and_says_so(surgery: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("division by zero"))
    done = surgery("recipes")
    assert done.code == 1
    assert done.err == (
        "surgery: ZeroDivisionError: division by zero. This is a fault of the program; -v shows where.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "no verb 'chek'. Did you mean 'check'?"),
        (["zzz"], "Verbs are: recipes,"),
        (["check"], "Missing argument"),
        (["check", "quickstart", "--set", "seed"], "has no '='"),
        (["check", "quickstart", "--set", "seed=1", "--set", "seed=2"], "set twice"),
        (["check", "quickstart", "--colour"], "No such option"),
        (["run", "quickstart"], "Missing option '-o'"),
        (["run", "quickstart", "-o", "x", "--threads", "0"], "--threads"),
        (["locate", "pocket-sd"], "either selectors or --phrase"),
        (["revert", "p", "e", "-o", "x", "--undo", "u", "--base", "b"], "--undo or --base, not both"),
    ],
)
def test_wrong_usage_is_2(surgery: Call, arguments: list[str], message: str) -> None:
    done = surgery(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_an_interruption_is_130(surgery: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    done = surgery("recipes")
    assert done.code == 130
    assert done.err.strip() == "surgery: interrupted"


def test_no_arguments_show_the_help(surgery: Call) -> None:
    done = surgery()
    assert done.code == 2
    assert "Usage: surgery" in done.err


def test_the_version_is_the_package_s(surgery: Call) -> None:
    assert surgery("--version").out == f"surgery, version {__version__}\n"


def test_the_help_names_every_verb_under_its_group(surgery: Call) -> None:
    lines = [line.split() for line in surgery("--help").out.splitlines() if line.startswith("  ")]
    named = {words[0] for words in lines if words}
    assert set(VERBS) <= named


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_that_explains_all_its_options(surgery: Call, verb: str) -> None:
    done = surgery(verb, "--help")
    command = program.get_command(click.Context(program), verb)
    assert done.code == 0
    assert command is not None
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_every_module_of_verbs_is_in_the_table() -> None:
    folder = Path(recipe_verbs.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules == {module for verbs in GROUPS.values() for module in verbs.values()}
    for module in modules:
        import_module(f"surgery.cli.verbs.{module}")


def test_the_log_file_gets_every_line_with_its_time(surgery: Call, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    surgery("show", "nothing", "--log-file", log)
    surgery("show", "--log-file", log, "nothing")
    text = log.read_text()
    assert text.count("surgery show failed") == 2
    assert "Traceback" in text
    assert text[:2] == "20"


def test_a_log_file_that_cannot_be_opened_is_1(surgery: Call, tmp_path: Path) -> None:
    done = surgery("show", "quickstart", "--log-file", tmp_path / "none" / "log.txt")
    assert done.code == 1
    assert "cannot write the log file" in done.err


def test_logging_is_as_before_afterwards(surgery: Call) -> None:
    logger = logging.getLogger("surgery")
    before = (logger.level, list(logger.handlers))
    surgery("show", "-v", "quickstart")
    assert (logger.level, logger.handlers) == before


def test_quiet_says_nothing_but_what_went_wrong(
    surgery: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def titles() -> dict[str, str]:
        logging.getLogger("surgery.recipe").warning("something odd")
        logging.getLogger("surgery.recipe").error("something wrong")
        return {}

    monkeypatch.setattr(recipe_verbs, "recipe_titles", titles)
    assert surgery("recipes").err == "something odd\nsomething wrong\n"
    assert surgery("recipes", "-q").err == "something wrong\n"
    assert surgery("-q", "recipes").err == "something wrong\n"


LIGHT = [
    "--help",
    "--version",
    "recipes",
    "recipes schema",
    "show quickstart",
    "run --help",
    "check quickstart",
]


@pytest.mark.parametrize("arguments", LIGHT)
def test_looking_around_loads_no_tensor_library(arguments: str) -> None:
    code = (
        "import sys; from surgery.cli import call; code = call(sys.argv[1:])\n"
        "print({'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules), code, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "set() 0"


def test_importing_the_package_loads_no_tensor_library() -> None:
    code = "import sys, surgery; dir(surgery); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_package_can_be_run_as_a_module() -> None:
    command = [sys.executable, "-m", "surgery", "recipes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "quickstart" in done.stdout


def test_the_shell_completes_recipe_names() -> None:
    environment = {"_SURGERY_COMPLETE": "bash_complete", "COMP_WORDS": "surgery check qui", "COMP_CWORD": "2"}
    code = "import sys; from surgery.cli.program import program; program(prog_name='surgery')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "plain,quickstart" in done.stdout.splitlines()
