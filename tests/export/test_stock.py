"""Variants and PEFT adapters in the stock libraries of two generations."""

import shutil
from pathlib import Path

import pytest

from surgery.errors import PatchError
from surgery.export import Knobs, export_patch
from surgery.patch import apply_patch
from tests.support.generations import Generation, run_check
from tests.support.loras import BLOCK, Q_PROJ, each_generation
from tests.support.patches import random_patch
from tests.support.tiny import FC2

TRANSFORMERS = {"current": "5.23", "older": "4.57"}
NAMES = (
    *(FC2.format(3), FC2.format(3).replace("weight", "bias"), Q_PROJ),
    *(f"{BLOCK}.attn2.to_v.weight", "unet/down_blocks.1.resnets.0.conv1.weight"),
    *("unet/conv_norm_out.weight", "vae/decoder.conv_in.weight"),
    "text_encoder/text_model.embeddings.token_embedding.weight",
)


@pytest.mark.slow
@each_generation
def test_both_make_the_edited_checkpoint_and_leave_the_rest(
    tiny_pipeline: Path, tmp_path: Path, generation: Generation
) -> None:
    patch = random_patch(tiny_pipeline, NAMES, size=0.2)
    apply_patch(patch, tiny_pipeline, tmp_path / "edited")
    export_patch(patch, tiny_pipeline, tmp_path / "files", to="variant")
    shutil.copytree(tiny_pipeline, tmp_path / "variant")
    shutil.copytree(tmp_path / "files", tmp_path / "variant", dirs_exist_ok=True)
    knobs = Knobs(transformers=TRANSFORMERS[generation])
    export_patch(patch, tiny_pipeline, tmp_path / "adapters", to="peft", knobs=knobs)
    places = [tmp_path / name for name in ("edited", "variant", "adapters")]
    seen = run_check(generation, "exports", tiny_pipeline, *places)
    assert seen["edit"] == len(NAMES)  # which tell the base from the edited checkpoint
    assert (seen["variant"], seen["adapters"], seen["warnings"]) == (0, 0, [])


@pytest.mark.parametrize("word", ["", "new", "5"])
def test_a_version_that_is_none_is_refused(tiny_pipeline: Path, tmp_path: Path, word: str) -> None:
    knobs = Knobs(transformers=word)
    with pytest.raises(PatchError, match="is no version"):
        export_patch(
            random_patch(tiny_pipeline, [FC2.format(3)]),
            tiny_pipeline,
            tmp_path / "out",
            to="peft",
            knobs=knobs,
        )
