"""Canonical tensor names."""

import pytest

from surgery.names import canonical, split


def test_text_encoder_paths_carry_text_model_whichever_library_wrote_them() -> None:
    name = "text_encoder/text_model.encoder.layers.3.mlp.fc2.weight"
    assert canonical("text_encoder", "text_model.encoder.layers.3.mlp.fc2.weight") == name
    assert canonical("text_encoder", "encoder.layers.3.mlp.fc2.weight") == name
    assert (
        canonical("text_encoder_2", "final_layer_norm.bias")
        == "text_encoder_2/text_model.final_layer_norm.bias"
    )


def test_paths_outside_the_text_model_stay_as_they_are() -> None:
    assert canonical("text_encoder_2", "text_projection.weight") == "text_encoder_2/text_projection.weight"
    assert canonical("vae", "encoder.conv_in.weight") == "vae/encoder.conv_in.weight"


def test_a_name_splits_into_what_it_was_made_of() -> None:
    assert split(canonical("unet", "conv_in.weight")) == ("unet", "conv_in.weight")


@pytest.mark.parametrize("name", ["conv_in.weight", "unet", "unet/", "Unet/conv_in.weight", ""])
def test_text_that_is_no_canonical_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no canonical tensor name"):
        split(name)
