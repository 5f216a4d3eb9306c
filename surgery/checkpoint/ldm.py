"""Keys of single files ("LDM", the layout of the latent-diffusion code) and canonical names, as one table.

A table of modules is built from what the file or the folder holds (how many levels and layers there are),
with the key's beginning on the left and the canonical one on the right; each direction reads the same table,
so the map is a bijection. Three things are more than another name:

- open_clip keeps query, key and value of a text block in one tensor (``in_proj``): three thirds of its rows;
- open_clip's text projection is stored transposed;
- the VAE's attention is stored as 1×1 convolutions: the same bytes with two more axes.

What a file holds beside a pipeline's weights has no canonical name: `surgery.checkpoint.leftovers` tells what
it is.

Source: the names of ``CompVis/stable-diffusion`` and ``Stability-AI/generative-models``; as in
``diffusers.loaders.single_file_utils``, the last block and the projection of SD 2.x's text encoder are no
weights of the pipeline.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal

from surgery.errors import CheckpointError, brief, raise_all
from surgery.names import split

Style = Literal["clip", "bare_clip", "open_clip"]
"""``bare_clip`` leaves ``text_model.`` out, as old merges do and folders of transformers 5.6 and later."""

UNET_PREFIX: Final = "model.diffusion_model."
VAE_PREFIX: Final = "first_stage_model."
AVERAGED_PREFIX: Final = "model_ema."
"""Of a second copy of the U-Net's weights, averaged over the training, that some files carry; its keys are
those of the first without dots."""
PROJECTION: Final = "unet/down_blocks.0.attentions.0.proj_in.weight"
"""A 1×1 convolution in SD 1.x, a linear map in SD 2.x; SDXL has none there."""

TEXT_PREFIXES: Final[Mapping[str, tuple[str, Style]]] = {
    "cond_stage_model.transformer.": ("text_encoder", "clip"),
    "cond_stage_model.model.": ("text_encoder", "open_clip"),
    "conditioner.embedders.0.transformer.": ("text_encoder", "clip"),
    "conditioner.embedders.0.model.": ("text_encoder", "open_clip"),
    "conditioner.embedders.1.model.": ("text_encoder_2", "open_clip"),
}
"""Text encoders, and how they are named: SD 1.x, SD 2.x, SDXL's first, SD 2.x newer (and the only one of
SDXL's refiner, which is its other), SDXL's other."""
_ONLY: Final = "conditioner.embedders.0.model."

_RESNET: Final[Mapping[str, str]] = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS: Final[Mapping[str, str]] = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_RESNET: Final = ("norm1", "conv1", "norm2", "conv2")
_VAE_ATTENTION: Final[Mapping[str, str]] = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_OPEN_CLIP_BLOCK: Final[Mapping[str, str]] = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPEN_CLIP_ENDS: Final[Mapping[str, str]] = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
}
_BARE_CLIP: Final = ("encoder.", "embeddings.", "final_layer_norm.")
SD2_BLOCKS: Final = 23  # of 24: SD 2.x conditions on the block before the last
_MOST_BLOCKS: Final = 100
_RESNETS_DOWN, _RESNETS_UP = 2, 3  # of a U-Net level; all four families have them so


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a canonical tensor lies in a single file: a key, and what to do to its rows.

    Attributes:
        part: Which of ``parts`` equal blocks of rows it is.
        transposed: Whether rows and columns are swapped in the file.
        pixel: Whether the file's tensor has two more axes of length 1.
    """

    key: str
    part: int = 0
    parts: int = 1
    transposed: bool = False
    pixel: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What decides the table: counts that the keys, or the canonical names, of a checkpoint tell.

    Attributes:
        levels: Of the U-Net; 0 without one.
        attending: Up blocks with attention; the others have their upsampler one place earlier.
        vae_levels: Of the VAE; 0 without one.
        texts: Per text encoder its prefix in the file, its style, and how many blocks have canonical names.
    """

    levels: int = 0
    attending: frozenset[int] = frozenset()
    vae_levels: int = 0
    texts: Mapping[str, tuple[str, Style, int]]


def facts_of_keys(keys: Iterable[str]) -> Facts:
    """The facts of a single file."""
    keys = list(keys)
    texts: dict[str, tuple[str, Style, int]] = {}
    for prefix, (component, style) in TEXT_PREFIXES.items():
        found = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        if not found:
            continue
        blocks = 1 + _highest(r"(?:(?:text_model\.)?encoder\.layers|transformer\.resblocks)\.(\d+)\.", found)
        if style == "clip" and any(key.startswith(_BARE_CLIP) for key in found):
            style = "bare_clip"
        if prefix == _ONLY and blocks > SD2_BLOCKS + 1:
            component = "text_encoder_2"
        if component in texts:
            raise CheckpointError(
                f"it holds the {component} twice ({texts[component][0]!r} and {prefix!r}); one copy "
                " was expected. Was it merged from two kinds of models? Remove one copy."
            )
        if style == "open_clip" and component == "text_encoder":
            blocks = min(blocks, SD2_BLOCKS)
        texts[component] = (prefix, style, blocks)
    unet = [key.removeprefix(UNET_PREFIX) for key in keys if key.startswith(UNET_PREFIX)]
    vae = [key.removeprefix(VAE_PREFIX) for key in keys if key.startswith(VAE_PREFIX)]
    attends = re.compile(r"output_blocks\.(\d+)\.1\.proj_in\.weight")
    return Facts(
        levels=max(
            bool(unet), (_highest(r"input_blocks\.(\d+)\.", unet) + _RESNETS_DOWN + 1) // (_RESNETS_DOWN + 1)
        ),
        attending=frozenset(int(m[1]) // _RESNETS_UP for key in unet if (m := attends.fullmatch(key))),
        vae_levels=max(bool(vae), 1 + _highest(r"(?:encoder\.down|decoder\.up)\.(\d+)\.", vae)),
        texts=texts,
    )


def facts_of_names(shapes: Mapping[str, tuple[int, ...]]) -> Facts:
    """The facts of a checkpoint by its canonical names, for the single file it would be."""
    paths: dict[str, list[str]] = {}
    for name in shapes:
        component, path = split(name)
        paths.setdefault(component, []).append(path)
    unet, vae = paths.get("unet", []), paths.get("vae", [])
    attends = re.compile(r"up_blocks\.(\d+)\.attentions\.")
    texts: dict[str, tuple[str, Style, int]] = {}
    for component, prefix in _text_prefixes(paths.keys(), shapes).items():
        blocks = 1 + _highest(r"text_model\.encoder\.layers\.(\d+)\.", paths[component])
        texts[component] = (prefix, TEXT_PREFIXES[prefix][1], blocks)
    return Facts(
        levels=max(bool(unet), 1 + _highest(r"down_blocks\.(\d+)\.", unet)),
        attending=frozenset(int(m[1]) for path in unet if (m := attends.match(path))),
        vae_levels=max(bool(vae), 1 + _highest(r"(?:encoder\.down|decoder\.up)_blocks\.(\d+)\.", vae)),
        texts=texts,
    )


def places_of_keys(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Canonical names in a single file with these keys; buffers and foreign keys have none.

    Raises:
        CheckpointError: when two keys are one tensor.
    """
    facts = facts_of_keys(shapes)
    table = modules(facts)
    places: dict[str, Place] = {}
    faults = []
    for key, shape in shapes.items():
        for name, place in _names(key, shape, table, facts):
            if name in places:
                faults.append(f"{key!r} is the same tensor as {places[name].key!r}; keep one of them.")
            places[name] = place
    raise_all(CheckpointError, faults)
    return places


def averaged_places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Where the averaged copy of a single file's U-Net lies, by canonical name; empty without one.

    Raises:
        CheckpointError: when two keys are one tensor.
    """
    plain = {name: place for name, place in places_of_keys(shapes).items() if name.startswith("unet/")}
    keys = {name: averaged_key(place.key) for name, place in plain.items()}
    return {
        name: replace(plain[name], key=key)
        for name, key in keys.items()
        if shapes.get(key) == shapes[plain[name].key]
    }


def averaged_key(key: str) -> str:
    """The key of the averaged copy of the U-Net's tensor under ``key``. Source: ``LitEma`` of CompVis."""
    return AVERAGED_PREFIX + key.removeprefix("model.").replace(".", "")


def places_of_names(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Places in a single file for the tensors of a folder (shapes by canonical name), where there are any."""
    facts = facts_of_names(shapes)
    back = {right: left for left, right in modules(facts).items()}
    places = {}
    for name in shapes:
        place = _place(name, back, facts)
        if place is not None:
            places[name] = place
    return places


def modules(facts: Facts) -> dict[str, str]:
    """Beginnings of keys and of canonical names, each once."""
    pairs = [
        *((UNET_PREFIX + left, f"unet/{right}") for left, right in _unet(facts)),
        *((VAE_PREFIX + left, f"vae/{right}") for left, right in _vae(facts.vae_levels)),
    ]
    for component, (prefix, style, blocks) in facts.texts.items():
        inner = _open_clip(blocks) if style == "open_clip" else _clip(bare=style == "bare_clip")
        pairs += [(prefix + left, f"{component}/{right}") for left, right in inner]
    return dict(pairs)


def _unet(facts: Facts) -> Iterator[tuple[str, str]]:
    if not facts.levels:
        return
    yield from _UNET_ENDS.items()
    resnets = [("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1")]
    yield "middle_block.1", "mid_block.attentions.0"
    for level in range(facts.levels):
        for number in range(_RESNETS_DOWN):
            block = f"input_blocks.{level * (_RESNETS_DOWN + 1) + number + 1}"
            resnets.append((f"{block}.0", f"down_blocks.{level}.resnets.{number}"))
            yield f"{block}.1", f"down_blocks.{level}.attentions.{number}"
        sampler = f"input_blocks.{(level + 1) * (_RESNETS_DOWN + 1)}.0.op"
        yield sampler, f"down_blocks.{level}.downsamplers.0.conv"
        attends = level in facts.attending
        for number in range(_RESNETS_UP):
            block = f"output_blocks.{level * _RESNETS_UP + number}"
            resnets.append((f"{block}.0", f"up_blocks.{level}.resnets.{number}"))
            if attends:
                yield f"{block}.1", f"up_blocks.{level}.attentions.{number}"
        last = f"output_blocks.{level * _RESNETS_UP + _RESNETS_UP - 1}"
        yield f"{last}.{1 + attends}.conv", f"up_blocks.{level}.upsamplers.0.conv"
    for (left, right), (inner_left, inner_right) in product(resnets, _RESNET.items()):
        yield f"{left}.{inner_left}", f"{right}.{inner_right}"


def _vae(levels: int) -> Iterator[tuple[str, str]]:
    if not levels:
        return
    for whole in ("quant_conv", "post_quant_conv"):
        yield whole, whole
    for half, side, down in (("encoder", "down", True), ("decoder", "up", False)):
        for end, name in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
            yield f"{half}.{end}", f"{half}.{name}"
        resnets = [(f"{half}.mid.block_{n + 1}", f"{half}.mid_block.resnets.{n}") for n in range(2)]
        for left, right in _VAE_ATTENTION.items():
            yield f"{half}.mid.attn_1.{left}", f"{half}.mid_block.attentions.0.{right}"
        for level in range(levels):
            block = f"{half}.{side}_blocks.{level if down else levels - 1 - level}"
            sampler = "downsample" if down else "upsample"
            yield f"{half}.{side}.{level}.{sampler}.conv", f"{block}.{side}samplers.0.conv"
            # of resnets there are layers_per_block in the encoder and one more in the decoder: SD has 2
            resnets += [(f"{half}.{side}.{level}.block.{n}", f"{block}.resnets.{n}") for n in range(4)]
        for left, right in resnets:
            yield f"{left}.nin_shortcut", f"{right}.conv_shortcut"
            yield from ((f"{left}.{part}", f"{right}.{part}") for part in _VAE_RESNET)


def _clip(*, bare: bool) -> Iterator[tuple[str, str]]:
    for name in ("encoder", "embeddings", "final_layer_norm"):
        yield f"text_model.{name}", f"text_model.{name}"
        if bare:  # beside the others: a file that has one tensor under both keys is refused
            yield name, f"text_model.{name}"


def _open_clip(blocks: int) -> Iterator[tuple[str, str]]:
    yield from _OPEN_CLIP_ENDS.items()
    for block, (left, right) in product(range(blocks), _OPEN_CLIP_BLOCK.items()):
        yield f"transformer.resblocks.{block}.{left}", f"text_model.encoder.layers.{block}.{right}"


_FUSED: Final = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_SPLIT: Final = re.compile(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
_PIXEL: Final = re.compile(r"vae/(?:en|de)coder\.mid_block\.attentions\.0\.to_(?:q|k|v|out\.0)\.weight")


def _names(
    key: str, shape: tuple[int, ...], table: Mapping[str, str], facts: Facts
) -> Iterator[tuple[str, Place]]:
    """The canonical tensors in one tensor of the file."""
    if key.endswith("embeddings.position_ids"):
        return
    name = _looked_up(key, table)
    if name is not None:
        pixel = len(shape) == 4 and _PIXEL.fullmatch(name) is not None
        yield name, Place(key=key, pixel=pixel)
    for component, (prefix, style, blocks) in facts.texts.items():
        if style != "open_clip" or not key.startswith(prefix):
            continue
        fused = _FUSED.fullmatch(key.removeprefix(prefix))
        if fused and int(fused[1]) < blocks:
            for part, letter in enumerate("qkv"):
                path = f"text_model.encoder.layers.{fused[1]}.self_attn.{letter}_proj.{fused[2]}"
                yield f"{component}/{path}", Place(key=key, part=part, parts=3)
        if key == f"{prefix}text_projection" and component == "text_encoder_2":
            yield f"{component}/text_projection.weight", Place(key=key, transposed=True)


def _place(name: str, back: Mapping[str, str], facts: Facts) -> Place | None:
    component, path = split(name)
    prefix, style, _ = facts.texts.get(component, ("", "clip", 0))
    parted = _SPLIT.fullmatch(path)
    if style == "open_clip" and parted:
        key = f"{prefix}transformer.resblocks.{parted[1]}.attn.in_proj_{parted[3]}"
        return Place(key=key, part="qkv".index(parted[2]), parts=3)
    if style == "open_clip" and path == "text_projection.weight":
        return Place(key=f"{prefix}text_projection", transposed=True)
    key_of = _looked_up(name, back)
    return None if key_of is None else Place(key=key_of, pixel=_PIXEL.fullmatch(name) is not None)


def _looked_up(text: str, table: Mapping[str, str]) -> str | None:
    """``text`` with the longest beginning that the table has replaced, at a dot or whole."""
    cut = len(text)
    while cut > 0:
        if text[:cut] in table:
            return table[text[:cut]] + text[cut:]
        cut = text.rfind(".", 0, cut)
    return None


def _text_prefixes(components: Container[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Where the text encoders of a family go: two make SDXL, a projection without pixels makes SD 2.x."""
    if "text_encoder_2" in components and "text_encoder" in components:
        return {
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        }
    if "text_encoder_2" in components:
        return {"text_encoder_2": _ONLY}
    if "text_encoder" not in components:
        return {}
    projection = shapes.get(PROJECTION, (0, 0, 1, 1))
    return {"text_encoder": "cond_stage_model." + ("transformer." if len(projection) == 4 else "model.")}


def _highest(pattern: str, texts: Iterable[str]) -> int:
    """The highest number that the pattern finds, -1 when it finds none.

    Raises:
        CheckpointError: for a number that no model has, before a table is made as long as it says.
    """
    highest = -1
    for text in texts:
        match = re.match(pattern, text)
        if match and int(match[1]) > _MOST_BLOCKS:
            raise CheckpointError(
                f"the key {brief(text)} counts to {brief(int(match[1]))}; no Stable Diffusion has more than "
                f"{_MOST_BLOCKS} blocks. Was the file tampered with?"
            )
        highest = max(highest, int(match[1])) if match else highest
    return highest
