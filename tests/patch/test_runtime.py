"""A patch in a living pipeline: the numbers of the applied checkpoint inside, the old bits outside."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import surgery
from surgery.checkpoint import components, open_checkpoint
from surgery.errors import PatchError
from surgery.patch import Patch, applied, apply_patch, load_patch, save_patch
from tests.conftest import BuildTiny
from tests.support.patches import random_patch
from tests.support.tiny import FC2

TO_K = "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CONV = "unet/down_blocks.0.resnets.0.conv1.weight"
NORM = "text_encoder/text_model.final_layer_norm.bias"
VAE = "vae/decoder.conv_in.weight"
NAMES = [FC2.format(3), FC2.format(7), TO_K, CONV, NORM, VAE]


class Models(SimpleNamespace):
    """Components by name, as a pipeline has them."""


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Models:
    return Models(
        text_encoder=components.load_text_encoder(folder, dtype=dtype),
        unet=components.load_unet(folder, dtype=dtype),
        vae=components.load_vae(folder, dtype=dtype),
    )


def weights(models: Models) -> dict[str, Tensor]:
    return {
        f"{component}/{path}": parameter.detach().clone()
        for component in ("text_encoder", "unet", "vae")
        for path, parameter in getattr(models, component).named_parameters()
    }


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    kind = {2: torch.int16, 4: torch.int32}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        bits = kind[value.element_size()]
        assert torch.equal(value.view(bits), expected[name].view(bits)), name


@pytest.fixture(scope="module")
def patch(tiny_pipeline: Path) -> Patch:
    return random_patch(tiny_pipeline, NAMES)


@pytest.fixture
def models(tiny_pipeline: Path) -> Models:
    return load(tiny_pipeline)


@pytest.mark.parametrize(
    ("stored", "live"),
    [
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_weights_inside_are_those_of_the_applied_checkpoint(
    tiny_in: BuildTiny, tmp_path: Path, stored: torch.dtype, live: torch.dtype, strength: float
) -> None:
    base = tiny_in(stored)
    patch = random_patch(base, NAMES)
    apply_patch(patch, base, tmp_path / "edited", strength=strength)
    models = load(base, live)
    before = weights(models)
    with applied(models, patch, strength):
        assert_same_bits(weights(models), weights(load(tmp_path / "edited", live)))
    assert_same_bits(weights(models), before)


def test_a_narrower_pipeline_is_off_by_roundings_alone(tiny_in: BuildTiny, tmp_path: Path) -> None:
    base = tiny_in(torch.float32)
    patch = random_patch(base, NAMES)
    apply_patch(patch, base, tmp_path / "edited")
    models = load(base, torch.float16)
    before = weights(models)
    with applied(models, patch):
        inside = weights(models)
    for name, expected in weights(load(tmp_path / "edited", torch.float16)).items():
        # The old weight was rounded, and both new ones: half a spacing of fp16 each, which is at most 2**-11
        # of a number, or 2**-25 near zero.
        bound = 2.0**-11 * (before[name].float().abs() + 2 * expected.float().abs()) + 3 * 2.0**-25
        assert bool(((inside[name].float() - expected.float()).abs() <= bound).all())


def test_old_bits_return_after_an_exception(models: Models, patch: Patch) -> None:
    before = weights(models)
    with pytest.raises(KeyboardInterrupt), applied(models, patch):
        raise KeyboardInterrupt
    assert_same_bits(weights(models), before)


def test_the_same_pipeline_comes_back(models: Models, patch: Patch) -> None:
    with applied(models, patch) as inside:
        assert inside is models


def test_parameters_stay_the_same_objects(models: Models, patch: Patch) -> None:
    before = [id(parameter) for parameter in models.unet.parameters()]
    with applied(models, patch):
        assert [id(parameter) for parameter in models.unet.parameters()] == before


def test_contexts_on_different_tensors_nest(tiny_pipeline: Path, models: Models) -> None:
    first, second = random_patch(tiny_pipeline, NAMES[:2]), random_patch(tiny_pipeline, NAMES[2:], seed=5)
    before = weights(models)
    with applied(models, first):
        only_first = weights(models)
        with applied(models, second):
            assert not torch.equal(models.vae.decoder.conv_in.weight, before[VAE])
        assert_same_bits(weights(models), only_first)
    assert_same_bits(weights(models), before)


def test_patches_of_one_base_add_up_when_nested(tiny_pipeline: Path, models: Models) -> None:
    first, second = random_patch(tiny_pipeline, [VAE]), random_patch(tiny_pipeline, [VAE], seed=5)
    stored = open_checkpoint(tiny_pipeline).read(VAE)
    expected = (stored + first.added(VAE, stored)[0]) + second.added(VAE, stored)[0]  # in half precision
    before = weights(models)
    with applied(models, first), applied(models, second):
        assert torch.equal(models.vae.decoder.conv_in.weight, expected.float())
    assert_same_bits(weights(models), before)


def test_a_patch_of_the_patched_checkpoint_nests_in_the_first(
    tiny_pipeline: Path, models: Models, tmp_path: Path
) -> None:
    first = random_patch(tiny_pipeline, [VAE])
    apply_patch(first, tiny_pipeline, tmp_path / "one")
    second = random_patch(tmp_path / "one", [VAE], seed=5)
    apply_patch(second, tmp_path / "one", tmp_path / "two")
    with applied(models, first), applied(models, second):
        expected = open_checkpoint(tmp_path / "two").read(VAE).float()
        assert torch.equal(models.vae.decoder.conv_in.weight, expected)


def test_the_same_patch_twice_is_refused(models: Models, patch: Patch) -> None:
    before = weights(models)
    with applied(models, patch):
        inside = weights(models)
        with pytest.raises(PatchError, match="the pipeline has this patch already"), applied(models, patch):
            pass
        assert_same_bits(weights(models), inside)
    assert_same_bits(weights(models), before)


def test_a_pipeline_that_was_loaded_patched_is_refused(
    tiny_pipeline: Path, patch: Patch, tmp_path: Path
) -> None:
    apply_patch(patch, tiny_pipeline, tmp_path / "edited")
    with (
        pytest.raises(PatchError, match="the pipeline has this patch already"),
        applied(load(tmp_path / "edited"), patch),
    ):
        pass


def test_contexts_closed_out_of_order_are_an_error(tiny_pipeline: Path, models: Models) -> None:
    outer = applied(models, random_patch(tiny_pipeline, [VAE]))
    inner = applied(models, random_patch(tiny_pipeline, [VAE], seed=5))
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(PatchError, match="out of order"):
        outer.__exit__(None, None, None)


@torch.no_grad()
def test_changed_weights_are_refused_by_name_and_nothing_is_touched(models: Models, patch: Patch) -> None:
    models.vae.decoder.conv_in.weight[0, 0, 0, 0] += 1
    before = weights(models)
    with pytest.raises(PatchError, match=f"'{VAE}' of the pipeline does not hold"), applied(models, patch):
        pass
    assert_same_bits(weights(models), before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_fine_tune_is_changed_by_the_same_amount_when_another_base_is_allowed(
    tiny_pipeline: Path, patch: Patch, dtype: torch.dtype
) -> None:
    models = load(tiny_pipeline, dtype)
    weight = models.vae.decoder.conv_in.weight
    weight[0, 0, 0, 0] += 2**-7 if dtype == torch.float16 else 2**-20
    before = weights(models)
    with applied(models, patch, allow_other_base=True):
        assert torch.equal(weight.cpu(), patch.edited(VAE, before[VAE]))
        assert not torch.equal(weight, before[VAE])
    assert_same_bits(weights(models), before)


@torch.no_grad()
def test_a_change_too_small_for_half_precision_is_still_seen(models: Models, patch: Patch) -> None:
    models.vae.decoder.conv_in.weight[0, 0, 0, 0] *= 1 + 2**-20
    with pytest.raises(PatchError, match="does not hold the numbers"), applied(models, patch):
        pass


def test_a_precision_that_lost_digits_is_refused(tiny_pipeline: Path, patch: Patch) -> None:
    with pytest.raises(PatchError, match="lost digits"), applied(load(tiny_pipeline, torch.bfloat16), patch):
        pass


def test_missing_components_and_layers_are_reported_together(models: Models, patch: Patch) -> None:
    del models.vae
    models.unet.down_blocks[0].resnets[0].conv1 = nn.Identity()
    models.text_encoder.to("meta")
    with pytest.raises(PatchError) as caught, applied(models, patch):
        pass
    assert len(caught.value.faults) == 5
    report = str(caught.value)
    assert "the pipeline has no vae" in report
    assert f"'{CONV}' is not in the pipeline" in report
    assert "on meta" in report


def test_both_module_trees_of_the_text_encoder_are_found(tiny_pipeline: Path) -> None:
    # transformers 4 keeps the blocks in .text_model, transformers 5 does not
    encoder = components.load_text_encoder(tiny_pipeline)
    inner = getattr(encoder, "text_model", encoder)
    name = FC2.format(3)
    patch = random_patch(tiny_pipeline, [name])
    weight = inner.encoder.layers[3].mlp.fc2.weight
    before = weight.detach().clone()
    for tree in (inner, SimpleNamespace(text_model=inner)):
        module = nn.Module()
        for part, value in vars(tree).items() if tree is not inner else [("encoder", inner.encoder)]:
            module.add_module(part, value)
        with applied(Models(text_encoder=module), patch):
            assert not torch.equal(weight, before)
        assert torch.equal(weight, before)


def test_a_saved_patch_changes_the_picture_and_lets_go(
    tiny_pipeline: Path, patch: Patch, tmp_path: Path
) -> None:
    save_patch(patch, tmp_path / "patch.safetensors")
    pipeline = components.load_pipeline(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = pipeline("a cat", num_inference_steps=2, output_type="pt", generator=generator).images
        return torch.as_tensor(images)

    before = draw()
    with surgery.applied(pipeline, load_patch(tmp_path / "patch.safetensors"), strength=1.0):
        inside = draw()
    assert float((inside - before).abs().max()) > 0.01
    assert torch.equal(draw(), before)
