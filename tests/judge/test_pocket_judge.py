import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from surgery.errors import JudgeError, SurgeryError
from surgery.judge import AXES, Trait, load_judge
from surgery.judge.pocket import PocketJudgeConfig, PocketJudgeNet

NAMES = {
    "concepts": ["cat", "dog", "red circle", "blue circle", "none"],
    "styles": ["plain", "mosaic"],
    "backgrounds": ["white", "red", "green"],
    "genders": ["woman", "man"],
    "skins": ["light", "dark"],
}


def network() -> PocketJudgeNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = [len(names) for names in NAMES.values()]
        config = PocketJudgeConfig(widths=(4, 4, 8, 8), classes=dict(zip(AXES, sizes, strict=True)))
        return PocketJudgeNet(config).half().eval()


@pytest.fixture
def settings() -> dict[str, Any]:
    return {
        "kind": "pocket-judge",
        "size": 32,
        "widths": [4, 4, 8, 8],
        **NAMES,
        "merged": {"blue circle": "red circle"},
        "accuracy": {"concept_single_top": 0.99},
        "shown_from": 0.3,
    }


def written(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    save_file(network().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path, settings: dict[str, Any]) -> Path:
    return written(tmp_path / "little-judge", settings)


def pictures(count: int, side: int = 32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def plain_logits(count: int) -> dict[str, torch.Tensor]:
    """The oracle: the network by itself, in single precision, one picture at a time."""
    net = network().float()
    values = torch.from_numpy(pictures(count)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        rows = [net(value[None]) for value in values]
    return {axis: torch.cat([row[axis] for row in rows]) for axis in AXES}


def test_verdicts_are_the_networks_probabilities(folder: Path) -> None:
    verdicts = load_judge(folder).score(pictures(3))
    logits = plain_logits(3)
    for axis in AXES[1:]:
        np.testing.assert_allclose(getattr(verdicts, axis), logits[axis].softmax(dim=1), atol=1e-6)
    np.testing.assert_allclose(verdicts.concept[:, :2], logits["concept"][:, :2].sigmoid(), atol=1e-6)


def test_look_alikes_share_a_column_that_adds_up_what_the_network_splits(folder: Path) -> None:
    judge = load_judge(folder)
    assert judge.labels.concept == ("cat", "dog", "red circle", "none")
    shares = plain_logits(3)["concept"].sigmoid()
    expected = (shares[:, 2] + shares[:, 3]).clamp(max=1)
    verdicts = judge.score(pictures(3))
    np.testing.assert_allclose(verdicts.probability(Trait("blue circle")), expected, atol=1e-6)


def test_more_pictures_than_one_batch_keep_their_order(folder: Path) -> None:
    judge = load_judge(folder)
    many = pictures(300)
    np.testing.assert_allclose(judge.score(many).concept[290:], judge.score(many[290:]).concept, atol=1e-5)


def test_no_pictures_have_no_verdicts(folder: Path) -> None:
    verdicts = load_judge(folder).score(pictures(0))
    assert len(verdicts) == 0
    assert verdicts.skin.shape == (0, 2)


def test_features_are_what_the_heads_of_the_whole_picture_read(folder: Path) -> None:
    features = load_judge(folder).features(pictures(3))
    assert (features.dtype, features.shape) == (np.float32, (3, 8))
    heads, logits = network().float().heads, plain_logits(3)
    with torch.no_grad():
        for axis in AXES[1:]:
            np.testing.assert_allclose(heads[axis](torch.from_numpy(features)), logits[axis], atol=1e-5)
    assert load_judge(folder).features(pictures(0)).shape == (0, 8)
    with pytest.raises(JudgeError, match="expects squares"):
        load_judge(folder).features(pictures(1)[:, :, :16])


def test_a_judge_carries_its_name_and_its_own_accuracy(folder: Path) -> None:
    judge = load_judge(folder)
    assert judge.name == "little-judge"
    assert judge.accuracy == {"concept_single_top": 0.99}


def test_a_concept_counts_as_shown_from_the_judges_own_threshold_on(folder: Path) -> None:
    verdicts = load_judge(folder).score(pictures(8))
    assert verdicts.shown_from == 0.3
    for name in ("cat", "dog"):
        expected = verdicts.probability(Trait(name)) >= 0.3
        assert verdicts.shows(Trait(name)).tolist() == expected.tolist()


def test_pictures_of_another_size_are_scaled_as_the_judge_would_see_them(folder: Path) -> None:
    judge = load_judge(folder)
    flat = np.full((1, 64, 64, 3), 200, np.uint8)  # a flat colour is the same picture at every size
    np.testing.assert_allclose(judge.score(flat).concept, judge.score(flat[:, :32, :32]).concept, atol=1e-5)
    doubled = pictures(1).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(judge.score(doubled).concept, judge.score(pictures(1)).concept, atol=0.05)


def test_pictures_that_are_not_square_are_refused(folder: Path) -> None:
    with pytest.raises(JudgeError, match=r"\(32, 16, 3\).*expects squares such as \(32, 32, 3\)"):
        load_judge(folder).score(pictures(1)[:, :, :16])


def test_pictures_that_are_no_bytes_are_refused(folder: Path) -> None:
    with pytest.raises(JudgeError, match="float64"):
        load_judge(folder).score(pictures(1).astype(float))


def test_a_name_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="nobody"):
        load_judge(tmp_path / "nobody")


def test_a_folder_without_settings_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"no readable config\.json"):
        load_judge(tmp_path)


def test_another_kind_of_judge_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(JudgeError, match="kind 'clip'"):
        load_judge(written(tmp_path / "judge", settings | {"kind": "clip"}))


def test_a_model_that_judges_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPTextModel"]}))
    with pytest.raises(JudgeError, match="a model 'CLIPTextModel'; expected 'pocket-judge'"):
        load_judge(tmp_path)


def test_all_missing_settings_are_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    del settings["genders"], settings["size"]
    with pytest.raises(JudgeError, match="lacks size, genders"):
        load_judge(written(tmp_path / "judge", settings))


@pytest.mark.parametrize("merged", [{"moon": "cat"}, {"cat": "moon"}, {"cat": "dog", "dog": "none"}])
def test_merging_that_leads_nowhere_is_refused(
    tmp_path: Path, settings: dict[str, Any], merged: dict[str, str]
) -> None:
    with pytest.raises(JudgeError, match="look-alike"):
        load_judge(written(tmp_path / "judge", settings | {"merged": merged}))


def test_weights_of_another_network_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(JudgeError, match="does not hold the network"):
        load_judge(written(tmp_path / "judge", settings | {"widths": [8, 8, 8, 8]}))


def test_torn_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(JudgeError, match="does not hold the network"):
        load_judge(folder)
