"""The models of a diffusers folder; the only place that builds objects of diffusers and transformers.

Everything is loaded from the folder alone (no network), in evaluation mode, without gradients, and checked: a
library that finds no weight for a parameter fills it with random numbers and only writes a warning (older
transformers do so for a whole text encoder whose keys lack ``text_model.``). Here that is an error.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizerFast

from surgery.checkpoint.weights import find_weights
from surgery.errors import CheckpointError, nearest, raise_all

Device = str | torch.device


def load_pipeline(
    path: Path, *, device: Device = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """The whole pipeline, without safety checker.

    Raises:
        CheckpointError: when a part is missing or damaged, or the folder holds another kind of pipeline.
    """
    kind = _read_json(path / "model_index.json").get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise CheckpointError(f"{path} holds a {kind}; a StableDiffusionPipeline (SD 1.x, 2.x) was expected.")
    return StableDiffusionPipeline(
        vae=load_vae(path, device=device, dtype=dtype),
        text_encoder=load_text_encoder(path, device=device, dtype=dtype),
        tokenizer=load_tokenizer(path),
        unet=load_unet(path, device=device, dtype=dtype),
        scheduler=load_scheduler(path),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load_text_encoder(
    path: Path, *, device: Device = "cpu", dtype: torch.dtype = torch.float32
) -> CLIPTextModel:
    """The CLIP text encoder of a folder.

    Raises:
        CheckpointError: when a weight is missing or has another shape than the configuration says.
    """
    return _load(path, "text_encoder", CLIPTextModel.from_pretrained, device, dtype)


def load_unet(
    path: Path, *, device: Device = "cpu", dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """The U-Net of a folder.

    Raises:
        CheckpointError: when a weight is missing or has another shape than the configuration says.
    """
    return _load(path, "unet", UNet2DConditionModel.from_pretrained, device, dtype)


def load_vae(path: Path, *, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The VAE of a folder.

    Raises:
        CheckpointError: when a weight is missing or has another shape than the configuration says.
    """
    return _load(path, "vae", AutoencoderKL.from_pretrained, device, dtype)


def load_tokenizer(path: Path) -> CLIPTokenizerFast:
    """The tokenizer of a folder, of the kind that knows which letters a token came from.

    Raises:
        CheckpointError: when its files are missing or damaged.
    """
    folder = _component(path, "tokenizer")
    try:
        return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer of CLIP's kind ({error}). Fetch it again."
        ) from error


def load_scheduler(path: Path) -> Any:
    """The scheduler that the folder names: the checkpoint's own solver and noise schedule.

    Raises:
        CheckpointError: when diffusers does not have it.
    """
    folder = _component(path, "scheduler")
    kind = str(_read_json(folder / "scheduler_config.json").get("_class_name"))
    scheduler = getattr(diffusers, kind, None) if kind.endswith("Scheduler") else None
    if scheduler is None:
        known = [name for name in dir(diffusers) if name.endswith("Scheduler")]
        raise CheckpointError(
            f"{folder} names the scheduler {kind!r}, which diffusers {diffusers.__version__} does not have; "
            f"nearest: {nearest(kind, known)!r}. Is it spelled right, or diffusers too old?"
        )
    return scheduler.from_pretrained(folder, local_files_only=True)


def _load(
    path: Path, component: str, from_pretrained: Callable[..., Any], device: Device, dtype: torch.dtype
) -> Any:
    """A model with every parameter filled from the folder."""
    folder = _component(path, component)
    weights, faults = find_weights(folder, component)
    raise_all(CheckpointError, faults)
    variant = weights.variant if weights else None
    try:
        model, report = from_pretrained(
            folder,
            variant=variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} cannot be loaded: {error} Are config.json and the weights of one model?"
        ) from error
    _refuse_gaps(folder, report)
    return model.to(device).requires_grad_(False).eval()


def _refuse_gaps(folder: Path, report: dict[str, Any]) -> None:
    """Every parameter must have come from the file, and every weight must have gone into a parameter."""
    missing = sorted(report["missing_keys"])
    surplus = sorted(key for key in report["unexpected_keys"] if not key.endswith("position_ids"))
    faults = []
    if missing:
        faults.append(
            f"{folder} has no weight for {len(missing)} parameters (the first is {missing[0]!r}), which "
            "would be left at random numbers. Is the prefix 'text_model.' as this library wants it?"
        )
    if surplus:
        faults.append(
            f"{folder} has {len(surplus)} weights that its config.json has no place for (the first is "
            f"{surplus[0]!r}). Are both files of one model?"
        )
    raise_all(CheckpointError, faults)


def _component(path: Path, name: str) -> Path:
    folder = path / name
    if not folder.is_dir():
        raise CheckpointError(
            f"{path} has no folder {name!r}; a diffusers folder was expected. Is it complete?"
        )
    return folder


def _read_json(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); JSON was expected. Fetch it again."
        ) from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{file} holds no JSON object. Fetch it again.")
    return table
