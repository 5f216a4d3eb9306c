import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from surgery.errors import CheckpointError, JudgeError
from surgery.judge import ClassifierJudge, Trait, load_judge
from tests.judge.conftest import Build


def pictures(count: int, rows: int = 40, columns: int = 56) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, rows, columns, 3), dtype=np.uint8)


def plain(folder: Path, count: int) -> Any:
    """The oracle: the library's own classes, one picture at a time."""
    from transformers import AutoModelForImageClassification, CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    inputs = [
        processor(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        for picture in pictures(count)
    ]
    with torch.no_grad():
        return model, torch.cat(inputs), torch.cat([model(pixel_values=values).logits for values in inputs])


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_verdicts_are_the_librarys_softmax(build_classifier: Build, kind: str) -> None:
    folder = build_classifier(kind)
    verdicts = load_judge(folder).score(pictures(5))
    shares = plain(folder, 5)[2].softmax(dim=1).numpy()
    np.testing.assert_allclose(verdicts.probability(Trait("cat")), shares[:, 1], atol=1e-5)
    np.testing.assert_allclose(verdicts.probability(Trait("Tinca tinca")), shares[:, 0], atol=1e-5)
    np.testing.assert_allclose(verdicts.probability(Trait("crane")), shares[:, 3] + shares[:, 4], atol=1e-5)
    np.testing.assert_allclose(verdicts.concept.sum(axis=1), 1, atol=1e-5)


def test_a_picture_shows_the_likeliest_class_and_no_other(build_classifier: Build) -> None:
    verdicts = load_judge(build_classifier()).score(pictures(40))
    shown = np.stack([verdicts.shows(Trait(name)) for name in verdicts.labels.concept], axis=1)
    assert (shown.sum(axis=1) == 1).all()
    assert [verdicts.labels.concept[column] for column in shown.argmax(axis=1)] == verdicts.likeliest()
    # also where no class has half of the belief
    assert (verdicts.concept.max(axis=1) < 0.5).any()


def test_classes_of_a_model_of_several_labels_are_seen_by_themselves(build_classifier: Build) -> None:
    folder = build_classifier(classes=("cat", "dog", "fish"), problem_type="multi_label_classification")
    verdicts = load_judge(folder).score(pictures(20))
    alone = plain(folder, 20)[2].sigmoid().numpy()
    np.testing.assert_allclose(verdicts.concept, alone, atol=1e-5)
    assert verdicts.shows(Trait("dog")).tolist() == (alone[:, 1] >= 0.5).tolist()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_features_are_what_the_last_layer_reads(build_classifier: Build, kind: str) -> None:
    folder = build_classifier(kind)
    features = load_judge(folder).features(pictures(5))
    model, _, logits = plain(folder, 5)
    last = model.classifier if kind == "vit" else model.classifier[-1]
    assert features.dtype == np.float32
    assert features.shape == (5, 16)
    np.testing.assert_allclose(last(torch.from_numpy(features)).detach(), logits, atol=1e-5)


def test_more_pictures_than_one_batch_keep_their_order(build_classifier: Build) -> None:
    judge = load_judge(build_classifier("resnet"))
    many = pictures(70)
    np.testing.assert_allclose(judge.score(many).concept[64:], judge.score(many[64:]).concept, atol=1e-5)
    np.testing.assert_allclose(judge.features(many)[64:], judge.features(many[64:]), atol=1e-5)


def test_no_pictures_have_no_verdicts_and_no_features(build_classifier: Build) -> None:
    judge = load_judge(build_classifier())
    assert judge.score(pictures(0)).concept.shape == (0, 4)
    assert judge.features(pictures(0)).shape == (0, 16)


def test_it_has_its_folders_name_and_no_accuracy_that_nobody_measured(build_classifier: Build) -> None:
    judge = load_judge(build_classifier())
    assert isinstance(judge, ClassifierJudge)
    assert judge.name == "vit"
    assert judge.accuracy == {}


def test_pictures_that_are_no_bytes_in_colour_are_refused(build_classifier: Build) -> None:
    judge = load_judge(build_classifier())
    with pytest.raises(JudgeError, match="float64"):
        judge.score(pictures(1).astype(float))
    with pytest.raises(JudgeError, match="3 colours"):
        judge.features(pictures(1)[..., :1])


def test_classes_without_names_are_refused(build_classifier: Build) -> None:
    with pytest.raises(JudgeError, match="'LABEL_0' is the first.*'id2label'"):
        load_judge(build_classifier(classes=None))


def test_a_pickle_is_refused(build_classifier: Build) -> None:
    folder = build_classifier()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        load_judge(folder)


def test_weights_that_are_missing_are_not_made_up(build_classifier: Build) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_classifier()
    state = load_file(folder / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="no weight for 1 parameters.*'classifier.weight'"):
        load_judge(folder)


def test_weights_of_another_size_are_refused(build_classifier: Build) -> None:
    folder = build_classifier()
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_judge(folder)


def test_a_model_without_preprocessing_is_refused(build_classifier: Build) -> None:
    folder = build_classifier()
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json .* was expected"):
        load_judge(folder)


def test_a_class_of_models_that_the_library_lacks_is_named(build_classifier: Build) -> None:
    folder = build_classifier()
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["ViTTForImageClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="nearest: 'ViTForImageClassification'"):
        load_judge(folder)
