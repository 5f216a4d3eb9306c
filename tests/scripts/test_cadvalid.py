"""The bench of predictive validity, on two concepts and a handful of masks."""

import argparse
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_predictions_are_held_against_what_happens_and_cells_are_kept(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench("cadvalid")
    quick = module.AttributionSettings(trajectories=1, sampling_steps=2, graded_steps=2, staggered=False)
    monkeypatch.setattr(module, "SCHEME", quick)
    options = argparse.Namespace(
        base="pocket-sd",
        seed=0,
        concepts=1,
        choosing=1,
        masks=6,
        masks_choosing=4,
        shares=[0.01],
        micro_batch=2,
        out=tmp_path / "cells",
    )
    module.cad_validity(options)
    first = capsys.readouterr().out
    assert len(list((tmp_path / "cells").iterdir())) == 2
    assert "chosen: " in first
    assert all(name in first for name in (*module.PREDICTORS, *module.CONTROLS))
    monkeypatch.setattr(module, "predict", lambda *_, **__: pytest.fail("a kept cell was made again"))
    module.cad_validity(options)
    assert capsys.readouterr().out.splitlines()[2:] == first.splitlines()[2:]


def test_the_interval_of_a_perfect_prediction_is_one(bench: Any) -> None:
    module = bench("cadvalid")
    told = module.Told(predicted={"first_order": list(range(30))}, actual=list(range(0, 60, 2)))
    assert module.interval([told, told], "first_order") == pytest.approx((1.0, 1.0))
