"""Models take turns on the device: one that runs is there, and one that is not in use has left."""

import copy
import gc
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from surgery.diffusion import device_and_dtype, is_offloaded, offload, resident, sample
from surgery.methods.emcid import CorpusSettings, EmcidModels, OffsetSettings, UpdateSettings, edit
from surgery.methods.emcid.settings import Mode
from tests.support.concepts import CAT, captions
from tests.support.small import small_pipeline

# a device of its own name, so that no GPU is needed to see who is where
THERE = torch.device("cpu", 0)
PARTS = ("text_encoder", "unet", "vae")


class Places:
    """Where each model of a pipeline is, as told by the moves; a layer that runs elsewhere is an error."""

    def __init__(self, pipeline: Any) -> None:
        self.there: set[str] = set()
        self.ran: set[str] = set()
        self.most = 0
        self._layers: dict[int, str] = {}
        self._names = {getattr(pipeline, name): name for name in PARTS}

    def move(self, module: nn.Module, device: torch.device) -> None:
        name = self._names[module]
        (self.there.add if device == THERE else self.there.remove)(name)
        self.most = max(self.most, len(self.there))

    @contextmanager
    def watched(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module, name in self._names.items():
                for layer in (part for part in module.modules() if not list(part.children())):
                    self._layers[id(layer)] = name
                    stack.callback(layer.register_forward_pre_hook(self._runs).remove)
            yield

    def _runs(self, layer: nn.Module, _: object) -> None:
        name = self._layers.get(id(layer))
        if name is None:  # a copy took the hook along
            return
        assert name in self.there, f"{name} runs while {sorted(self.there)} are on the device"
        self.ran.add(name)


@pytest.fixture
def apart(tiny_pipeline: Path) -> Any:
    """A small pipeline of this test's own."""
    return small_pipeline(tiny_pipeline)


@pytest.fixture
def places(apart: Any) -> Iterator[Places]:
    seen = Places(apart)
    with seen.watched():
        yield seen


def drawn(pipeline: Any) -> np.ndarray[Any, Any]:
    return sample(pipeline, ["a cat", "a dog", "a cat"], [1, 2, 3], steps=2, guidance=3.0, batch=2)


def test_each_model_is_there_when_it_runs_and_alone(apart: Any, places: Places) -> None:
    offload(apart, THERE, move=places.move)
    drawn(apart)
    assert places.ran == set(PARTS)
    assert places.most == 1
    assert places.there == {"vae"}


def test_offloading_changes_no_bit(apart: Any) -> None:
    expected = drawn(apart)
    offload(apart, THERE)
    assert np.array_equal(drawn(apart), expected)


def test_a_model_in_use_stays_when_another_one_comes(apart: Any, places: Places) -> None:
    offload(apart, THERE, move=places.move)
    with resident(apart.unet):
        with resident(apart.vae):
            assert places.there == {"unet", "vae"}
        with resident(apart.text_encoder):
            assert places.there == {"unet", "text_encoder"}
    with resident(apart.vae):
        assert places.there == {"vae"}


def test_an_error_frees_the_place(apart: Any, places: Places) -> None:
    offload(apart, THERE, move=places.move)
    with pytest.raises(KeyError), resident(apart.unet):
        raise KeyError
    with resident(apart.vae):
        assert places.there == {"vae"}


def test_a_model_runs_where_it_will_be(apart: Any) -> None:
    offload(apart, "meta", move=lambda module, device: None)
    assert device_and_dtype(apart.unet) == (torch.device("meta"), torch.float32)
    assert is_offloaded(apart.unet)


def test_a_copy_belongs_to_nobody(apart: Any) -> None:
    offload(apart, "meta", move=lambda module, device: None)
    twin = copy.deepcopy(apart.unet)
    assert not is_offloaded(twin)
    assert device_and_dtype(twin)[0] == torch.device("cpu")


def test_offloaded_models_die_with_their_pipeline(tiny_pipeline: Path) -> None:
    pipeline = small_pipeline(tiny_pipeline)
    offload(pipeline, "meta", move=lambda module, device: None)
    drawn_by = weakref.ref(pipeline.unet)
    with resident(pipeline.unet):
        pass
    del pipeline
    gc.collect()
    assert drawn_by() is None


@pytest.mark.parametrize("mode", ["text", "noise", "both"])
def test_emcid_fetches_what_its_mode_needs(apart: Any, mode: Mode) -> None:
    settings = OffsetSettings(mode=mode, steps=2, sampling_steps=2, latents="recoded", bank_size=2)
    expected = offsets(apart, settings)
    places = Places(apart)
    offload(apart, THERE, move=places.move)
    with places.watched():
        found = offsets(apart, settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert places.ran == (set() if mode == "text" else {"unet", "vae"})  # the encoder works on a copy


def offsets(pipeline: Any, settings: OffsetSettings) -> list[torch.Tensor]:
    models = EmcidModels(
        **{name: getattr(pipeline, name) for name in ("tokenizer", *PARTS, "scheduler")},
        stored_dtype=torch.float16,
    )
    corpus = CorpusSettings(shrinkage=0.1)
    result = edit(models, [CAT], settings, UpdateSettings(ridge=1.0), captions(), corpus=corpus)
    return [target.offset for target in result.targets]
