"""Names of layers in LoRA-like files: which habit a name follows, and which layer of the model it means."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from surgery.checkpoint.ldm import UNET_PREFIX, Facts, facts_of_names, modules
from surgery.export.comfy import TEXT_ENCODERS
from surgery.names import split

Naming = Literal["kohya", "kohya-ldm", "diffusers", "diffusers-old", "comfy", "peft", "other"]
"""``kohya-ldm`` are kohya's names with the blocks of the single file; ``diffusers-old`` those of diffusers
with a processor or ``lora_linear_layer``, ``diffusers`` those with ``lora_A``; ``comfy`` are ComfyUI's
own."""

Kind = Literal[
    "te-mlp",
    "te-attention",
    "te-norm",
    "te-embedding",
    "te-projection",
    "attention",
    "norm",
    "norm-out",
    "end",
    "add-embedding",
    "inner",
    "vae",
]

_JOINED: Final = (
    *("down_blocks", "up_blocks", "mid_block", "transformer_blocks", "to_q", "to_k", "to_v", "to_out"),
    *("proj_in", "proj_out", "conv_shortcut", "time_emb_proj", "conv_in", "conv_out", "conv_norm_out"),
    *("time_embedding", "add_embedding", "linear_1", "linear_2", "group_norm", "quant_conv"),
    *("text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "layer_norm1", "layer_norm2"),
    *("final_layer_norm", "token_embedding", "position_embedding", "text_projection"),
    *("input_blocks", "output_blocks", "middle_block", "in_layers", "out_layers", "emb_layers"),
    *("skip_connection", "time_embed", "label_emb", "post_quant_conv"),
)
"""Words with an underscore inside; kohya's names have one for every dot too."""

_LDM: Final = ("input_blocks.", "output_blocks.", "middle_block.", "time_embed.", "label_emb.", "out.")
_KOHYA: Final = re.compile(r"(lora_unet|lora_te[12]?|lora_vae)_(.+)")
_COMPONENTS: Final[Mapping[str, str]] = {
    "lora_unet": "unet",
    "lora_vae": "vae",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
}
_TEXT: Final = re.compile(
    r"text_model\.(?:encoder\.layers\.\d+\.(?:mlp\.fc[12]|self_attn\.(?:q|k|v|out)_proj|layer_norm[12])"
    r"|final_layer_norm|embeddings\.(?:token|position)_embedding)|text_projection"
)
_UNET: Final = re.compile(
    r"(?:down_blocks\.\d+|up_blocks\.\d+|mid_block)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+\..+"
    r"|conv_in|conv_out|conv_norm_out|(?:time|add)_embedding\.linear_[12]"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the model, and what kind of layer loaders see in it.

    Attributes:
        name: Canonical, without the ending ``.weight`` or ``.bias``.
    """

    name: str

    @property
    def component(self) -> str:
        """The component that it belongs to."""
        return split(self.name)[0]

    @property
    def path(self) -> str:
        """Its path in the component."""
        return split(self.name)[1]

    @property
    def kind(self) -> Kind:
        """What loaders tell apart."""
        path, last = self.path, self.path.rpartition(".")[2]
        if self.component == "vae":
            return "vae"
        if self.component != "unet":
            kinds: tuple[tuple[str, Kind], ...] = (
                ("mlp", "te-mlp"),
                ("self_attn", "te-attention"),
                ("norm", "te-norm"),
                ("embedding", "te-embedding"),
            )
            return next((kind for word, kind in kinds if word in path), "te-projection")
        if path == "conv_norm_out":
            return "norm-out"
        if "norm" in last:
            return "norm"
        if path.startswith("add_embedding"):
            return "add-embedding"
        if path.startswith(("conv_in", "conv_out", "time_embedding")):
            return "end"
        return "attention" if re.search(r"\.attn[12]\.to_", path) else "inner"


def read_name(
    key: str, architecture: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> tuple[Naming, str, Layer | None]:
    """The habit that a name follows, what it begins with, and the layer that it means, if there is one.

    Args:
        key: What the keys of one module begin with.
        architecture: ModelSpec's word for the model.
        shapes: Of the model's weights; None where only the family is known.
    """
    naming, prefix, component, path = _parsed(key, architecture, shapes)
    if component is None or path is None or not _is_layer(component, path, architecture, shapes):
        return naming, prefix, None
    return naming, prefix, Layer(f"{component}/{path}")


def _parsed(
    key: str, architecture: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> tuple[Naming, str, str | None, str | None]:
    kohya = _KOHYA.fullmatch(key)
    if kohya:
        prefix, path = kohya[1], dotted(kohya[2])
        if prefix == "lora_unet" and path.startswith(_LDM):
            return "kohya-ldm", prefix, "unet", _from_ldm(path, architecture, shapes)
        return "kohya", prefix, _COMPONENTS[prefix], path
    if key.startswith("base_model.model."):
        return "peft", "base_model.model", None, None
    if key.startswith("diffusion_model."):
        inner = key.removeprefix("diffusion_model.")
        return "comfy", "diffusion_model", "unet", _from_ldm(inner, architecture, shapes)
    if key.startswith("text_encoders."):
        encoder, _, path = key.removeprefix("text_encoders.").partition(".transformer.")
        known = {name: component for component, name in TEXT_ENCODERS.get(architecture, {}).items()}
        return "comfy", f"text_encoders.{encoder}", known.get(encoder), path
    component, _, path = key.partition(".")
    if component in ("unet", "text_encoder", "text_encoder_2", "vae") and path:
        plain = re.sub(r"\.to_out$", ".to_out.0", path.replace(".processor.", "."))
        return "diffusers", component, component, plain
    return "other", "", None, None


def dotted(flat: str) -> str:
    """A path out of kohya's name for it, in which dots are underscores."""
    path = flat.replace("_", ".")
    for word in sorted(_JOINED, key=len, reverse=True):
        path = re.sub(rf"(?<![a-z]){re.escape(word.replace('_', '.'))}(?![a-z])", word, path)
    return path


def _from_ldm(path: str, architecture: str, shapes: Mapping[str, tuple[int, ...]] | None) -> str | None:
    """The path in the U-Net of a name in the single file, by the longest beginning that the table has."""
    table = _table(architecture) if shapes is None else modules(facts_of_names(shapes))
    key, rest = UNET_PREFIX + path, ""
    while key not in table:
        key, dot, last = key.rpartition(".")
        if not dot:
            return None
        rest = f".{last}{rest}"
    return table[key].removeprefix("unet/") + rest


@cache
def _table(architecture: str) -> Mapping[str, str]:
    """Of the published U-Nets: three levels in SDXL, of which the last two attend, else four."""
    xl = architecture == "stable-diffusion-xl-v1-base"
    attending = frozenset({0, 1}) if xl else frozenset({1, 2, 3})
    return modules(Facts(levels=3 if xl else 4, attending=attending, texts={}))


def _is_layer(
    component: str, path: str, architecture: str, shapes: Mapping[str, tuple[int, ...]] | None
) -> bool:
    if shapes is not None:
        return f"{component}/{path}.weight" in shapes
    if component == "unet":
        return _UNET.fullmatch(path) is not None
    if component == "vae":
        return True
    return component in TEXT_ENCODERS.get(architecture, {}) and _TEXT.fullmatch(path) is not None
