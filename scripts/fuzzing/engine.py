"""The fuzzer's own process: libFuzzer by way of atheris, which counts what lines each input reaches.

Arguments: a folder for scratch files, then libFuzzer's own.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
sys.dont_write_bytecode = True  # a module that is first needed by a reader is no write of the reader

with atheris.instrument_imports(include=["surgery"], enable_loader_override=False):
    from fuzzing.readers import Readers

from fuzzing.mutate import mutated  # noqa: E402 - what is fuzzed has to be imported first


def change(data: bytes, largest: int, seed: int) -> bytes:
    """Most changes keep the reader and the JSON; the others are libFuzzer's."""
    chance = random.Random(seed)
    if len(data) > 1 and chance.random() < 0.75:
        made = mutated(data[1:], chance)
        if made is not None and len(made) < largest:
            return data[:1] + made
    return bytes(atheris.Mutate(data, largest))


def main() -> None:
    scratch = Path(sys.argv[1])
    readers = Readers(scratch)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], readers.read, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
