"""Judges from local folders, each told from its config.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from surgery.errors import JudgeError, raise_all
from surgery.judge.classifier import ClassifierJudge
from surgery.judge.clip import ClipJudge, Questions
from surgery.judge.labelled import measure_accuracy
from surgery.judge.pocket import PocketJudgeConfig, PocketJudgeNet
from surgery.judge.pocket_judge import LISTS, PocketJudge
from surgery.judge.protocol import FeatureJudge
from surgery.shelf import checkpoint_path

_NEEDED = ("size", "widths", *LISTS.values(), "merged", "accuracy", "shown_from")

_AnyJudge = PocketJudge | ClassifierJudge | ClipJudge


def load_judge(
    name_or_path: str | Path,
    device: str = "cpu",
    *,
    questions: Questions | None = None,
    labelled: Path | None = None,
) -> FeatureJudge:
    """The judge of that name on the shelf (``pocket-judge``), or in the folder at a path.

    Args:
        name_or_path: A folder with pocket-judge, with any image classifier of transformers, or with CLIP
            (tokenizer and preprocessor_config.json included). Weights are safetensors; nothing is fetched.
        device: Where it runs.
        questions: The names that CLIP chooses from. The other judges have names of their own.
        labelled: Pictures in one sub-folder for each name, on which the judge's own accuracy is measured
            first; it then stands in the judge's ``accuracy``, and so in every result.

    Raises:
        SurgeryError: when there is no such folder.
        CheckpointError: when a model of transformers is incomplete, damaged, or a pickle.
        JudgeError: when the folder holds no judge, or one that is incomplete; when names are given to a judge
            that has its own, or lack where it has none; when ``labelled`` cannot be used.
    """
    folder = checkpoint_path(str(name_or_path))
    config = _read_config(folder)
    judge = _built(folder, config, device, questions)
    if labelled is not None:
        judge.accuracy = {**judge.accuracy, **measure_accuracy(judge, labelled)}
    return judge


def _built(folder: Path, config: dict[str, Any], device: str, questions: Questions | None) -> _AnyJudge:
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    if config.get("kind") is None and architecture == "CLIPModel":
        return _clip(folder, device, questions)
    if questions is not None:
        raise JudgeError(
            f"names were given for the judge in {folder}, which has its own; expected names for CLIP alone. "
            "Leave them out."
        )
    if config.get("kind") is None and "ForImageClassification" in architecture:
        return _classifier(folder, architecture, device)
    if config.get("kind") == "pocket-judge":
        return _pocket(folder, config, device)
    found = f"a model {architecture!r}" if architecture else f"a judge of kind {config.get('kind')!r}"
    raise JudgeError(
        f"{folder} holds {found}; expected 'pocket-judge', an image classifier of transformers "
        "(…ForImageClassification) or a whole CLIPModel. Name the folder of a judge."
    )


def _classifier(folder: Path, architecture: str, device: str) -> ClassifierJudge:
    # the libraries of such models load slowly, and pocket-judge needs none of them
    from surgery.checkpoint.components import load_image_classifier

    model, prepare = load_image_classifier(folder, architecture, device=device)
    several = model.config.problem_type == "multi_label_classification"
    return ClassifierJudge(folder.name, model, prepare, model.config.id2label, exclusive=not several)


def _clip(folder: Path, device: str, questions: Questions | None) -> ClipJudge:
    from surgery.checkpoint.components import load_clip

    if questions is None:
        raise JudgeError(
            f"{folder} holds CLIP, which has no names of its own; expected the names to choose from. Give "
            "a file of them, one a line: --names."
        )
    raise_all(JudgeError, questions.faults())
    model, tokenizer, prepare = load_clip(folder, device=device)
    return ClipJudge(folder.name, model, tokenizer, prepare, questions)


def _pocket(folder: Path, config: dict[str, Any], device: str) -> PocketJudge:
    missing = [key for key in _NEEDED if key not in config]
    if missing:
        raise JudgeError(
            f"{folder / 'config.json'} lacks {', '.join(missing)}; expected the settings of a pocket-judge. "
            "Fetch its folder again."
        )
    raise_all(JudgeError, _merge_faults(config["concepts"], config["merged"]))
    classes: dict[str, int] = {axis: len(config[key]) for axis, key in LISTS.items()}
    network = PocketJudgeNet(PocketJudgeConfig(widths=tuple(config["widths"]), classes=classes))
    _load_weights(network, folder / "model.safetensors")
    return PocketJudge(folder.name, config, network.eval().requires_grad_(False).to(device))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JudgeError(
            f"{folder} has no readable config.json ({error}); expected a judge's folder with config.json and "
            "model.safetensors. Name such a folder."
        ) from error
    if not isinstance(config, dict):
        raise JudgeError(
            f"{folder / 'config.json'} is a {type(config).__name__}; expected a judge's settings."
        )
    return config


def _merge_faults(concepts: Sequence[str], merged: Mapping[str, str]) -> list[str]:
    return [
        f"look-alike {twin!r} is merged into {chosen!r}; expected two concepts, the second "
        "not merged itself. Mend 'merged' in config.json."
        for twin, chosen in merged.items()
        if twin not in concepts or chosen not in concepts or chosen in merged
    ]


def _load_weights(network: PocketJudgeNet, path: Path) -> None:
    # stored in half precision, judged in single
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise JudgeError(
            f"{path} does not hold the network that config.json describes ({error}); "
            "expected a judge as it was saved. Fetch its folder again."
        ) from error
