"""The words after ``when`` in the rules: how a change stands to its neighbours and to the model."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Final

from surgery.export.loaders.contents import Change, Contents, Module
from surgery.export.lycoris import OPEN_CLIP

Condition = Callable[[Change, Contents], bool]
FileCondition = Callable[[Contents], bool]

_ORDER: Final = ("lora", "w_norm", "b_norm", "diff", "diff_b", "bias_diff", "set", "bias_set")
"""In which ComfyUI reads the kinds of change of one weight; the last one stays."""

_WIDTHS: Final = (768, 1024, 1280, 2048)
_QKV: Final = ("q_proj", "k_proj", "v_proj")


def _unknown_layer(change: Change, contents: Contents) -> bool:
    return change.module.layer is None


def _no_known_layer(change: Change, contents: Contents) -> bool:
    """Whether none of the file's names that begin like this one means a layer of the model."""
    alike = (module for module in contents.modules if module.prefix == change.module.prefix)
    return all(module.layer is None for module in alike)


def _wrong_shape(change: Change, contents: Contents) -> bool:
    """Whether the change cannot be added to the weight; asked only where the model is at hand."""
    module = change.module
    expected = None if contents.shapes is None else contents.shapes.get(change.tensor)
    if expected is None:  # a bias of a layer that has none, where the model is at hand
        return contents.shapes is not None and module.layer is not None
    if change.form == "lora":
        up, down = contents.shape(module, "up"), contents.shape(module, "down")
        return (up[0], up[1], prod(down[1:])) != (expected[0], down[0], prod(expected[1:]))
    if change.form not in module.parts:
        return False
    return prod(contents.shape(module, change.form)) != prod(expected)


def _not_all_kohya(change: Change, contents: Contents) -> bool:
    known = ("lora_te", "lora_te1", "lora_te2", "lora_unet")
    return not all(module.prefix in known for module in contents.modules)


def _both_block_names(change: Change, contents: Contents) -> bool:
    found = {module.naming for module in contents.modules if module.prefix == "lora_unet"}
    return {"kohya", "kohya-ldm"} <= found


def _siblings(change: Change, contents: Contents) -> list[Module]:
    """The modules of the same component that have a layer."""
    layer = change.module.layer
    if layer is None:
        return []
    return [m for m in contents.modules if m.layer is not None and m.layer.component == layer.component]


def _attention_beside(change: Change, contents: Contents, form: str | None = None) -> set[str]:
    """Which of q_proj, k_proj, v_proj and out_proj of this attention are in the file, perhaps in one form."""
    layer = change.module.layer
    above = "" if layer is None else layer.name.rpartition(".")[0]
    found = set()
    for module in _siblings(change, contents):
        head, _, last = (module.layer.name if module.layer else "").rpartition(".")
        if head == above and (form is None or form in module.forms):
            found.add(last)
    return found


def _attention_incomplete(change: Change, contents: Contents) -> bool:
    return not {*_QKV, "out_proj"} <= _attention_beside(change, contents)


def _earlier_missing(change: Change, contents: Contents) -> bool:
    last = _last(change)
    earlier = _QKV[: _QKV.index(last)] if last in _QKV else ()
    return not set(earlier) <= _attention_beside(change, contents, change.form)


def _no_out_proj(change: Change, contents: Contents) -> bool:
    return not any(m.layer and m.layer.name.endswith(".out_proj") for m in _siblings(change, contents))


def _no_mlp(change: Change, contents: Contents) -> bool:
    return not any(m.layer and m.layer.kind == "te-mlp" for m in _siblings(change, contents))


def _no_text_attention(change: Change, contents: Contents) -> bool:
    return not any(m.layer and m.layer.kind == "te-attention" for m in _siblings(change, contents))


def _open_clip(change: Change, contents: Contents) -> bool:
    layer = change.module.layer
    return layer is not None and OPEN_CLIP.get(contents.architecture) == layer.component


def _not_out_proj(change: Change, contents: Contents) -> bool:
    return _last(change) != "out_proj"


def _beside_lora(change: Change, contents: Contents) -> bool:
    return {"up", "down"} <= change.module.parts.keys()


def _bias_alone(change: Change, contents: Contents) -> bool:
    return not change.module.parts.keys() & {"up", "diff", "w_norm", "other"}


def _norm_half(change: Change, contents: Contents) -> bool:
    return not {"w_norm", "b_norm"} <= change.module.parts.keys()


def _overwritten(change: Change, contents: Contents) -> bool:
    """Whether another change of the same tensor comes after this one."""
    rivals = [other for other in contents.changes if other.tensor == change.tensor]
    return max(rivals, key=_rank) != change


def _rank(change: Change) -> int:
    return _ORDER.index(change.form) if change.form in _ORDER else 0


def _some_without_bias(change: Change, contents: Contents) -> bool:
    return not all("lora_bias" in module.parts for module in _siblings(change, contents))


def _last(change: Change) -> str:
    return "" if change.module.layer is None else change.module.layer.name.rpartition(".")[2]


CONDITIONS: Final[Mapping[str, Condition]] = {
    "unknown-layer": _unknown_layer,
    "no-known-layer": _no_known_layer,
    "wrong-shape": _wrong_shape,
    "not-all-kohya": _not_all_kohya,
    "both-block-names": _both_block_names,
    "attention-incomplete": _attention_incomplete,
    "earlier-missing": _earlier_missing,
    "no-out-proj": _no_out_proj,
    "no-mlp": _no_mlp,
    "no-text-attention": _no_text_attention,
    "open-clip": _open_clip,
    "not-out-proj": _not_out_proj,
    "beside-lora": _beside_lora,
    "bias-alone": _bias_alone,
    "norm-half": _norm_half,
    "overwritten": _overwritten,
    "some-without-bias": _some_without_bias,
}


def _adapter_metadata(contents: Contents) -> bool:
    kohya = any(module.naming.startswith("kohya") and "alpha" in module.parts for module in contents.modules)
    return kohya and "lora_adapter_metadata" in contents.metadata


def _anchors(contents: Contents) -> list[int]:
    """Widths of the layers by which InvokeAI tells the model, the cross-attention first."""
    found: list[tuple[bool, int]] = []
    for module in contents.modules:
        cross = module.prefix == "lora_unet" and module.key.endswith(("attn2_to_k", "attn2_to_v"))
        text = module.prefix.startswith("lora_te") and "_self_attn_" in module.key
        part = next((part for part in ("down", "diff") if part in module.parts), None)
        if (cross or text) and part is not None and len(contents.shape(module, part)) > 1:
            found.append((not cross, contents.shape(module, part)[1]))
    return [width for _, width in sorted(found)]


def _no_anchor(contents: Contents) -> bool:
    return not _anchors(contents)


def _unknown_width(contents: Contents) -> bool:
    anchors = _anchors(contents)
    return bool(anchors) and anchors[0] not in _WIDTHS


FILE_CONDITIONS: Final[Mapping[str, FileCondition]] = {
    "adapter-metadata": _adapter_metadata,
    "no-anchor": _no_anchor,
    "unknown-width": _unknown_width,
}
"""Those of whole files that ask the file alone; ``too-many-unmatched`` asks what became of its keys."""
