"""Which weights a preset or a pattern stands for, on the real key set of SD 1.x."""

from pathlib import Path

import pytest

from surgery.anatomy import place_of
from surgery.anatomy.components import components_of
from surgery.checkpoint import open_checkpoint
from surgery.errors import MethodError

# 16 transformer blocks with two attentions of four matrices and one feed-forward of two; 12 text blocks
COUNTS = {"ff": 32, "ff_out": 16, "attn2_kv": 32, "attn": 128, "text_mlp": 24}


@pytest.fixture(scope="module")
def shapes(tiny_pipeline: Path) -> dict[str, tuple[int, ...]]:
    return open_checkpoint(tiny_pipeline).shapes


@pytest.mark.parametrize(("preset", "count"), COUNTS.items())
def test_presets_are_the_layers_of_their_kind(
    shapes: dict[str, tuple[int, ...]], preset: str, count: int
) -> None:
    names = components_of(shapes, [preset])
    assert len(names) == count
    assert list(names) == sorted(names)
    assert all(name.endswith(".weight") for name in names)


def test_matrices_and_convolutions_together_are_all(shapes: dict[str, tuple[int, ...]]) -> None:
    linear, conv, everything = (set(components_of(shapes, [name])) for name in ("linear", "conv", "all"))
    assert linear | conv == everything
    assert not linear & conv
    assert {place_of(name).component for name in everything} == {"unet"}


def test_a_pattern_covers_whole_parts_of_a_name_only() -> None:
    shapes = {"unet/diff.net.weight": (2, 2), "unet/mid.ff.net.weight": (2, 2), "unet/mid.ff.norm": (2,)}
    for pattern in ("ff.net", "ff", "net.weight", "mid", "mid.ff.net.weight"):
        found = components_of(shapes, [f"{pattern}" if pattern != "ff" else "*.ff.*"])
        assert "unet/mid.ff.net.weight" in found, pattern
    assert components_of(shapes, ["ff.net"]) == ("unet/mid.ff.net.weight",)
    assert len(components_of(shapes, ["unet"])) == 2
    assert components_of(shapes, ["unet/*"], ["mid"]) == ("unet/diff.net.weight",)


def test_the_block_that_sdxl_does_not_read_is_no_component() -> None:
    block = "text_encoder/text_model.encoder.layers.{}.mlp.fc2.weight"
    shapes = {block.format(number): (2, 2) for number in range(12)}
    assert len(components_of(shapes, ["text_mlp"])) == 12
    shapes["text_encoder_2/text_model.encoder.layers.0.mlp.fc2.weight"] = (2, 2)
    assert block.format(11) not in components_of(shapes, ["text_mlp"])
    assert len(components_of(shapes, ["text_mlp"])) == 12


def test_what_matches_nothing_is_named_with_what_is_near(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(MethodError) as caught:
        components_of(shapes, ["fff", "mid_blok"])
    first, second = caught.value.faults
    assert "'fff' name no weight" in first
    assert "'ff'" in first
    assert "'mid_block'" in second


def test_leaving_out_everything_is_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(MethodError, match="leaves no weight"):
        components_of(shapes, ["ff"], ["unet/*"])
