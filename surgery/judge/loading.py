"""Judges from local folders; pocket-judge so far."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from surgery.errors import JudgeError, raise_all
from surgery.judge.pocket import PocketJudgeConfig, PocketJudgeNet
from surgery.judge.pocket_judge import LISTS, PocketJudge
from surgery.judge.protocol import Judge
from surgery.shelf import checkpoint_path

_NEEDED = ("size", "widths", *LISTS.values(), "merged", "accuracy", "shown_from")


def load_judge(name_or_path: str | Path, device: str = "cpu") -> Judge:
    """The judge of that name on the shelf (``pocket-judge``), or in the folder at a path.

    Raises:
        SurgeryError: when there is no such folder.
        JudgeError: when the folder holds no judge, another kind of judge, or one that is incomplete.
    """
    folder = checkpoint_path(str(name_or_path))
    config = _read_config(folder)
    kind = config.get("kind")
    if kind != "pocket-judge":
        raise JudgeError(
            f"{folder} holds a judge of kind {kind!r}; expected 'pocket-judge'. Name the folder of a judge."
        )
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
