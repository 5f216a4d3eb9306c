"""The bench of full size, on narrow checkpoints."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("size", ["sd15-fp16", "sd15-fp32", "sdxl-fp16"])
def test_narrow_checkpoints_come_back_to_the_byte(
    bench: Any, tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fullsize = bench("fullsize")
    # this process has more in it than a step's own
    monkeypatch.setattr(fullsize, "MEMORY", 100 * fullsize.MEMORY)
    assert fullsize.full_size(size, tmp_path, narrow=True)
    said = capsys.readouterr().out
    assert said.count(": yes") == 8
    assert "bytes and value16 over sha256: " in said
    assert "audit, all different over read both: " in said
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_checkpoint_goes_the_same_ways(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fullsize = bench("fullsize")
    monkeypatch.setattr(fullsize, "MEMORY", 100 * fullsize.MEMORY)
    monkeypatch.setattr(fullsize, "measured", fullsize.measured_here)
    assert fullsize.full_size("pocket-sd", tmp_path)
    assert capsys.readouterr().out.count(": yes") == 7
    assert list(tmp_path.iterdir()) == []
