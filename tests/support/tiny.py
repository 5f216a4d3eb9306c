"""A random Stable Diffusion 1.x of a few hundred kilobytes, in the diffusers folder layout.

Topology and key set are those of SD 1.x (12 text blocks, 77 positions, 686 UNet tensors), widths are not:
text 32 (MLP 128), UNet 8/16/24/24, a three-level VAE that compresses 32×32 pixels to 8×8 latents.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 32
TEXT_BLOCKS = 12
PICTURE_SIZE = 32
FC2 = "text_encoder/text_model.encoder.layers.{}.mlp.fc2.weight"

# Each becomes one token; every other word falls apart into its letters.
WORDS = (
    *("a", "an", "the", "of", "in", "and", "photo", "image", "picture", "painting", "style"),
    *("cat", "dog", "fish", "pizza", "doctor", "female", "male"),
)
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tiny(folder: Path, *, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """Write the pipeline into ``folder``; equal seeds give equal weights, rounded once to ``dtype``.

    Element ``[0, 0]`` of the third block's ``fc2`` is -0.0, which careless arithmetic turns into +0.0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(folder / "tokenizer"),
            unet=_unet(),
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        for model in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
            _roughen(model)
    pipeline.to(dtype=dtype).save_pretrained(folder)
    _spell_out_text_model(folder / "text_encoder" / "model.safetensors")
    _write_tokenizer(folder / "tokenizer")
    return folder


def _text_encoder() -> CLIPTextModel:
    size = len(_vocabulary())
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=TEXT_BLOCKS,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 4,
        block_out_channels=(8, 16, 24, 24),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=PICTURE_SIZE,
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def _roughen(model: torch.nn.Module) -> None:
    """No tensor stays constant, as freshly made biases and norms are: a swapped or dropped one shows."""
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))


def _spell_out_text_model(path: Path) -> None:
    """Write the text keys as all libraries read them, with ``text_model.`` (transformers 5.6+ drops it)."""
    prefix = "text_model."
    tensors = {prefix + key.removeprefix(prefix): value for key, value in load_file(path).items()}
    tensors[f"{prefix}encoder.layers.3.mlp.fc2.weight"][0, 0] = -0.0
    save_file(tensors, path, metadata={"format": "pt"})


def _tokenizer(folder: Path) -> CLIPTokenizer:
    _write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _write_tokenizer(folder: Path) -> None:
    """The four files that old and new transformers read, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for surplus in folder.iterdir():
        surplus.unlink()
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    settings = {
        **special,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    merges = ["#version: 0.2", *(" ".join(pair) for pair in _merges())]
    texts = {
        "vocab.json": json.dumps(_vocabulary(), ensure_ascii=False),
        "merges.txt": "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _vocabulary() -> dict[str, int]:
    """CLIP's order: byte letters, the same ending a word, merges, start, end."""
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in _merges())]
    return {token: index for index, token in enumerate([*tokens, START, END])}


def _merges() -> list[tuple[str, str]]:
    """Merges that join each of `WORDS` from left to right."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[:2] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
    return merges


def _byte_letters() -> list[str]:
    """The printable stand-ins of the 256 bytes, in GPT-2's and CLIP's order."""
    spans = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [byte for first, last in spans for byte in range(ord(first), ord(last) + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
