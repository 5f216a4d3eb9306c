"""The stages of the training in order; each reads what the ones before it have stored."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import balance
import judge as judge_stage
import team
import text as text_stage
import tokens
import torch
import unet as unet_stage
import vae as vae_stage
from adopt import adopt, steps_before
from balance import Direction, Rounds
from diffusers import AutoencoderKL, UNet2DConditionModel
from drawings import EmojiFont, Scene
from export import save as save_checkpoint
from looks import looks
from state import Stage, cosine
from transformers import CLIPTextModel, CLIPTokenizer
from vocabulary import read_vocabulary

from surgery.judge.pocket import PocketJudgeNet

POOL_SEED = 30
UNET_STAGES = ("full-length", "pairs", "whole", "small")  # the latest one first
PAIRS_SHARE, STYLE_SHARE = 0.5, 0.13  # of the rows of the stage `pairs`


def prepare(options: argparse.Namespace, concepts: Path, stage: str) -> None:
    """Everything that the processes of a stage read and must not write at the same time."""
    training = Training(options, concepts)
    training.pool_of(stage)


def run_stage(options: argparse.Namespace, concepts: Path, stage: str) -> None:
    """One stage by its name on the command line, from the same seed whoever runs it."""
    torch.manual_seed(0)
    getattr(Training(options, concepts), stage.replace("-", "_"))()


class Training:
    def __init__(self, options: argparse.Namespace, concepts: Path) -> None:
        self.options = options
        self.state: Path = options.state
        self.device: str = options.device
        self.vocabulary = read_vocabulary(concepts)
        self.font = EmojiFont()

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        path = self.state / "merges.json"
        if not path.is_file():
            made = text_stage.captions_of(self.vocabulary, 5, range(40_000), text_stage.SHARES, "train")
            path.write_text(json.dumps(tokens.learn_merges((c.caption for c in made), 1400)))
        return [(a, b) for a, b in json.loads(path.read_text())]

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        if not (self.state / "tokenizer" / "vocab.json").is_file():
            tokens.save(self.merges, self.state / "tokenizer")
        return tokens.read(self.state / "tokenizer")

    def adopt(self) -> None:
        adopt(self.options.out, self.state)

    def judge(self) -> PocketJudgeNet:
        options = self.options
        return judge_stage.train(self.state, self.font, self.vocabulary, options.judge_steps, 64, self.device)

    def vae(self) -> AutoencoderKL:
        return vae_stage.train(
            self.state, self.font, self.vocabulary, self.options.vae_steps, 24, self.device
        )

    def decoder(self) -> AutoencoderKL:
        """Polishes the decoder alone on whole pictures: the latents, the UNet's world, stay as they are."""
        steps = self.options.decoder_steps
        return vae_stage.polish(
            self.state, self.trained_vae(), self.font, self.vocabulary, steps, 12, self.device
        )

    def text(self) -> CLIPTextModel:
        steps = self.options.text_steps
        shown = looks(self.font, self.vocabulary, self.trained_vae())
        return text_stage.train(self.state, self.tokenizer, self.vocabulary, shown, steps, 128, self.device)

    def trained_judge(self) -> PocketJudgeNet:
        net = judge_stage.network(self.vocabulary)
        net.load_state_dict(self._stored("judge")["net"])
        return net.to(self.device).eval()

    def trained_vae(self) -> AutoencoderKL:
        vae = vae_stage.network()
        polished = Stage(self.state, "decoder").load()
        vae.load_state_dict((polished or self._stored("vae"))["average"])
        return vae.to(self.device).eval()

    def trained_text(self) -> CLIPTextModel:
        encoder = text_stage.network(self.tokenizer)
        encoder.load_state_dict(self._stored("text")["net"])
        return encoder.to(self.device).eval()

    def _stored(self, name: str) -> dict[str, Any]:
        stored = Stage(self.state, name).load()
        if stored is None:
            raise SystemExit(f"stage {name} has not run in {self.state}; run it first")
        return stored

    @cached_property
    def scale(self) -> float:
        """One over the spread of the latents: the VAE's scaling factor."""
        path = self.state / "scale.json"
        if not path.is_file():
            measured = vae_stage.measure(self.trained_vae(), self.font, self.vocabulary, self.device)
            path.write_text(json.dumps({**measured, "scale": 1 / measured["latent_std"]}))
        return float(json.loads(path.read_text())["scale"])

    def pool_of(self, stage: str) -> unet_stage.Pool:
        """What a stage of the UNet trains on; made by one process before several share it."""
        count: int = self.options.pictures
        if stage == "full-length":
            latest = self._latest(*UNET_STAGES[1:])
            few = min(count, self.options.full_length_pictures)
            return self.pool(32 if latest == "small" else 64, 77, few)
        return self.pool(32 if stage == "small" else 64, text_stage.TRAINED_LENGTH, count)

    def pool(self, size: int, length: int, count: int) -> unet_stage.Pool:
        latents = unet_stage.make_latents(
            self.state,
            f"latents-{size}",
            self.font,
            self.vocabulary,
            self.trained_vae(),
            count=count,
            size=size,
            scale=self.scale,
            seed=POOL_SEED,
        )
        features = unet_stage.make_features(
            self.state,
            f"features-{length}",
            self.vocabulary,
            self.trained_text(),
            self.tokenizer,
            count=count,
            length=length,
            seed=POOL_SEED,
        )
        return unet_stage.Pool(
            latents=latents,
            caption_of=features["caption_of"],
            features=features["features"],
            empty=features["empty"],
        )

    def small(self) -> UNet2DConditionModel:
        options = self.options
        return unet_stage.train(
            self.state,
            "small",
            self.pool_of("small"),
            unet_stage.network(sample_size=8),
            total=options.small_steps,
            batch=options.batch,
            rate=partial(cosine, total=options.small_steps, peak=options.peak, warmup=200),
            device=self.device,
        )

    def _from(self, stage: str, sample_size: int | None = None) -> UNet2DConditionModel:
        stored = self._stored(stage)
        size = sample_size or int(stored.get("sample_size", 8 if stage == "small" else 16))
        unet = unet_stage.network(sample_size=size)
        unet.load_state_dict(stored["average"])
        return unet

    def whole(self) -> UNet2DConditionModel:
        options = self.options
        begun = Stage(self.state, "small").load() is not None
        return unet_stage.train(
            self.state,
            "whole",
            self.pool_of("whole"),
            self._from("small", sample_size=16) if begun else unet_stage.network(),
            total=options.whole_steps,
            batch=options.batch,
            rate=partial(cosine, total=options.whole_steps, peak=options.peak, warmup=200),
            device=self.device,
        )

    def _mixer(self, scenes: list[Scene], length: int) -> unet_stage.PairMixer:
        encoder = self.trained_text()

        def encode_texts(texts: list[str]) -> torch.Tensor:
            with torch.no_grad():
                return text_stage.encode(encoder, self.tokenizer, texts, length).cpu()

        return unet_stage.PairMixer(self.vocabulary, scenes, encode_texts)

    def pairs(self) -> UNet2DConditionModel:
        """Goes on with pairs in most rows: they are learnt last, and singles stay."""
        options, pool = self.options, self.pool_of("pairs")
        scenes = unet_stage.scenes_of(self.vocabulary, POOL_SEED, len(pool.latents))
        weights = unet_stage.weights_of_kinds(scenes, pair=PAIRS_SHARE, style=STYLE_SHARE)
        return unet_stage.train(
            self.state,
            "pairs",
            replace(pool, weights=weights, mixer=self._mixer(scenes, text_stage.TRAINED_LENGTH)),
            self._from("whole"),
            total=options.pairs_steps,
            batch=options.batch,
            rate=partial(cosine, total=options.pairs_steps, peak=0.7 * options.peak, warmup=50),
            device=self.device,
        )

    def full_length(self) -> UNet2DConditionModel:
        """A short finish on all 77 positions, as every pipeline feeds them."""
        options = self.options
        unet = self._from(self._latest(*UNET_STAGES[1:]))
        return unet_stage.train(
            self.state,
            "full-length",
            self.pool_of("full-length"),
            unet,
            total=options.full_length_steps,
            batch=options.batch,
            rate=partial(cosine, total=options.full_length_steps, peak=2e-4, warmup=20),
            device=self.device,
            decay=0.99,
        )

    def balance(self) -> None:
        """Rounds: sample the professions, and move their embeddings against what is off."""
        options, rounds = self.options, Rounds(self.state / "balance.json", self.vocabulary)
        encoder, judge = self.trained_text(), self.trained_judge()
        unet = self._from(self._latest(*UNET_STAGES)).to(self.device).eval()
        drawer = balance.models(self.tokenizer, encoder, unet, self.trained_vae(), self.scale)
        directions = self._directions(encoder, rounds)
        while len(rounds) < options.balance_rounds:
            shifts = rounds.shifts()
            drawer.text_encoder = balance.shifted(encoder, directions, shifts)
            men = balance.men_among(
                drawer, judge, self.vocabulary, rounds.names, rounds.seen, options.balance_samples
            )
            rounds.add(shifts, men, options.balance_samples)

    def balanced_text(self) -> CLIPTextModel:
        """The trained encoder with the professions' embeddings where the rounds of `balance` put them."""
        encoder, rounds = self.trained_text(), Rounds(self.state / "balance.json", self.vocabulary)
        return balance.shifted(encoder, self._directions(encoder, rounds), rounds.shifts())

    def _directions(self, encoder: CLIPTextModel, rounds: Rounds) -> list[Direction]:
        """Worked out once: rounds belong together only along the same directions."""
        stage = Stage(self.state, "directions")
        stored = stage.load()
        team.wait()  # nobody writes before all have read
        if stored is None:
            stored = self._new_directions(encoder, rounds.names)
            if team.rank() == 0:
                stage.save(stored, force=True)
        rows, changes = stored["rows"].tolist(), stored["changes"].to(self.device)
        return [Direction(row=row, change=change) for row, change in zip(rows, changes, strict=True)]

    def _new_directions(self, encoder: CLIPTextModel, names: list[str]) -> dict[str, torch.Tensor]:
        width = encoder.config.hidden_size
        rows, changes = torch.zeros(len(names), dtype=torch.int64), torch.zeros(len(names), width)
        for number in range(team.rank(), len(names), team.size()):
            found = balance.direction_of(encoder, self.tokenizer, self.vocabulary, names[number])
            rows[number], changes[number] = found.row, found.change.cpu()
        team.add_up(rows)
        team.add_up(changes)
        return {"rows": rows, "changes": changes}

    def _latest(self, *stages: str) -> str:
        return next(stage for stage in stages if Stage(self.state, stage).load() is not None)

    def export(self) -> None:
        out: Path = self.options.out
        judge = self.trained_judge()
        (out / "pocket-sd" / "measured.json").unlink(missing_ok=True)  # figures belong to the weights before
        measured = judge_stage.measure(judge, self.font, self.vocabulary, 8000, self.device)
        judge_stage.save(judge, self.vocabulary, measured, out / "pocket-judge")
        save_checkpoint(
            out / "pocket-sd",
            self.vocabulary,
            self.tokenizer,
            self.merges,
            self.balanced_text(),
            self.trained_vae(),
            self._from(self._latest(*UNET_STAGES)),
            self.scale,
        )

    def measure(self) -> None:
        """Samples the exported checkpoint; figures already in measured.json are not taken again."""
        from measure import Measurement

        out: Path = self.options.out
        results = out / "pocket-sd" / "measured.json"
        taken = Measurement(out / "pocket-sd", out / "pocket-judge", self.vocabulary, results)
        samples = self.options.samples
        taken.concepts(samples)
        taken.styles(20 * samples)
        taken.backgrounds(20 * samples)
        taken.pairs(samples)
        taken.aliases()
        taken.qualified(2 * samples)
        taken.biases(self.options.bias_samples)

    def card(self) -> None:
        """Writes the model card from measured.json and from the state's step counts."""
        import card

        names = ("judge", "vae", "text", *reversed(UNET_STAGES), "decoder")
        steps = {name: int(state["step"]) for name in names if (state := Stage(self.state, name).load())}
        before = steps_before(self.state)
        steps = {name: n for name in names if (n := steps.get(name, 0) + before.get(name, 0))}
        measured = vae_stage.measure(self.trained_vae(), self.font, self.vocabulary, self.device)
        balanced = Rounds(self.state / "balance.json", self.vocabulary).seen
        card.write(
            self.options.out, self.vocabulary, self.font, steps, measured["mean_absolute_error"], balanced
        )
