"""A diffusers folder from a single file: its weights by component, and the small files of its pipeline."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from surgery.checkpoint.atomic import atomic_folder, make_folder, write_bytes
from surgery.checkpoint.families import family_files, family_of
from surgery.checkpoint.header import TensorEntry
from surgery.checkpoint.keymap import WEIGHT_STEMS
from surgery.checkpoint.layout import Checkpoint
from surgery.checkpoint.leftovers import FOREIGN
from surgery.checkpoint.pipeline_files import FILES_KEY, index_of, known_files, named_components
from surgery.checkpoint.serialise import copied, safetensors_chunks
from surgery.checkpoint.vocabulary import find_vocabulary
from surgery.errors import CheckpointError, brief, raise_all
from surgery.names import COMPONENTS, split

_log = logging.getLogger(__name__)

_TELLING: Final = "unet/up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
_TELLING_SPREAD: Final = 0.09


def single_to_folder(
    checkpoint: Checkpoint,
    tensors: Mapping[str, TensorEntry],
    out: Path,
    files: Mapping[str, str],
    *,
    partial: bool,
    overwrite: bool,
) -> tuple[str, ...]:
    """Write a single file's weights as a folder; what is left out comes back, in words.

    Args:
        checkpoint: The single file.
        tensors: Its weights by canonical name, or others in place of some.
        out: The new folder.
        files: The small files of the pipeline, texts by path.
        partial: Allow tensors to be left out that are no part of a Stable Diffusion.
        overwrite: Allow an older folder to be replaced.

    Raises:
        CheckpointError: when file and configurations do not hold the same components, or a tensor would be
            lost.
    """
    components = sorted({split(name)[0] for name in tensors})
    faults = _index_faults(checkpoint, components, files)
    for leftover in checkpoint.leftovers:
        if leftover.what == FOREIGN and not partial:
            shown = ", ".join(brief(key) for key in leftover.keys[:3])
            faults.append(
                f"{checkpoint.path} holds {leftover}, beginning with {shown}; a folder has no place for "
                "them. Leave them out (--partial), or keep the single file."
            )
    raise_all(CheckpointError, faults)
    with atomic_folder(out, overwrite=overwrite) as temporary:
        for path, text in files.items():
            make_folder((temporary / path).parent)
            write_bytes(temporary / path, [text.encode()])
        for component in components:
            written = {
                split(name)[1]: copied(entry)
                for name, entry in tensors.items()
                if split(name)[0] == component
            }
            make_folder(temporary / component)
            file = temporary / component / f"{WEIGHT_STEMS[component]}.safetensors"
            write_bytes(file, safetensors_chunks(written, {"format": "pt"}))
    return tuple(str(leftover) for leftover in checkpoint.leftovers)


def _index_faults(checkpoint: Checkpoint, components: list[str], files: Mapping[str, str]) -> list[str]:
    """Components that the file has and the pipeline does not, and the other way round."""
    index = index_of(files, checkpoint.path)
    named = set(COMPONENTS) & named_components(index)
    return [
        *(
            f"{checkpoint.path} holds a {name}, which the configurations do not. Are they of the same family?"
            for name in components
            if name not in named
        ),
        *(
            f"{checkpoint.path} holds no {name}, which the configurations name; a whole checkpoint was "
            "expected. Was it written without that part?"
            for name in sorted(named - set(components))
        ),
    ]


def files_of(checkpoint: Checkpoint, tokenizer: Path | None = None) -> Mapping[str, str]:
    """The small files of a single file's pipeline: out of its metadata, else those of its published family.

    Raises:
        CheckpointError: when its widths are no published ones and it does not say how its models are built,
            or when CLIP's vocabulary is not found.
    """
    header = checkpoint.headers[checkpoint.path]
    if FILES_KEY in header.metadata:
        return known_files(checkpoint.path, header)
    family = family_of(checkpoint.architecture, checkpoint.shapes, _predicts_velocity(checkpoint))
    if family is None:
        raise CheckpointError(
            f"{checkpoint.path} has other widths than Stable Diffusion 1.x, 2.x and XL and does not say how "
            "its models are built; expected a folder of the same model for its configurations and tokenizer. "
            "Name one (--like)."
        )
    return family_files(family, find_vocabulary(tokenizer, checkpoint.path))


def _predicts_velocity(checkpoint: Checkpoint) -> bool:
    """What an SD 2.x predicts is not in the keys; told from a bias that is larger in those of the velocity.

    Source: ComfyUI's ``model_config``, the same tensor and the same bound.
    """
    if checkpoint.architecture != "stable-diffusion-v2" or _TELLING not in checkpoint.tensors:
        return False
    velocity = float(checkpoint.read(_TELLING).float().std(correction=0)) > _TELLING_SPREAD
    _log.info("taken for a model of the %s, by the spread of a bias", "velocity" if velocity else "noise")
    return velocity
