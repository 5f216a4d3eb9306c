"""Checks that run in either generation of the libraries; as a program: name and arguments in, JSON out."""

import copy
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


def exports(base: str, edited: str, variant: str, adapters: str) -> dict[str, Any]:
    """Two exports in the stock libraries: tensors unlike the edited checkpoint's, and what PEFT warns of.

    ``variant`` is a folder with the variant's files beside the plain ones, ``adapters`` one of PEFT's.
    """
    import warnings

    from peft import PeftModel

    patched, adapted = _load(edited, torch.float16), _load(base, torch.float16)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for folder in sorted(Path(adapters).iterdir()):
            model = PeftModel.from_pretrained(getattr(adapted, folder.name), str(folder))
            setattr(adapted, folder.name, model.merge_and_unload())
    return {
        "variant": _differing(_load(variant, torch.float16, variant="surgery"), patched),
        "adapters": _differing(adapted, patched),
        "warnings": [str(warning.message) for warning in seen if "dapter" in str(warning.message)],
        "edit": _differing(_load(base, torch.float16), patched),
    }


def held(base: str, files: str) -> dict[str, Any]:
    """What the stock loader holds after each of some files: digests of changed weights, or its exception."""
    from surgery.checkpoint import tensor_digest
    from surgery.names import canonical

    plain = _load(base, torch.float16)
    found: dict[str, Any] = {}
    for file in sorted(Path(files).iterdir()):
        pipeline = copy.deepcopy(plain)
        try:
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
        except Exception as error:
            found[file.stem] = f"{type(error).__name__}: {error}"[:200]
            continue
        found[file.stem] = {
            canonical(component, path): tensor_digest(canonical(component, path), weight).value16
            for component in ("text_encoder", "unet", "vae")
            for path, weight in getattr(pipeline, component).named_parameters()
            if not torch.equal(weight, getattr(plain, component).get_parameter(path))
        }
    return found


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


def _load(folder: str, dtype: torch.dtype, **details: str) -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype, local_files_only=True, **details
    )
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
