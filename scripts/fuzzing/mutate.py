"""Changes that keep JSON being JSON: one value, key or branch at a time."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any, Final

Path = tuple[Any, ...]

VALUES: Final[tuple[Any, ...]] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        3,
        23,
        255,
        2**31,
        2**63,
        10**30,
        -(2**63),
        0.5,
        float("inf"),
        float("nan"),
    ),
    *("", "x", "\x1b[2J", "\ud800", "\u202e", "../x", "/etc/passwd", "a" * 300, "F16", "I64", "0" * 64),
    *([], {}, [[]], [0], [0, 0], {"a": 1}, ["a", "b"], [None, None]),
)
WORDS: Final = (
    *(
        "model.diffusion_model.",
        "first_stage_model.",
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
    ),
    *("conditioner.embedders.0.model.", "conditioner.embedders.1.model.", "model_ema.", "text_model."),
    *("input_blocks.", "output_blocks.", "middle_block.", "transformer.resblocks.", "encoder.layers."),
    *(
        "attn.in_proj_weight",
        "text_projection",
        "embeddings.position_ids",
        "proj_in.weight",
        "label_emb.0.0.",
    ),
    *("unet/", "vae/", "text_encoder/", "::old", "::positions", "::left", "__metadata__", "\0", "."),
)
NUMBERS: Final = ("0", "1", "2", "9", "11", "22", "23", "24", "99", "100", "101", "-1", "999999999999")


def mutated(text: bytes, chance: random.Random) -> bytes | None:
    """JSON texts, parted by zeros, with one of them changed somewhere; None when that one is no JSON."""
    parts = text.split(b"\0")
    place = chance.randrange(len(parts))
    try:
        value = json.loads(parts[place])
    except (ValueError, RecursionError):
        return None
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        value = changed(value, chance)
    parts[place] = json.dumps(value).encode("utf-8", "surrogatepass")
    return b"\0".join(parts)


def changed(value: Any, chance: random.Random) -> Any:
    """The value with something else in one place."""
    paths = list(places(value))
    path = chance.choice(paths)
    change: Callable[[Any], Any] = chance.choice(
        (
            lambda old: chance.choice(VALUES),
            lambda old: at(value, chance.choice(paths)),
            lambda old: altered(old, chance),
            lambda old: rekeyed(old, chance),
            lambda old: [old],
            lambda old: shortened(old, chance),
        )
    )
    return put(value, path, change(at(value, path)))


def places(value: Any, here: Path = (), depth: int = 0) -> Any:
    """The paths of all values in a value."""
    yield here
    if depth > 20:
        return
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*here, key), depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value[:50]):
            yield from places(item, (*here, number), depth + 1)


def at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def put(value: Any, path: Path, new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


def altered(old: Any, chance: random.Random) -> Any:
    """A number or a text a little different."""
    if isinstance(old, bool) or old is None:
        return not old
    if isinstance(old, int | float):
        return chance.choice((old + 1, old - 1, old * 2, -old, old * 2**31))
    if isinstance(old, str):
        return respelt(old, chance)
    return old


def rekeyed(old: Any, chance: random.Random) -> Any:
    """A table with one key spelt otherwise, or there twice under two spellings."""
    if not isinstance(old, dict) or not old:
        return altered(old, chance)
    key = chance.choice(list(old))
    copy = dict(old)
    copy[respelt(key, chance)] = copy[key] if chance.random() < 0.5 else copy.pop(key)
    return copy


def respelt(text: str, chance: random.Random) -> str:
    """A text with another number, or another of the words that keys are made of."""
    numbers = list(re.finditer(r"\d+", text))
    if numbers and chance.random() < 0.5:
        found = chance.choice(numbers)
        return text[: found.start()] + chance.choice(NUMBERS) + text[found.end() :]
    place = chance.randrange(len(text) + 1)
    known = [word for word in WORDS if word in text]
    if known and chance.random() < 0.7:
        return text.replace(chance.choice(known), chance.choice((*WORDS, "")), 1)
    return text[:place] + chance.choice(WORDS) + text[place:]


def shortened(old: Any, chance: random.Random) -> Any:
    """A table, list or text without some of it."""
    if isinstance(old, dict):
        return {key: item for key, item in old.items() if chance.random() < 0.8}
    if isinstance(old, list):
        return [item for item in old if chance.random() < 0.8]
    return old[: chance.randrange(len(old) + 1)] if isinstance(old, str) else old
