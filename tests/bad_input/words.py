"""Recipes that are none, and arguments that make no sense."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.bad_input.case import Case, Place
from tests.bad_input.singles import like_file

EDIT = "edits:\n  - emcid:\n      concepts: [{source: cat, destination: dog}]\n"
HEAD = "surgery: 1\nbase: pocket-sd\n"

RECIPES: Sequence[tuple[str, str, str | bytes, str]] = [
    ("recipe that is none", "nothing", "", "holds no mapping"),
    ("recipe that is none", "a list", "[1, 2]", "holds no mapping"),
    ("recipe that is none", "words", "just words", "holds no mapping"),
    ("recipe that is none", "two of them", f"{HEAD}{EDIT}---\n{HEAD}", "document"),
    ("recipe that is none", "brackets", "a: [1, 2", "no valid YAML"),
    ("recipe that is none", "tabs", "a:\n\t- b", "no valid YAML"),
    ("text in another encoding", "Latin 1", "title: \xe4".encode("latin-1"), "is no UTF-8"),
    ("text in another encoding", "UTF-16", "surgery: 1".encode("utf-16"), "is no UTF-8|no valid YAML"),
    ("text in another encoding", "nulls", b"\x00\x00", "no valid YAML"),
    ("code in a recipe", "a call", "a: !!python/object/apply:os.system ['touch x']", "tag"),
    ("code in a recipe", "a name", "a: !!python/name:os.system ", "tag"),
    ("code in a recipe", "a tag", f"{HEAD}title: !x y\n{EDIT}", "tag"),
    (
        "recipe that unfolds",
        "aliases of aliases",
        "a: &a [1]\nb: &b [*a,*a]\nc: &c [*b,*b]\n",
        "alias|anchor",
    ),
    ("recipe that unfolds", "a merge", "a: &a {b: 1}\nc:\n  <<: *a\n", "alias|anchor"),
    ("nested recipe", "lists", "a: " + "[" * 5000, "nested more than 32|no valid YAML"),
    ("nested recipe", "tables", "a: " + "{a: " * 5000, "nested more than 32|no valid YAML"),
    ("doubled key", "in a recipe", f"{HEAD}seed: 1\nseed: 2\n{EDIT}", "key 'seed' stands twice"),
    ("unknown key", "in a recipe", f"{HEAD}sede: 1\n{EDIT}", "sede"),
    ("unknown key", "of a method", f"{HEAD}edits:\n  - emcdi: {{}}\n", "emcdi"),
    ("unknown key", "in a step", HEAD + EDIT.replace("concepts", "concept"), "concept"),
    ("control characters in a key", "", f'{HEAD}"\\e[2J": 1\n{EDIT}', r"\\x1b\[2J"),
    ("markup in a recipe", "in a key", f'{HEAD}"<script>": 1\n{EDIT}', "<script>"),
    ("missing key", "the version", f"base: pocket-sd\n{EDIT}", "surgery"),
    ("missing key", "the edits", HEAD, "edits"),
    ("missing key", "the base", f"surgery: 1\n{EDIT}", "base"),
    ("value of a false kind", "a newer version", f"surgery: 2\nbase: pocket-sd\n{EDIT}", "surgery"),
    ("value of a false kind", "a text for a number", f"{HEAD}seed: x\n{EDIT}", "seed"),
    ("value of a false kind", "a number with a point", f"{HEAD}seed: 1.5\n{EDIT}", "seed"),
    ("value of a false kind", "a truth value", f"{HEAD}seed: true\n{EDIT}", "seed"),
    ("value of a false kind", "a table", f"{HEAD}base: {{a: b}}\n{EDIT}", "base"),
    ("value of a false kind", "null", f"{HEAD}edits: null\n", "edits"),
    ("negative number", "a seed", f"{HEAD}seed: -1\n{EDIT}", "seed"),
    ("absurd number", "of 4,000 digits", f"{HEAD}seed: {'9' * 4000}\n{EDIT}", "seed"),
    ("absurd number", "a seed of 10^30", f"{HEAD}seed: {10**30}\n{EDIT}", "seed"),
    ("missing file", "captions", HEAD + EDIT + "      corpus: {captions: gone.txt}\n", "no file .*gone.txt"),
]


def _recipe(content: str | bytes, place: Place) -> Sequence[object]:
    path = place.root / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return "check", path


def _pipe_recipe(place: Place) -> Sequence[object]:
    os.mkfifo(place.root / "recipe.yaml")
    return "check", place.root / "recipe.yaml"


def _existing(place: Place) -> Sequence[object]:
    place.out.write_text("mine")
    return "convert", place.sound.base, "-o", place.out, "--overwrite"


def _folder_of_others(place: Place) -> Sequence[object]:
    place.out.mkdir()
    (place.out / "diary.txt").write_text("mine")
    return "apply", place.sound.patch, place.sound.base, "-o", place.out, "--overwrite"


def _below_a_file(place: Place) -> Sequence[object]:
    (place.root / "file").write_text("mine")
    return "apply", place.sound.patch, place.sound.base, "-o", place.root / "file" / "out"


def _link_loop(place: Place) -> Sequence[object]:
    (place.root / "loop").symlink_to("loop")
    return "apply", place.sound.patch, place.sound.base, "-o", place.root / "loop" / "out"


def _null(place: Place) -> Sequence[object]:
    return "inspect", f"{place.root}/a\x00b"


def spelt(word: str, paths: Mapping[str, Path]) -> str:
    """A word whose first part stands for a path, with that path."""
    first, slash, rest = word.partition("/")
    return f"{paths.get(first, first)}{slash}{rest}"


def put(*arguments: object) -> Callable[[Place], Sequence[object]]:
    """Arguments in which PATCH, BASE, EDITED, UNDO, SINGLE, OUT and ROOT stand for paths."""

    def make(place: Place) -> Sequence[object]:
        sound = place.sound
        paths = {"PATCH": sound.patch, "BASE": sound.base, "EDITED": sound.edited, "UNDO": sound.undo}
        paths |= {"SINGLE": sound.single, "OUT": place.out, "ROOT": place.root}
        return [spelt(str(word), paths) for word in arguments]

    return make


ARGUMENTS: Sequence[tuple[str, str, Callable[[Place], Sequence[object]], str, int]] = [
    ("unknown verb", "misspelt", put("aply"), "Did you mean 'apply'", 2),
    ("unknown verb", "nothing like one", put("\x1b[2J"), "no verb", 2),
    ("missing argument", "of apply", put("apply"), "Missing argument", 2),
    ("missing argument", "the output", put("apply", "PATCH", "BASE"), "Missing option", 2),
    ("missing argument", "of convert", put("convert"), "Missing argument", 2),
    ("missing argument", "of diff", put("diff", "BASE"), "Missing argument", 2),
    ("argument too many", "", put("inspect", "BASE", "BASE"), "unexpected extra argument", 2),
    ("unknown option", "", put("inspect", "BASE", "--jsn"), "No such option", 2),
    (
        "value of a false kind",
        "a strength",
        put("apply", "PATCH", "BASE", "-o", "OUT", "--strength", "x"),
        "valid float",
        2,
    ),
    (
        "value of a false kind",
        "a layout",
        put("convert", "BASE", "-o", "OUT", "--to", "x"),
        "is not one of",
        2,
    ),
    (
        "value of a false kind",
        "a rank",
        put("diff", "BASE", "EDITED", "-o", "OUT", "--rank", "0"),
        "not in the range",
        2,
    ),
    (
        "value of a false kind",
        "a copy",
        put("convert", "SINGLE", "-o", "OUT", "--averaged", "x"),
        "is not one of",
        2,
    ),
    (
        "not a number",
        "as the strength",
        put("apply", "PATCH", "BASE", "-o", "OUT", "--strength", "nan"),
        "a finite number",
        1,
    ),
    (
        "infinity",
        "as the strength",
        put("apply", "PATCH", "BASE", "-o", "OUT", "--strength", "-inf"),
        "a finite number",
        1,
    ),
    (
        "absurd number",
        "as the strength",
        put("apply", "PATCH", "BASE", "-o", "OUT", "--strength", "1e30"),
        "Is the strength right",
        1,
    ),
    ("path to nothing", "a checkpoint", put("inspect", "ROOT/gone"), "gone", 1),
    ("path to nothing", "a word like one of the shelf", put("inspect", "pocket_sd"), "pocket-sd", 1),
    (
        "path to nothing",
        "an empty one",
        put("inspect", ""),
        "no model_index|no checkpoint|Did you mean|shelf",
        1,
    ),
    ("path to nothing", "a patch", put("verify", "gone", "BASE"), "No such file", 1),
    ("path to nothing", "of 5,000 letters", put("inspect", "x" * 5000), "too long|no checkpoint|shelf", 1),
    ("path to nothing", "with a null", _null, r"\\x00", 1),
    ("path to nothing", "with an escape", put("inspect", "\x1b[2J\x1b]0;owned\x07"), r"\\x1b\[2J", 1),
    ("path to nothing", "a recipe", put("check", "gone.yaml"), "gone", 1),
    (
        "output in the way",
        "the input",
        put("apply", "PATCH", "BASE", "-o", "BASE", "--overwrite"),
        "lie inside each other",
        1,
    ),
    (
        "output in the way",
        "in the input",
        put("convert", "BASE", "-o", "BASE/x.safetensors"),
        "inside each other|is a folder|no model",
        1,
    ),
    (
        "output in the way",
        "around the input",
        put("convert", "BASE", "-o", "/"),
        "lie inside each other|is a folder",
        1,
    ),
    ("output in the way", "someone's file", _existing, "is no safetensors file", 1),
    ("output in the way", "someone's folder", _folder_of_others, "is a folder of other files", 1),
    ("output in the way", "below a file", _below_a_file, "cannot|is a file|Not a directory", 1),
    ("output in the way", "below a link to itself", _link_loop, "leads nowhere|symbolic links|cannot", 1),
    (
        "output in the way",
        "the undo file in the input",
        put("apply", "PATCH", "BASE", "-o", "OUT", "--undo", "BASE/x"),
        "inside each other|No such|no model_index|is missing",
        1,
    ),
    (
        "output in the way",
        "the undo file is the output",
        put("apply", "PATCH", "BASE", "-o", "OUT", "--undo", "OUT"),
        "inside each other",
        1,
    ),
    *(
        ("output that is an input", name, put(*words, "--overwrite"), "are one or lie inside each other", 1)
        for name, words in (
            ("the patch applied", ("apply", "PATCH", "BASE", "-o", "PATCH")),
            ("the patch as undo file", ("apply", "PATCH", "BASE", "-o", "OUT", "--undo", "PATCH")),
            ("the patch reverted", ("revert", "PATCH", "EDITED", "--base", "BASE", "-o", "PATCH")),
            ("the edited side of a diff", ("diff", "BASE", "EDITED", "-o", "EDITED")),
            ("a part of a composition", ("compose", "PATCH", "PATCH", "-o", "PATCH")),
            (
                "the base of an export",
                ("export", "PATCH", "--to", "checkpoint", "--base", "BASE", "-o", "BASE"),
            ),
            ("the audited patch", ("audit", "PATCH", "--html", "PATCH")),
            ("the patch of a sample", ("sample", "BASE", "--prompt", "a", "--patch", "x.png", "-o", "x.png")),
        )
    ),
    (
        "output in a place that is none",
        "",
        put("convert", "BASE", "-o", "/proc/none/x.safetensors"),
        "cannot|No such",
        1,
    ),
    (
        "options that exclude each other",
        "undo and base",
        put("revert", "PATCH", "EDITED", "-o", "OUT", "--undo", "u", "--base", "b"),
        "not both|either",
        2,
    ),
    (
        "options that exclude each other",
        "a pickle to a folder",
        put("convert", "SINGLE", "-o", "OUT", "--allow-pickle", "--to", "folder"),
        "convert that to a folder next",
        2,
    ),
    (
        "option for another layout",
        "a variant of a file",
        put("convert", "SINGLE", "-o", "OUT", "--variant", "fp16"),
        "only folders have variants",
        1,
    ),
    (
        "option for another layout",
        "a variant that is not there",
        put("convert", "BASE", "-o", "OUT", "--variant", "fp16"),
        "has no variant 'fp16'",
        1,
    ),
    (
        "option for another layout",
        "an averaged copy",
        put("convert", "SINGLE", "-o", "OUT", "--averaged", "drop"),
        "carries no averaged copy",
        1,
    ),
    (
        "option for another layout",
        "the layout it has",
        put("convert", "BASE", "-o", "OUT", "--to", "folder"),
        "is a folder already",
        1,
    ),
    (
        "option for another layout",
        "a folder for a file",
        put("convert", "BASE", "-o", "OUT", "--like", "BASE"),
        "a single file was expected",
        1,
    ),
    (
        "option for another layout",
        "a file for a folder",
        lambda p: ("convert", like_file(p), "-o", p.out, "--like", p.sound.single),
        "Not a directory|no model_index|cannot travel",
        1,
    ),
    (
        "missing vocabulary",
        "in the folder given",
        lambda p: ("convert", like_file(p), "-o", p.out, "--tokenizer", p.root),
        "other widths",
        1,
    ),
    ("selector of nothing", "", put("locate", "BASE", "unet/conv_ni.weight"), "names no tensor", 1),
    ("selector of nothing", "no tensor at all", put("locate", "BASE", "\x1b[2J"), r"\\x1b", 1),
    ("setting that is none", "no value", put("check", "quickstart", "--set", "seed"), "has no '='", 2),
    (
        "setting that is none",
        "twice",
        put("check", "quickstart", "--set", "seed=1", "--set", "seed=2"),
        "is set twice",
        2,
    ),
    ("setting that is none", "an unknown key", put("check", "quickstart", "--set", "sede=1"), "sede", 1),
    (
        "setting that is none",
        "code",
        put("check", "quickstart", "--set", "seed=!!python/name:os.system"),
        "tag|no valid YAML",
        1,
    ),
]


def word_cases() -> Iterator[Case]:
    """Faults of recipes and of arguments."""
    for fault, name, content, says in RECIPES:
        yield Case(fault, f"{name} (recipe)", partial(_recipe, content), says)
    yield Case("a pipe in the place of a file", "a recipe", _pipe_recipe, "no recipe|shelf|gone|recipe")
    for fault, name, make, says, code in ARGUMENTS:
        yield Case(fault, name, make, says, code)
