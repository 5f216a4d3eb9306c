"""The verbs that look: inspect, locate."""

from pathlib import Path

import pytest

from surgery.checkpoint import open_checkpoint
from tests.cli.conftest import Call


def test_inspect_as_json_tells_every_component_with_its_digests(surgery: Call, tiny_pipeline: Path) -> None:
    found = surgery("inspect", tiny_pipeline, "--fingerprint", "--json").json
    roots = open_checkpoint(tiny_pipeline).fingerprint().roots
    assert (found["layout"], found["architecture"]) == ("folder", "stable-diffusion-v1")
    assert set(found["components"]) == {"text_encoder", "unet", "vae"}
    unet = found["components"]["unet"]
    assert (unet["tensors"], unet["dtypes"]) == (686, "float16")
    assert (unet["bytes"], unet["value16"]) == (roots["unet"].bytes, roots["unet"].value16)


def test_inspect_tells_people_the_same(surgery: Call, tiny_pipeline: Path) -> None:
    done = surgery("inspect", tiny_pipeline, "--fingerprint")
    assert "unet: 686 tensors" in done.out
    assert open_checkpoint(tiny_pipeline).fingerprint().roots["vae"].bytes in done.out


def test_inspect_without_digests_reads_headers_only(
    surgery: Call, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgery.checkpoint.digest.read_chunks", lambda *_: pytest.fail("a weight was read"))
    found = surgery("inspect", tiny_pipeline, "--json").json
    assert found["components"]["unet"]["tensors"] == 686
    assert "bytes" not in found["components"]["unet"]


def test_inspect_of_a_patch_tells_what_it_changes(surgery: Call, patch: Path) -> None:
    found = surgery("inspect", patch, "--json").json
    assert list(found["changed"]) == ["text_encoder/text_model.encoder.layers.3.mlp.fc2.weight"]
    assert found["architecture"] == "stable-diffusion-v1"
    told = surgery("inspect", patch).out
    assert found["digest"][:12] in told
    (form,) = found["terms"][0]["forms"].values()
    assert f"{form['op']} of rank {form['rank']}" in told
    assert found["roots"]["unet"]["bytes"][:12] in told


def test_inspect_of_an_undo_file_names_its_patch(
    surgery: Call, tiny_pipeline: Path, patch: Path, tmp_path: Path
) -> None:
    undo = tmp_path / "undo"
    assert surgery("apply", patch, tiny_pipeline, "-o", tmp_path / "out", "--undo", undo).code == 0
    digest = surgery("inspect", patch, "--json").json["digest"]
    assert surgery("inspect", undo, "--json").json["undo"] == digest
    assert digest[:12] in surgery("inspect", undo).out


def test_inspect_of_what_is_no_checkpoint_is_1(surgery: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no safetensors")
    assert surgery("inspect", tmp_path / "none").code == 1
    assert surgery("inspect", tmp_path).code == 1
    assert surgery("inspect", tmp_path / "file").code == 1


def test_locate_finds_tensors_by_wildcards(surgery: Call, tiny_pipeline: Path) -> None:
    selector = "text_encoder/*.layers.[37].mlp.fc2.weight"
    found = surgery("locate", tiny_pipeline, selector, "vae/*.conv_in.weight", "--json").json
    assert [row["name"] for row in found] == [
        "text_encoder/text_model.encoder.layers.3.mlp.fc2.weight",
        "text_encoder/text_model.encoder.layers.7.mlp.fc2.weight",
        "vae/decoder.conv_in.weight",
        "vae/encoder.conv_in.weight",
    ]
    assert found[0]["shape"] == [32, 128]


def test_locate_answers_a_selector_that_names_nothing_with_the_nearest(
    surgery: Call, tiny_pipeline: Path
) -> None:
    done = surgery("locate", tiny_pipeline, "unet/conv_in.wieght")
    assert done.code == 1
    assert "Did you mean 'unet/conv_in.weight'?" in done.err


def test_locate_finds_the_tokens_of_a_phrase_in_its_prompt(surgery: Call, tiny_pipeline: Path) -> None:
    # BOS a photo of [a] [cat] EOS
    arguments = ("--phrase", "a cat", "--template", "a photo of {}")
    found = surgery("locate", tiny_pipeline, *arguments, "--json").json
    assert [(row["position"], row["token"], row["edited"]) for row in found] == [
        (4, "a</w>", False),
        (5, "cat</w>", True),
    ]
    assert "cat</w>" in surgery("locate", tiny_pipeline, *arguments).out


def test_locate_refuses_a_template_without_placeholder(surgery: Call, tiny_pipeline: Path) -> None:
    done = surgery("locate", tiny_pipeline, "--phrase", "cat", "--template", "a photo")
    assert done.code == 1
    assert "'a photo'" in done.err
