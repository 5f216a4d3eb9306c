"""Stage I in mode ``text`` for very many concepts at full size: no picture is drawn, no U-Net runs.

The text encoder is a random one with the real vocabulary; the U-Net, whose keys and values give the metric
"cross_attention" its distances, is random too.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Final

import torch
from randomsd import text_encoder, tokenizer, unet
from stagetwo import concepts_of, rates, spent

from surgery.anatomy import text_stack
from surgery.methods.emcid import Concept, EmcidModels, OffsetSettings, optimise_offsets
from surgery.store import Store

ALLOWED_S: Final = 30 * 60  # for a thousand concepts on two cores, with the default metric
DEFAULT: Final = OffsetSettings(mode="text")


def text_offsets(options: argparse.Namespace) -> bool:
    """Prints a row for each metric; whether the default one keeps to its time, scaled to the concepts."""
    words, encoder = tokenizer(options.vocabulary), text_encoder(options.family)
    concepts, stack = concepts_of(options.names, options.concepts, words), text_stack(encoder)
    second = text_encoder(options.family, "text_encoder_2") if options.family == "sdxl" else None
    layer, layer_2 = len(stack.blocks) - 2, None if second is None else len(text_stack(second).blocks) - 2
    allowed_s = ALLOWED_S * options.concepts / 1000
    rate, _ = rates(stack.width, stack.mlp_width)
    print(
        f"{options.family}: {len(concepts)} concepts behind block {layer}, "
        f"{torch.get_num_threads()} threads, products at {rate / 1e9:.0f} GFLOP/s"
    )
    good = True
    for metric in options.metrics:
        models = EmcidModels(tokenizer=words, text_encoder=encoder, text_encoder_2=second)
        if metric == "cross_attention":
            models = replace(models, unet=unet(options.family), scheduler=_scheduler())
        settings = replace(DEFAULT, metric=metric)
        elapsed_s = report(models, concepts, settings, (layer, layer_2), rate, options)
        good = good and (metric != DEFAULT.metric or elapsed_s <= allowed_s)
    return good


def report(
    models: EmcidModels,
    concepts: tuple[Concept, ...],
    settings: OffsetSettings,
    layers: tuple[int, int | None],
    rate: float,
    options: argparse.Namespace,
) -> float:
    """One row; a run that finds stored batches says how many it computed, and its time is theirs alone."""
    store = Store(options.store) if options.resume else None
    layer, layer_2 = layers
    took = spent(
        lambda: optimise_offsets(models, concepts, settings, layer=layer, layer_2=layer_2, store=store)
    )
    steps = sum(one.steps for one in took.found) / len(concepts)
    print(
        f"{settings.metric}: {took.elapsed_s:.1f} s, {took.elapsed_s / len(concepts):.2f} s a concept, "
        f"{steps:.0f} steps on the mean, {took.memory_bytes / 1e9:.2f} GB more memory, "
        f"{took.multiplied / 1e12:.1f} TFLOP of products, "
        f"{took.multiplied / rate / took.elapsed_s:.0%} of the speed of bare ones",
        flush=True,
    )
    return took.elapsed_s


def _scheduler() -> object:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
