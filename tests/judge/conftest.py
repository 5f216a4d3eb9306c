"""Tiny models of transformers with random weights, as people keep them in folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CLASSES = ("tench, Tinca tinca", "cat", "dog", "crane", "crane")
SIDE = 32

Build = Callable[..., Path]


def _processor(folder: Path, **settings: Any) -> None:
    from transformers import CLIPImageProcessor

    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessor(**size, **settings).save_pretrained(folder)


@pytest.fixture
def build_classifier(tmp_path: Path) -> Build:
    """A vision transformer, or a convolutional network, of a few kilobytes."""

    def build(kind: str = "vit", classes: tuple[str, ...] | None = CLASSES, **settings: Any) -> Path:
        from transformers import (
            ResNetConfig,
            ResNetForImageClassification,
            ViTConfig,
            ViTForImageClassification,
        )

        names = {} if classes is None else {"id2label": dict(enumerate(classes))}
        folder = tmp_path / kind
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if kind == "resnet":
                sizes = {
                    "embedding_size": 8,
                    "hidden_sizes": [8, 16],
                    "depths": [1, 1],
                    "layer_type": "basic",
                }
                model: Any = ResNetForImageClassification(ResNetConfig(**sizes, **names, **settings))
            else:
                sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
                more = {
                    "intermediate_size": 32,
                    "image_size": SIDE,
                    "patch_size": 8,
                    "initializer_range": 0.5,
                }
                model = ViTForImageClassification(ViTConfig(**sizes, **more, **names, **settings))
        model.save_pretrained(folder)
        _processor(folder)
        return folder

    return build


@pytest.fixture
def clip_folder(tmp_path: Path, tiny_pipeline: Path) -> Path:
    """CLIP of two blocks a side, with the words of the tiny pipeline."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    folder = tmp_path / "clip"
    tokenizer = CLIPTokenizerFast.from_pretrained(tiny_pipeline / "tokenizer", local_files_only=True)
    common = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    last = len(tokenizer) - 1
    text = {**common, "vocab_size": len(tokenizer), "bos_token_id": last - 1, "eos_token_id": last}
    vision = {**common, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(
            text_config={**text, "pad_token_id": last, "projection_dim": 12, "initializer_range": 0.5},
            vision_config={**vision, "projection_dim": 12, "initializer_range": 0.5},
            projection_dim=12,
        )
        model = CLIPModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _processor(folder)
    return folder
