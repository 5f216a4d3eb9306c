"""A reader of patch files written from FORMAT.md alone: json, numpy, and nothing of ours."""

import hashlib
import json
from math import ceil, log2, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1", "U16": "<u2", "I32": "<i4", "I64": "<i8"}
Array = NDArray[Any]


def read(path: Path) -> tuple[dict[str, str], dict[str, Array], dict[str, str]]:
    """Metadata, tensors by key, and the type of each."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__")
    tensors, types = {}, {}
    for key, entry in header.items():
        start, stop = entry["data_offsets"]
        values = np.frombuffer(data[end + start : end + stop], TYPES[entry["dtype"]])
        tensors[key], types[key] = values.reshape(entry["shape"]), entry["dtype"]
    return metadata, tensors, types


def content(metadata: dict[str, str], tensors: dict[str, Array], types: dict[str, str]) -> str:
    """Section 6."""
    digest = hashlib.sha256()
    for key in sorted(metadata):
        if key.startswith("sdpatch.") and key != "sdpatch.content":
            digest.update(f"{key}\0{metadata[key]}\0".encode())
    for key in sorted(tensors):
        digest.update(f"{key}\0{types[key]}\0{_shape(tensors[key])}\0".encode() + tensors[key].tobytes())
    return digest.hexdigest()


def digests(name: str, weight: Array) -> dict[str, str]:
    """Section 5, for F16 and F32."""
    kind = {"f2": "F16", "f4": "F32"}[weight.dtype.str[1:]]
    half = weight.astype("<f2")
    half = np.where(half == 0, np.float16(0), half)
    return {
        "bytes": _sha256(name, kind, weight),
        "value16": _sha256(name, "F16", half),
    }


def apply(path: Path, base: dict[str, Array], strength: float = 1.0) -> dict[str, Array]:
    """Section 3: every touched weight as it comes out."""
    metadata, tensors, _ = read(path)
    manifest = json.loads(metadata["sdpatch.manifest"])
    return {name: _edited(name, base[name], manifest, tensors, strength) for name in manifest["changes"]}


def _edited(
    name: str, weight: Array, manifest: dict[str, Any], tensors: dict[str, Array], strength: float
) -> Array:
    total, later = np.zeros(weight.shape), []
    for number, term in enumerate(manifest["terms"]):
        form = term["forms"].get(name)
        if form is None:
            continue
        s = term["strength"] * strength
        if manifest["layout"] == "lora":
            up, down = _lora(name, form["columns"], tensors)
            total = total + (up @ down).reshape(weight.shape) * s
            continue
        parts = {part: tensors[f"{number}/{name}::{part}"] for part in form["parts"]}
        verb, _, where = form["op"].partition("_")
        if verb in ("set", "scale"):
            later.append((verb, _mask(where, form["index"], parts, weight.shape), parts, s))
        else:
            total = total + _added(form, parts, weight) * s
    half = total.astype("<f2")
    result = np.where(half == 0, weight, (weight.astype("f8") + half.astype("f8")).astype(weight.dtype))
    least = np.full(weight.shape, np.inf)
    for verb, mask, parts, s in later:
        old = weight[mask].astype("f8")
        if verb == "set":
            new = parts["new"].reshape(-1)
            values = new if s == 1 else (old + s * (new.astype("f8") - old)).astype(weight.dtype)
        else:
            factors = np.minimum(least[mask], 1 + s * (parts["factors"].astype("f8").reshape(-1) - 1))
            least[mask] = factors
            values = np.where(factors == 1, weight[mask], (old * factors).astype(weight.dtype))
        result[mask] = values
    return result


def _added(form: dict[str, Any], parts: dict[str, Array], weight: Array) -> Array:
    if form["op"] == "add_dense":
        dense: Array = parts["values"].astype("f8")
        return dense
    if form["op"] == "add_sparse":
        change = np.zeros(weight.shape)
        change[_mask("elems", form["index"], parts, weight.shape)] = parts["values"].astype("f8")
        return change
    if form["op"] == "add_lowrank":
        product: Array = parts["up"].astype("f8") @ parts["down"].astype("f8")
        return product.reshape(weight.shape)
    matrix = weight.reshape(weight.shape[0], -1).astype("f8")
    left, right = parts["left"].astype("f8"), parts["right"].astype("f8")
    return _cut(_cut(matrix, left), right).reshape(weight.shape)


def _lora(name: str, columns: list[int], tensors: dict[str, Array]) -> tuple[Array, Array]:
    component, _, path = name.partition("/")
    prefix = {"text_encoder": "lora_te", "unet": "lora_unet"}[component]
    key = f"{prefix}_{path.removesuffix('.weight').replace('.', '_')}"
    up, down = (tensors[f"{key}.lora_{side}.weight"].astype("f8") for side in ("up", "down"))
    down = down.reshape(len(down), -1)
    up = up.reshape(len(up), -1) * (float(tensors[f"{key}.alpha"]) / len(down))
    return up[:, columns[0] : columns[1]], down[columns[0] : columns[1]]


def _cut(left: Array, right: Array) -> Array:
    """A product of matrices off the grid."""
    bits = (53 - ceil(log2(max(2, left.shape[1])))) // 2
    (high, low), (high_right, low_right) = _slices(left, bits, 1), _slices(right, bits, 0)
    product: Array = (low @ high_right + high @ low_right) + high @ high_right
    return product


def _slices(matrix: Array, bits: int, axis: int) -> tuple[Array, Array]:
    top = np.frexp(np.abs(matrix).max(axis=axis, keepdims=True))[1]
    high = np.ldexp(np.rint(np.ldexp(matrix, bits - top)), top - bits)
    low = np.ldexp(np.rint(np.ldexp(matrix - high, 2 * bits - top)), top - 2 * bits)
    return high, low


def _mask(where: str, index: str, parts: dict[str, Array], shape: tuple[int, ...]) -> Array:
    """The elements that an index names, as a mask; values stand in row-major order."""
    mask = np.zeros(shape, bool)
    if where == "full":
        mask[...] = True
    elif where == "rows":
        mask[parts["index"].astype(int)] = True
    elif where == "cols":
        mask[:, parts["index"].astype(int)] = True
    elif index == "bits":
        mask = np.unpackbits(parts["bits"], bitorder="little")[: prod(shape)].astype(bool).reshape(shape)
    elif index == "gaps":
        place = -1
        most = np.iinfo(parts["gaps"].dtype).max
        for gap in parts["gaps"].tolist():
            place += gap + (gap != most)
            if gap != most:
                mask.reshape(-1)[place] = True
    elif index == "csr":
        ends = parts["row_ends"].astype(int)
        rows = np.repeat(np.arange(shape[0]), np.diff(ends, prepend=0))
        mask.reshape(shape[0], -1)[rows, parts["columns"].astype(int)] = True
    else:
        mask.reshape(-1)[parts["index"].astype(int)] = True
    return mask


def _sha256(name: str, kind: str, values: Array) -> str:
    return hashlib.sha256(f"{name}\0{kind}\0{_shape(values)}\0".encode() + values.tobytes()).hexdigest()


def _shape(values: Array) -> str:
    return ",".join(str(size) for size in values.shape)
