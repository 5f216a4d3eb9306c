"""The modules of ``scripts/bench``, which are no package."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHES = Path(__file__).resolve().parents[2] / "scripts" / "benches"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a bench's module by name, as ``scripts/bench`` finds it."""
    monkeypatch.syspath_prepend(BENCHES)

    def named(name: str) -> ModuleType:
        return __import__(name)

    yield named
    for path in BENCHES.glob("*.py"):
        sys.modules.pop(path.stem, None)
