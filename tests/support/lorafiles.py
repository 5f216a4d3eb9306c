"""LoRA-like files for the tiny pipeline, each with one thing that loaders treat differently."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]

TEXT = "lora_te_text_model_encoder_layers_"
UNET = "lora_unet_down_blocks_0_"
BLOCK = f"{UNET}attentions_0_transformer_blocks_0_"
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0."
FC2, SQUARE, TO_K, CONV = (32, 128), (32, 32), (8, 32), (8, 8, 3, 3)


class Maker:
    """Random factors of layers, always the same ones."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def random(self, *shape: int) -> Tensor:
        return (0.1 * torch.randn(shape, generator=self._generator)).half()

    def lora(self, key: str, shape: Shape, rank: int = 2, alpha: float | None = 2.0) -> dict[str, Tensor]:
        ones = (1,) * (len(shape) - 2)
        tensors = {
            f"{key}.lora_up.weight": self.random(shape[0], rank, *ones),
            f"{key}.lora_down.weight": self.random(rank, *shape[1:]),
        }
        return tensors if alpha is None else tensors | {f"{key}.alpha": torch.tensor(alpha)}

    def pair(self, key: str, shape: Shape, up: str, down: str) -> dict[str, Tensor]:
        """Factors of rank 2 under other endings."""
        ones = (1,) * (len(shape) - 2)
        return {f"{key}{up}": self.random(shape[0], 2, *ones), f"{key}{down}": self.random(2, *shape[1:])}


def files() -> dict[str, dict[str, Tensor]]:
    """The tensors of each file by the file's name."""
    make = Maker()
    q, out = f"{TEXT}2_self_attn_q_proj", f"{TEXT}2_self_attn_out_proj"
    to_k, conv = f"{BLOCK}attn2_to_k", f"{UNET}resnets_0_conv1"
    mlp, plain = make.lora(f"{TEXT}3_mlp_fc2", FC2), make.lora(to_k, TO_K)
    ab = (".lora_B.weight", ".lora_A.weight")
    linear = (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight")
    old = (".lora.up.weight", ".lora.down.weight")
    text = "text_encoder.text_model.encoder.layers."
    return {
        "mlp-and-unet": mlp | plain | make.lora(conv, CONV),
        "query-with-mlp": mlp | make.lora(q, SQUARE),
        "query-alone": make.lora(q, SQUARE) | plain,
        "query-with-out": make.lora(q, SQUARE) | make.lora(out, SQUARE),
        "alphas-differ": make.lora(to_k, TO_K, 4, 4.0)
        | make.lora(f"{BLOCK}attn2_to_v", TO_K, 2, 2.0)
        | make.lora(f"{BLOCK}attn2_to_q", (8, 8), 2, 2.0)
        | make.lora(conv, CONV, 4, 4.0),
        "alphas-differ-in-text": make.lora(f"{TEXT}3_mlp_fc2", FC2, 4, 4.0)
        | make.lora(f"{TEXT}4_mlp_fc2", FC2, 2, 2.0)
        | make.lora(f"{TEXT}5_mlp_fc2", FC2, 2, 2.0),
        "one-alpha": make.lora(to_k, TO_K, 4, 4.0) | make.lora(conv, CONV, 8, 4.0),
        "no-alpha": make.lora(to_k, TO_K, 4, None) | make.lora(conv, CONV, 2, None),
        "difference": {f"{to_k}.diff": make.random(*TO_K)} | mlp,
        "set": {f"{to_k}.set_weight": make.random(*TO_K)},
        "bias": mlp | {f"{TEXT}3_mlp_fc2.diff_b": make.random(32)},
        "comfy": {f"diffusion_model.{LDM_TO_K}.set_weight": make.random(*TO_K)},
        "peft": make.pair(f"base_model.model.{DOTTED}attn2.to_k", TO_K, *ab),
        "with-vae": mlp | make.lora("lora_vae_decoder_conv_in", (8, 4, 3, 3)),
        "up-alone": {f"{to_k}.lora_up.weight": make.random(8, 2)},
        "down-alone": {f"{to_k}.lora_down.weight": make.random(2, 32)},
        "single-file-blocks": make.lora(f"lora_unet_{LDM_TO_K.replace('.', '_')}", TO_K),
        "no-such-layer": mlp | make.lora("lora_unet_down_blocks_9_resnets_0_conv1", CONV),
        "no-such-layer-beside": plain | make.lora("lora_unet_down_blocks_9_resnets_0_conv1", CONV),
        "no-such-text-layer-beside": mlp | make.lora(f"{TEXT}99_mlp_fc2", FC2),
        "no-such-text-layer": plain | make.lora(f"{TEXT}99_mlp_fc2", FC2),
        "wrong-shape": make.lora(to_k, (8, 16)),
        "ends": make.lora("lora_unet_conv_in", (8, 4, 3, 3))
        | make.lora("lora_unet_conv_out", (4, 8, 3, 3))
        | make.lora("lora_unet_time_embedding_linear_1", (32, 8)),
        "first-text-encoder": make.lora("lora_te1_text_model_encoder_layers_3_mlp_fc2", FC2) | plain,
        "dotted": make.pair(f"unet.{DOTTED}attn2.to_k", TO_K, *ab)
        | make.pair("unet.down_blocks.0.resnets.0.conv1", CONV, *ab),
        "dotted-mlp": make.pair(f"{text}3.mlp.fc2", FC2, *ab),
        "dotted-mlp-and-query": make.pair(f"{text}3.mlp.fc2", FC2, *ab)
        | make.pair(f"{text}2.self_attn.q_proj", SQUARE, *ab),
        "dotted-old-mlp": make.pair(f"{text}3.mlp.fc2", FC2, *linear),
        "processor": make.pair(
            f"unet.{DOTTED}attn2.processor.to_k", TO_K, "_lora.up.weight", "_lora.down.weight"
        ),
        "dotted-old-conv": make.pair("unet.down_blocks.0.resnets.0.conv1", CONV, *old),
    }


LDM_TO_K = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"


def write_files(folder: Path, contents: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Each under its name."""
    folder.mkdir()
    for name, tensors in contents.items():
        save_file(dict(tensors), folder / f"{name}.safetensors")
    return folder
