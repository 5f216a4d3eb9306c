"""Checks that run in either generation of the libraries; as a program: name and arguments in, JSON out."""

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from torch import Tensor


def lora(base: str, edited: str, file: str) -> dict[str, Any]:
    """A LoRA file in the stock loader, against the edited checkpoint: weights and pictures.

    ``weights`` counts tensors of the fused pipeline that differ from the edited checkpoint's, ``apart`` is
    their largest difference; ``fused`` and ``loaded`` are the largest differences of pictures (values 0 to
    1), ``edit`` is what the edit itself does.
    """
    plain, patched = _load(base, torch.float16), _load(edited, torch.float16)
    path = Path(file)
    fused = _load(base, torch.float16)
    fused.load_lora_weights(str(path.parent), weight_name=path.name)
    adapters = fused.get_list_adapters()
    fused.fuse_lora()
    fused.unload_lora_weights()
    loaded = _load(base, torch.float32)
    loaded.load_lora_weights(str(path.parent), weight_name=path.name)
    expected = _draw(patched)
    return {
        "adapters": sorted(adapters),
        "weights": _differing(fused, patched),
        "apart": _apart(fused, patched),
        "fused": _distance(_draw(fused), expected),
        "loaded": _distance(_draw(loaded), expected),
        "edit": _distance(_draw(plain), expected),
    }


def components(folder: str) -> dict[str, Any]:
    """The folder through our own loading: weights not as stored, token offsets, a picture's spread."""
    from surgery.checkpoint import components, open_checkpoint
    from surgery.names import canonical

    checkpoint = open_checkpoint(Path(folder))
    pipeline = components.load_pipeline(Path(folder))
    wrong = [
        f"{component}/{path}"
        for component in ("text_encoder", "unet", "vae")
        for path, parameter in getattr(pipeline, component).named_parameters()
        if not torch.equal(parameter, checkpoint.read(canonical(component, path)).float())
    ]
    encoded = pipeline.tokenizer("a photo of cat", return_offsets_mapping=True)
    return {
        "libraries": [diffusers.__version__, transformers.__version__],
        "wrong": wrong,
        "offsets": encoded["offset_mapping"],
        "spread": float(_draw(pipeline).std()),
    }


def refusal(folder: str) -> dict[str, Any]:
    """What our own loading says of a folder that it refuses; empty when it does not."""
    from surgery.checkpoint.components import load_text_encoder
    from surgery.errors import CheckpointError

    try:
        load_text_encoder(Path(folder))
    except CheckpointError as error:
        return {"message": str(error)}
    return {"message": ""}


def applied(base: str, edited: str, patch: str) -> dict[str, Any]:
    """A patch in a living pipeline: tensors unlike the edited checkpoint inside, the base outside."""
    from surgery import applied, load_patch
    from surgery.checkpoint.components import load_pipeline

    pipeline = load_pipeline(Path(base))
    with applied(pipeline, load_patch(Path(patch))):
        inside = _differing(pipeline, load_pipeline(Path(edited)))
    return {"inside": inside, "outside": _differing(pipeline, load_pipeline(Path(base)))}


def _load(folder: str, dtype: torch.dtype) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw(pipeline: Any) -> Tensor:
    """One picture, computed in single precision whatever the weights are stored in."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    picture = pipeline("a photo of a cat", num_inference_steps=4, output_type="pt", generator=generator)
    return torch.as_tensor(picture.images)


def _differing(first: Any, second: Any) -> int:
    """Tensors of two pipelines that are not equal, or that only one of them has."""
    count = 0
    for component in ("text_encoder", "unet", "vae"):
        left, right = getattr(first, component).state_dict(), getattr(second, component).state_dict()
        count += len(left.keys() ^ right.keys())
        count += sum(not torch.equal(left[key], right[key]) for key in left.keys() & right.keys())
    return count


def _apart(first: Any, second: Any) -> float:
    """The largest difference of an element of two pipelines."""
    return max(
        _distance(left.float(), right.float())
        for component in ("text_encoder", "unet", "vae")
        for left, right in zip(
            getattr(first, component).parameters(), getattr(second, component).parameters(), strict=True
        )
    )


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])) + "\n")
