"""Which words an edit is about, told from the weights alone: edits of known concepts, and edits of none."""

from __future__ import annotations

import argparse
import re
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from massive import draw_edits, recipe_of

from surgery.audit import AuditOptions, audit_checkpoints, audit_patch
from surgery.audit.words.lists import own_captions
from surgery.checkpoint import open_checkpoint
from surgery.checkpoint.components import load_pipeline
from surgery.delta import Delta, Form, Places, Rescale
from surgery.diffusion import encode_prompts, predict_noise
from surgery.execute import compute_patch, plan_recipe
from surgery.patch import Patch, Term, make_patch, save_patch
from surgery.report import AuditRecord
from surgery.shelf import checkpoint_path
from surgery.store import Store
from surgery.study.words import read_words

LEAST = 0.9  # of the edited names, in as many first places
PICTOGRAPHS = ((0x1F300, 0x1FB00), (0x2190, 0x2C00), (0x3200, 0x33FF), (0x10000, 0x10100))


def touched_words(options: argparse.Namespace) -> bool:
    """Prints a row for each edit; whether each says what it should."""
    base = checkpoint_path(options.base)
    names = list(read_words(base).concepts)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "words.txt").write_text("\n".join([*names, *distractors(names, options.distractors)]))
        asked = AuditOptions(spectra=False, words=place / "words.txt")
        held = [_edited_names(options, base, asked, place), _mask(base, asked, place)]
        held.append(_fine_tune(base, asked, place, options.steps))
    return all(held)


def distractors(names: Sequence[str], count: int) -> list[str]:
    """Names of characters, most of them things; none with a concept's name in it."""
    known = re.compile(rf"\b({'|'.join(re.escape(name.casefold()) for name in names)})\b")
    found: dict[str, None] = {}
    for first, last in PICTOGRAPHS:
        for point in range(first, last):
            name = unicodedata.name(chr(point), "").lower()
            if name and not known.search(name):
                found[name] = None
    if len(found) < count:
        raise SystemExit(f"{len(found)} names of characters were found; {count} distractors were asked for")
    return list(found)[:count]


def _edited_names(options: argparse.Namespace, base: Path, asked: AuditOptions, place: Path) -> bool:
    edits = draw_edits(read_words(base), options.concepts)
    recipe = recipe_of(options, edits, "update", "block", "text")
    checkpoint = open_checkpoint(base)
    computed = compute_patch(
        recipe, plan_recipe(recipe, checkpoint), checkpoint, load_pipeline(base), Store(options.store)
    )
    record = _of_patch(computed.patch, base, asked, place)
    first = [row.phrase for row in record.words.rows[: len(edits)]] if record.words else []
    found = sum(source in first for source, _ in edits)
    _say(f"EMCID update of {len(edits)} concepts", record, f"{found} of them in the first {len(edits)}")
    for number, row in enumerate(record.words.rows if record.words else (), start=1):
        if row.phrase in dict(edits) and row.phrase not in first:
            print(f"    not among them: {row.phrase}, at place {number}")
    return found >= LEAST * len(edits)


def _mask(base: Path, asked: AuditOptions, place: Path) -> bool:
    """A tenth of every cross-attention key and value at random becomes zero, as a component mask does."""
    checkpoint, generator = open_checkpoint(base), torch.Generator().manual_seed(0)
    terms: dict[str, Form] = {}
    for name, entry in checkpoint.tensors.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight", "mlp.fc2.weight")):
            chosen = torch.rand(entry.shape, generator=generator) < 0.1
            places = Places("elements", entry.shape, chosen.flatten().nonzero()[:, 0])
            terms[name] = Rescale(places, torch.tensor(0.0))
    patch = make_patch([Term(delta=Delta(terms))], checkpoint)
    record = _of_patch(patch, base, asked, place)
    _say("random element mask", record, "")
    return _claims_nothing(record)


def _fine_tune(base: Path, asked: AuditOptions, place: Path, steps: int) -> bool:
    """Steps of AdamW on the U-Net, of captions with random latents; every weight of it changes."""
    pipeline = load_pipeline(base)
    pipeline.unet.requires_grad_(True)
    optimiser = torch.optim.AdamW(pipeline.unet.parameters(), lr=1e-4)
    captions = own_captions(base)
    torch.manual_seed(0)
    for step in range(steps):
        text = encode_prompts(pipeline.tokenizer, pipeline.text_encoder, captions[4 * step : 4 * step + 4])
        side = pipeline.unet.config.sample_size
        latents, noise = torch.randn(2, 4, pipeline.unet.config.in_channels, side, side)
        times = torch.randint(0, 1000, (4,))
        noisy = pipeline.scheduler.add_noise(latents, noise, times)
        loss = (predict_noise(pipeline.unet, noisy, times, text) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.half()
    pipeline.save_pretrained(place / "tuned")
    record = audit_checkpoints(base, place / "tuned", asked)
    _say(f"U-Net fine-tuned for {steps} steps", record, "")
    return _claims_nothing(record)


def _of_patch(patch: Patch, base: Path, asked: AuditOptions, place: Path) -> AuditRecord:
    save_patch(patch, place / "patch.safetensors", overwrite=True)
    return audit_patch(place / "patch.safetensors", base, asked)


def _claims_nothing(record: AuditRecord) -> bool:
    return record.words is None or not record.words.touched


def _say(edit: str, record: AuditRecord, found: str) -> None:
    words = record.words
    claimed = (
        f"{len(words.touched)} of {len(words.rows):,} phrases claimed" if words else "no words looked for"
    )
    print(f"{edit:36}{claimed:40}{found}", flush=True)
