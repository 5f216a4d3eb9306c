"""Settings: the published values, and their ranges."""

from dataclasses import replace
from typing import Any

import pytest

from surgery.errors import MethodError
from surgery.methods.emcid import PUBLISHED, OffsetSettings, UpdateSettings
from surgery.methods.emcid.settings import as_json, check_settings


@pytest.mark.parametrize(
    ("name", "steps", "layers", "alpha"),
    [
        ("objects", 200, tuple(range(11)), 0.5),
        ("aice", 200, tuple(range(11)), 0.6),
        ("styles", 100, (7, 8, 9, 10), 0.5),
        ("pictures", 300, tuple(range(11)), 0.5),
    ],
)
def test_published_values_are_those_of_the_study(
    name: str, steps: int, layers: tuple[int, ...], alpha: float
) -> None:
    # sections 1.3, 1.4 and 3 of the study
    offsets, update = PUBLISHED[name]
    assert (offsets.steps, update.layers, update.alpha) == (steps, layers, alpha)
    assert (offsets.learning_rate, offsets.rate) == (0.2, "absolute")
    assert (offsets.clamp, offsets.norm_penalty) == (1.5, 5e-4)
    assert (offsets.sampling_steps, offsets.guidance, offsets.timesteps) == (50, 7.5, (0, 999))
    assert (offsets.bank_size, offsets.patience, offsets.context) == (0, None, "concept")
    assert (offsets.latents, offsets.flip) == ("recoded", True)
    assert (update.ridge, update.residual, update.sweeps) == (4000.0, "mlp", 1)
    assert (update.anchor, update.keys) == ("first", "mean")


def test_published_losses_are_those_of_the_study() -> None:
    losses = [
        (one.mode, one.text_weight, one.target, one.images, one.samples) for one, _ in PUBLISHED.values()
    ]
    assert losses == [
        ("both", 0.01, "teacher", "source", 1),
        ("both", 0.01, "teacher", "source", 1),
        ("both", 0.01, "teacher", "source", 1),
        ("noise", 0.01, "truth", "given", 3),
    ]


@pytest.mark.parametrize("values", [(OffsetSettings(), UpdateSettings()), *PUBLISHED.values()])
def test_shipped_settings_are_in_range_for_twelve_blocks(
    values: tuple[OffsetSettings, UpdateSettings],
) -> None:
    check_settings(*values, blocks=12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"text_weight": -1.0},
        {"norm_penalty": -1.0},
        {"clamp": 0.0},
        {"samples": 0},
        {"bank_size": -1},
        {"timesteps": (5, 2)},
        {"sampling_steps": 0},
        {"guidance": -1.0},
        {"tolerance": 1.0},
        {"patience": 0},
        {"batch": 0},
    ],
)
def test_an_offset_setting_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=f"offsets.{next(iter(wrong))} is"):
        check_settings(replace(OffsetSettings(), **wrong), UpdateSettings(), 12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": ()},
        {"layers": (3, 2)},
        {"layers": (3, 3)},
        {"layers": (-1, 2)},
        {"layers": (10, 11)},
        {"ridge": 0.0},
        {"ridge": float("nan")},
        {"alpha": 1.0},
        {"sweeps": 0},
        {"attained_share": 0.0},
        {"preserve_weight": -0.1},
        {"null_space_threshold": 0.0},
    ],
)
def test_an_update_setting_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match=f"update.{next(iter(wrong))} is"):
        check_settings(OffsetSettings(), replace(UpdateSettings(), **wrong), 12)


def test_all_settings_out_of_range_are_told_at_once() -> None:
    with pytest.raises(MethodError, match="^3 faults"):
        check_settings(OffsetSettings(steps=0, batch=0), UpdateSettings(alpha=2.0), 12)


def test_settings_as_plain_data_hold_every_field() -> None:
    plain = as_json(UpdateSettings(layers=(1, 2)))
    assert plain["layers"] == [1, 2]
    assert UpdateSettings(**{**plain, "layers": (1, 2)}) == UpdateSettings(layers=(1, 2))  # type: ignore[arg-type]
