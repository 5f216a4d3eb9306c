"""A patch as a LyCORIS file: what stands in it, and what the real lycoris-lora makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.errors import PatchError
from surgery.export import export_patch
from surgery.export.lycoris import unreached
from surgery.names import canonical
from surgery.patch.kohya import FAMILIES, module_key
from tests.support.loras import BLOCK, Q_PROJ
from tests.support.patches import random_patch
from tests.support.tiny import FC2

BIAS = FC2.format(3).replace("weight", "bias")
CONV = "unet/down_blocks.1.resnets.0.conv1"
MATRICES = (FC2.format(3), Q_PROJ, f"{BLOCK}.attn2.to_v.weight", f"{CONV}.weight")
BIASES = (BIAS, f"{CONV}.bias")
SD1 = "stable-diffusion-v1"


def merge(file: Path, pipeline: Any) -> int:
    """Every layer of the file merged by the real library's own code; how many there are."""
    from lycoris.modules import get_module, make_module

    stored, found = load_file(file), 0
    for component in ("text_encoder", "unet"):
        for path, layer in getattr(pipeline, component).named_modules():
            key = module_key(f"{canonical(component, path)}.weight", FAMILIES[SD1])
            if any(name.startswith(f"{key}.") for name in stored):
                kind, parts = get_module(stored, key)
                make_module(kind, parts, key, layer).merge_to(1.0)
                found += 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("names", [MATRICES, MATRICES + BIASES], ids=["weights", "weights and biases"])
def test_the_real_lycoris_merges_to_the_patched_weights(
    tiny_pipeline: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    patch, base = random_patch(tiny_pipeline, names, size=0.2), open_checkpoint(tiny_pipeline)
    file = tmp_path / "full.safetensors"
    assert export_patch(patch, tiny_pipeline, file, to="lycoris").exact
    pipeline = load_pipeline(tiny_pipeline, dtype=torch.float16)
    assert merge(file, pipeline) == len({key.partition(".")[0] for key in load_file(file)})
    changed = set()
    for component in ("text_encoder", "unet"):
        for path, parameter in getattr(pipeline, component).named_parameters():
            name = canonical(component, path)
            weight = base.read(name)
            expected = patch.edited(name, weight) if name in patch.changes else weight
            assert torch.equal(parameter, expected), name
            changed |= {name} if not torch.equal(parameter, weight) else set()
    assert changed == set(names)


def test_a_bias_alone_brings_a_weight_of_zeros(tiny_pipeline: Path, tmp_path: Path) -> None:
    """A1111 and InvokeAI refuse a whole file for a bias without a weight (shared/formats.md 1a)."""
    export_patch(random_patch(tiny_pipeline, [BIAS]), tiny_pipeline, tmp_path / "file", to="lycoris")
    stored = load_file(tmp_path / "file")
    key = "lora_te_text_model_encoder_layers_3_mlp_fc2"
    assert stored[f"{key}.diff_b"].any()
    assert not stored[f"{key}.diff"].any()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("vae/decoder.conv_in.weight", (8, 4, 3, 3), "no loader of such files reaches the vae"),
        ("text_encoder/text_model.embeddings.token_embedding.weight", (9, 4), "A1111 never applies"),
        ("text_encoder/text_model.final_layer_norm.weight", (4,), "ComfyUI and Forge drop"),
        ("unet/conv_norm_out.bias", (4,), "A1111 drops it under this name"),
    ],
)
def test_what_some_loader_would_drop_is_refused_with_the_reason(
    name: str, shape: tuple[int, ...], reason: str
) -> None:
    assert reason in str(unreached(name, shape, SD1))


def test_what_all_of_them_apply_is_carried() -> None:
    for name, shape in ((FC2.format(0), (4, 16)), (BIAS, (4,)), ("unet/conv_in.weight", (8, 4, 3, 3))):
        assert unreached(name, shape, SD1) is None
    qkv = Q_PROJ.replace("weight", "bias")
    assert unreached(qkv, (4,), SD1) is None
    assert unreached(qkv, (4,), "stable-diffusion-v2") is not None


def test_every_refused_tensor_is_listed(tiny_pipeline: Path, tmp_path: Path) -> None:
    names = ["unet/conv_norm_out.weight", "vae/decoder.conv_in.weight"]
    with pytest.raises(PatchError) as caught:
        export_patch(random_patch(tiny_pipeline, names), tiny_pipeline, tmp_path / "file", to="lycoris")
    assert all(name in str(caught.value) for name in names)
