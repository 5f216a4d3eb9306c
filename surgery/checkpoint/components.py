"""The models of a checkpoint; the only place that builds objects of diffusers and transformers.

Everything is loaded from the folder or the single file alone (no network), in evaluation mode, without
gradients, and checked: a library that finds no weight for a parameter fills it with random numbers and
only writes a warning (older transformers do so for a whole text encoder whose keys lack ``text_model.``).
Here that is an error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizerFast,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedModel,
)

from surgery.checkpoint.header import read_header
from surgery.checkpoint.layout import Checkpoint, open_checkpoint
from surgery.checkpoint.texts import read_json
from surgery.checkpoint.to_folder import files_of
from surgery.checkpoint.weights import find_weights
from surgery.errors import CheckpointError, nearest, raise_all
from surgery.names import canonical, split

Device = str | torch.device
Prepare: TypeAlias = Callable[[np.ndarray[Any, Any]], Tensor]
"""Bytes of pictures (n, rows, columns, 3) to what a model takes, on the CPU."""

_PREFIX: Final = "Is the prefix 'text_model.' as this library wants it?"


def load_pipeline(
    path: Path, *, device: Device = "cpu", dtype: torch.dtype = torch.float32, tokenizer: Path | None = None
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The whole pipeline, without safety checker and watermark.

    Args:
        path: A diffusers folder or a single file.
        device: Where the models go.
        dtype: Of their weights.
        tokenizer: A folder with CLIP's vocabulary for a single file that lacks it; looked for when left out.

    Raises:
        CheckpointError: when a part is missing or damaged, or the checkpoint is another kind of pipeline.
    """
    with _opened(path, tokenizer) as source:
        index = _read_json(source.folder / "model_index.json")
        kind = index.get("_class_name")
        if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
            raise CheckpointError(
                f"{path} holds a {kind}; a StableDiffusionPipeline (SD 1.x, 2.x) or a "
                "StableDiffusionXLPipeline was expected."
            )
        parts = {
            "vae": _load(source, "vae", AutoencoderKL, device, dtype),
            "text_encoder": _load(source, "text_encoder", CLIPTextModel, device, dtype),
            "tokenizer": load_tokenizer(source.folder),
            "unet": _load(source, "unet", UNet2DConditionModel, device, dtype),
            "scheduler": load_scheduler(source.folder),
        }
        if kind == "StableDiffusionXLPipeline":
            return StableDiffusionXLPipeline(
                **parts,
                text_encoder_2=_load(source, "text_encoder_2", CLIPTextModelWithProjection, device, dtype),
                tokenizer_2=load_tokenizer(source.folder, "tokenizer_2"),
                force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
                add_watermarker=False,
            )
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )


def load_text_encoder(
    path: Path,
    *,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    component: str = "text_encoder",
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder of a checkpoint; ``text_encoder_2`` is SDXL's other one.

    Raises:
        CheckpointError: when a weight is missing or has another shape than the configuration says.
    """
    kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
    with _opened(path) as source:
        return _load(source, component, kind, device, dtype)


def load_unet(
    path: Path, *, device: Device = "cpu", dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """The U-Net of a checkpoint.

    Raises:
        CheckpointError: when a weight is missing or has another shape than the configuration says.
    """
    with _opened(path) as source:
        return _load(source, "unet", UNet2DConditionModel, device, dtype)


def load_vae(path: Path, *, device: Device = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The VAE of a checkpoint.

    Raises:
        CheckpointError: when a weight is missing or has another shape than the configuration says.
    """
    with _opened(path) as source:
        return _load(source, "vae", AutoencoderKL, device, dtype)


def load_controlnet(
    folder: Path, *, device: Device = "cpu", dtype: torch.dtype = torch.float32
) -> ControlNetModel:
    """A ControlNet, from a folder of its own.

    Raises:
        CheckpointError: when there is none, or a weight is missing or has another shape.
    """
    return _alone(folder, ControlNetModel, device, "unet").to(dtype)


def with_head(language_model: GPT2Model) -> GPT2LMHeadModel:
    """The same language model, its own weights, as the class that the library can generate with."""
    with torch.device("meta"):
        whole = GPT2LMHeadModel(language_model.config)
    whole.transformer = language_model
    whole.tie_weights()
    return whole.eval()


def load_tokenizer(path: Path, component: str = "tokenizer") -> CLIPTokenizerFast:
    """A tokenizer of a checkpoint, of the kind that knows which letters a token came from.

    Raises:
        CheckpointError: when its files are missing or damaged.
    """
    with _opened(path) as source:
        return _tokenizer(_component(source.folder, component))


def _tokenizer(folder: Path) -> CLIPTokenizerFast:
    try:
        return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library answers false files with whatever happens first
        raise CheckpointError(
            f"{folder} holds no tokenizer of CLIP's kind ({error}). Fetch it again."
        ) from error


def load_image_classifier(
    folder: Path, architecture: str, *, device: Device = "cpu"
) -> tuple[PreTrainedModel, Prepare]:
    """A classifier of transformers in single precision, and what makes pictures fit for it.

    Args:
        folder: Where its config.json, weights and preprocessor_config.json are; no code is taken from there.
        architecture: The model's class, as config.json names it.
        device: Where the model goes.

    Raises:
        CheckpointError: when a file is missing or damaged, or the library has no such class.
    """
    kind = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        known = [name for name in dir(transformers) if name.endswith("ForImageClassification")]
        raise CheckpointError(
            f"{folder} names the model {architecture!r}, which transformers {transformers.__version__} does "
            f"not have; nearest: {nearest(architecture, known)!r}. Is the library too old for it?"
        )
    return _alone(folder, kind, device), _processor(folder)


def load_clip(folder: Path, *, device: Device = "cpu") -> tuple[CLIPModel, CLIPTokenizerFast, Prepare]:
    """CLIP with both its encoders in single precision, its tokenizer, and what makes pictures fit for it.

    Raises:
        CheckpointError: when a file is missing or damaged.
    """
    return _alone(folder, CLIPModel, device), _tokenizer(folder), _processor(folder)


def _processor(folder: Path) -> Prepare:
    """The folder's image processor; that of Pillow everywhere, so that torchvision changes no verdict."""
    pillow = {"use_fast": False} if int(transformers.__version__.split(".")[0]) < 5 else {"backend": "pil"}
    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **pillow
        )
    except Exception as error:  # the library answers false files with whatever happens first
        raise CheckpointError(
            f"{folder} holds no image processor that can be used ({error}); the preprocessor_config.json "
            "that the model was published with was expected. Fetch it, too."
        ) from error

    def prepare(pictures: np.ndarray[Any, Any]) -> Tensor:
        values: Tensor = processor(
            images=list(pictures), return_tensors="pt", input_data_format="channels_last"
        )["pixel_values"]
        return values

    return prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The folder with the configurations, and the single file when the weights are there."""

    folder: Path
    single: Checkpoint | None


@contextmanager
def _opened(path: Path, tokenizer: Path | None = None) -> Iterator[_Source]:
    if not path.is_file():
        yield _Source(folder=path, single=None)
        return
    single = open_checkpoint(path)
    with TemporaryDirectory(prefix="surgery-") as place:
        for name, text in files_of(single, tokenizer).items():
            file = Path(place) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode())
        yield _Source(folder=Path(place), single=single)


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


def ddim_like(scheduler: Any) -> Any:
    """A DDIM solver (Song et al. 2021, η = 0) with the noise schedule and timesteps of another scheduler."""
    usual = {"clip_sample": False, "set_alpha_to_one": False}
    return diffusers.DDIMScheduler.from_config({**usual, **dict(scheduler.config)})


def _load(source: _Source, component: str, kind: Any, device: Device, dtype: torch.dtype) -> Any:
    """A model with every parameter filled from the checkpoint."""
    folder = _component(source.folder, component)
    with _telling(source.single.path if source.single else folder):
        if source.single is None:
            model = _from_folder(folder, component, kind, dtype)
        else:
            model = _from_single(folder, component, kind, dtype, source.single)
        return model.to(device).requires_grad_(False).eval()


def _alone(folder: Path, kind: Any, device: Device, component: str = "") -> Any:
    """A model that is in no pipeline, with every parameter filled from its folder.

    Its weight file is called as that of ``component``, or as transformers calls it.
    """
    with _telling(folder):
        hint = "Are config.json and the weights of one model?"
        model = _from_folder(folder, component, kind, torch.float32, hint)
        return model.to(device).requires_grad_(False).eval()


@contextmanager
def _telling(place: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the libraries answer a false configuration with whatever happens first
        raise CheckpointError(
            f"{place} cannot be loaded: {error} Are the configuration and the weights of one model?"
        ) from error


def _from_folder(folder: Path, component: str, kind: Any, dtype: torch.dtype, hint: str = _PREFIX) -> Any:
    weights, faults = find_weights(folder, component)
    if weights is not None:  # what is damaged is told in our words, with the way out
        faults += [fault for file in weights.files for fault in read_header(file)[1]]
    raise_all(CheckpointError, faults)
    model, report = kind.from_pretrained(
        folder,
        variant=weights.variant if weights else None,
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    _refuse_gaps(folder, report, hint)
    return model


def _from_single(folder: Path, component: str, kind: Any, dtype: torch.dtype, single: Checkpoint) -> Any:
    """A model built without weights of its own, and given those of the file."""
    of_transformers = issubclass(kind, PreTrainedModel)
    with torch.device("meta"):
        built = (
            kind(kind.config_class.from_pretrained(folder))
            if of_transformers
            else kind.from_config(kind.load_config(folder))
        )
    keys = {canonical(component, key): key for key in built.state_dict() if not key.endswith("position_ids")}
    stored = {name for name in single.tensors if split(name)[0] == component}
    _refuse_gaps(
        single.path,
        {"missing_keys": keys.keys() - stored, "unexpected_keys": stored - keys.keys()},
    )
    state = {key: single.read(name).to(dtype) for name, key in keys.items()}
    if of_transformers:  # it has buffers that are in no file, and makes them itself
        return kind.from_pretrained(None, config=built.config, state_dict=state, torch_dtype=dtype)
    built.load_state_dict(state, assign=True)
    return built


def _refuse_gaps(folder: Path, report: dict[str, Any], hint: str = _PREFIX) -> None:
    """Every parameter must have come from the file, and every weight must have gone into a parameter."""
    missing = sorted(report["missing_keys"])
    surplus = sorted(key for key in report["unexpected_keys"] if not key.endswith("position_ids"))
    faults = []
    if missing:
        faults.append(
            f"{folder} has no weight for {len(missing)} parameters (the first is {missing[0]!r}), which "
            f"would be left at random numbers. {hint}"
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
        table = read_json(file)
    except ValueError as error:
        raise CheckpointError(
            f"{file} cannot be read: it {error}; JSON was expected. Fetch it again."
        ) from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{file} holds no JSON object. Fetch it again.")
    return table
