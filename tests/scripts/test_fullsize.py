"""The bench of full size, on narrow checkpoints."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("size", ["sd15-fp16", "sd15-fp32", "sdxl-fp16"])
def test_narrow_checkpoints_come_back_to_the_byte(
    tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benches")
    sys.modules.pop("fullsize", None)
    from fullsize import MEMORY, full_size

    monkeypatch.setattr("fullsize.MEMORY", 100 * MEMORY)  # this process has more in it than a step's own
    assert full_size(size, tmp_path, narrow=True)
    said = capsys.readouterr().out
    assert said.count(": yes") == 2
    assert "fingerprint of bytes and value16 over the sha256 of the file" in said
    assert list(tmp_path.iterdir()) == []
