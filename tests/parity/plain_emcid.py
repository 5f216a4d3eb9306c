"""EMCID written down plainly, as an oracle: one concept at a time, full passes with hooks, LU, nothing kept.

It follows sections 1 and 2 of the study (what the published code does) in the most literal way. Random
numbers are drawn from the same generators in the same order as the method draws them, so that results can
be compared.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from surgery.anatomy import fill, locate, reading, reading_inputs, replacing
from surgery.diffusion import decode, derived_seed, generator_for, sample_latents
from surgery.methods.emcid import OBJECT_TEMPLATES, ConceptEdit, OffsetSettings, UpdateSettings

Ask = Callable[[], tuple[Tensor, Tensor, Tensor]]
"""Gives the noisy latents, the timesteps and the noise of the next step."""


class Plain:
    """The models and prompts of one concept."""

    def __init__(self, models: Any, edit: ConceptEdit, layer: int, context: int | None) -> None:
        self.models, self.edit, self.layer = models, edit, layer
        self.spans = [locate(models.tokenizer, template, edit.source) for template in edit.templates]
        self.source = self._tokens(edit.source, context)
        self.goal = self._tokens(edit.destination or "", context)
        self.source_eos = torch.tensor([len(span.ids) - 1 for span in self.spans])
        self.goal_eos = self._ends(edit.destination or "")
        self.masked = context is None

    def _tokens(self, phrase: str, context: int | None) -> Any:
        """Padded to the longest prompt of the concept, or to the whole context."""
        texts = [fill(template, phrase) for template in self.edit.templates]
        padding: Any = (
            {"padding": True} if context is None else {"padding": "max_length", "max_length": context}
        )
        return self.models.tokenizer(texts, return_tensors="pt", **padding)

    def _ends(self, phrase: str) -> Tensor:
        texts = [fill(template, phrase) for template in self.edit.templates]
        return torch.tensor([len(self.models.tokenizer(text).input_ids) - 1 for text in texts])

    def encode(self, tokens: Any) -> Tensor:
        mask = tokens.attention_mask if self.masked else None
        features: Tensor = self.models.text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state
        return features

    def student(self, delta: Tensor) -> Tensor:
        """Features of the source prompts with delta added behind the block, at each prompt's subject."""

        def insert(stream: Tensor) -> Tensor:
            stream = stream.clone()
            for row, span in enumerate(self.spans):
                stream[row, span.last] = stream[row, span.last] + delta
            return stream

        with replacing(self.models.text_encoder.encoder.layers[self.layer], insert):
            return self.encode(self.source)

    def source_vector(self) -> Tensor:
        with torch.no_grad(), reading({"block": self.models.text_encoder.encoder.layers[self.layer]}) as seen:
            self.encode(self.source)
        return seen["block"][0, self.spans[0].last]

    def losses(
        self, delta: Tensor, question: tuple[Tensor, Tensor, Tensor] | None, text_weight: float
    ) -> Tensor:
        """L_noise + w L_text, without the penalty; no question leaves the noise out."""
        rows = torch.arange(len(self.spans))
        with torch.no_grad():
            goal = self.encode(self.goal)
        source = self.student(delta)
        pooled = source[rows, self.source_eos] - goal[rows, self.goal_eos]
        loss = text_weight * (pooled**2).mean()
        if question is not None:
            noisy, timesteps, _ = question
            with torch.no_grad():
                teacher = self.predict(noisy, timesteps, goal)
            loss = loss + ((self.predict(noisy, timesteps, source) - teacher) ** 2).mean()
        return loss

    def predict(self, noisy: Tensor, timesteps: Tensor, features: Tensor) -> Tensor:
        """The U-Net's answer in float32, whatever it computes in."""
        unet = self.models.unet
        noisy, features = noisy.to(unet.dtype), features.to(unet.dtype)
        return torch.as_tensor(unet(noisy, timesteps, encoder_hidden_states=features).sample.float())

    def token_loss(self, delta: Tensor, metric: Tensor, text_weight: float) -> Tensor:
        """w L_text as cross-attention reads it: half the subject, half the mean of all tokens behind it."""
        with torch.no_grad():
            goal = self.encode(self.goal)
        source, total = self.student(delta), torch.zeros(())
        for row, (template, span) in enumerate(zip(self.edit.templates, self.spans, strict=True)):
            destination = self.edit.destination
            there = span.start - 1
            if destination:
                there = locate(self.models.tokenizer, template, destination).last
            squares = []
            for step in range(min(source.shape[1] - span.last, goal.shape[1] - there)):
                apart = source[row, span.last + step] - goal[row, there + step]
                squares.append((apart @ metric @ apart) / len(apart))
            behind = torch.stack(squares[1:]).mean()
            total = total + ((squares[0] + behind) / 2 if destination else behind)
        return text_weight * total / len(self.spans)


def as_released(models: Any, plain: Plain, settings: OffsetSettings) -> Ask:
    """The released questions: source pictures decoded, mirrored once, encoded again at every step."""
    edit, rows = plain.edit, range(len(plain.edit.templates))
    latents = sample_latents(
        models,
        [template.replace("{}", edit.source) for template in edit.templates],
        [derived_seed(edit.seed, "picture", row) for row in rows],
        steps=settings.sampling_steps,
        guidance=settings.guidance,
    )
    pixels = torch.from_numpy(decode(models.vae, latents)).permute(0, 3, 1, 2).float() / 127.5 - 1
    for row in rows:
        if torch.rand((), generator=generator_for(edit.seed, "flip", row)) < 0.5:
            pixels[row] = pixels[row].flip(-1)
    generator = generator_for(edit.seed, "steps")
    kept = models.scheduler.alphas_cumprod

    def ask() -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            posterior = models.vae.encode(pixels.to(models.vae.dtype)).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        noisy, times, noises = [], [], []
        for row in rows:
            jitter = torch.randn(latents.shape[1:], generator=generator)
            noise = torch.randn(latents.shape[1:], generator=generator)
            time = torch.randint(0, 1000, (), generator=generator)
            clean = (mean[row] + deviation[row] * jitter) * models.vae.config.scaling_factor
            noisy.append(kept[time].sqrt() * clean + (1 - kept[time]).sqrt() * noise)
            times.append(time)
            noises.append(noise)
        return torch.stack(noisy), torch.stack(times), torch.stack(noises)

    return ask


def plain_offset(
    plain: Plain,
    ask: Ask | None,
    *,
    steps: int,
    rate: float = 0.2,
    text_weight: float = 0.01,
    penalty: float = 5e-4,
    clamp: float = 1.5,
) -> Tensor:
    """Stage I for one concept, as released."""
    source = plain.source_vector()
    delta = torch.zeros_like(source, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=rate)
    for _ in range(steps):
        loss = plain.losses(delta, None if ask is None else ask(), text_weight)
        loss = loss + penalty * delta.norm() / source.norm() ** 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            if delta.norm() > clamp * source.norm():
                delta.mul_(clamp * source.norm() / delta.norm())
    return delta.detach()


def plain_update(
    encoder: Any,
    tokenizer: Any,
    edits: Sequence[ConceptEdit],
    wanted: Sequence[Tensor],
    moments: dict[int, Tensor],
    settings: UpdateSettings,
    preserve: Sequence[str] = (),
) -> dict[int, Tensor]:
    """Stage II for v* of each prompt: full passes for each layer of each sweep, an inverse in float64.

    ``wanted`` has (prompts, width) for each concept; ``preserve`` are whole phrases, in all object templates.
    """
    encoder = copy.deepcopy(encoder)
    layers = sorted(moments)
    changes = {layer: torch.zeros(0) for layer in layers}
    for _ in range(settings.sweeps):
        for index, layer in enumerate(layers):
            block, last = encoder.encoder.layers[layer], encoder.encoder.layers[layers[-1]]
            keys = prompt_values(encoder, tokenizer, edits, block.mlp.fc2, reading_inputs)
            module = block.mlp.fc2 if settings.residual == "mlp" else last
            current = prompt_values(encoder, tokenizer, edits, module, reading)
            missing = [
                (one - other) / (len(layers) - index) for one, other in zip(wanted, current, strict=True)
            ]
            columns = []  # key, residual and weight of each column
            for edit, key, rest in zip(edits, keys, missing, strict=True):
                if settings.keys == "mean":
                    columns.append((key.mean(0), rest.mean(0), settings.alpha * edit.weight))
                else:
                    share = settings.alpha * edit.weight / len(key)
                    columns += [(one, other, share) for one, other in zip(key, rest, strict=True)]
            system = (1 - settings.alpha) * settings.ridge * moments[layer]
            for key in kept_keys(encoder, tokenizer, preserve, block.mlp.fc2):
                system = system + settings.preserve_weight * torch.outer(key.double(), key.double())
            right = torch.zeros(len(columns[0][1]), len(columns[0][0]), dtype=torch.float64)
            for key, rest, weight in columns:
                system = system + weight * torch.outer(key.double(), key.double())
                right = right + weight * torch.outer(rest.double(), key.double())
            free = torch.eye(len(system), dtype=torch.float64)
            if settings.null_space_threshold is not None:
                values, vectors = torch.linalg.eigh(moments[layer])
                free = vectors[:, values < settings.null_space_threshold * values.mean()]
            change = right @ free @ torch.linalg.inv(free.T @ system @ free) @ free.T
            with torch.no_grad():
                block.mlp.fc2.weight += change.float()
            changes[layer] = change if len(changes[layer]) == 0 else changes[layer] + change
    return changes


def kept_keys(encoder: Any, tokenizer: Any, preserve: Sequence[str], module: Any) -> list[Tensor]:
    """What a module reads at every token that the phrases can reach: from their first to the prompt's end."""
    keys = []
    for phrase in preserve:
        for template in OBJECT_TEMPLATES:
            span = locate(tokenizer, template, phrase)
            with torch.no_grad(), reading_inputs({"site": module}) as seen:
                encoder(torch.tensor([span.ids]))
            keys += list(seen["site"][0, span.start :])
    return keys


def prompt_values(
    encoder: Any, tokenizer: Any, edits: Sequence[ConceptEdit], module: Any, tap: Any
) -> list[Tensor]:
    """What a module reads or gives at the subject of each concept's prompts: (prompts, width) for each."""
    found = []
    for edit in edits:
        texts = [fill(template, edit.source) for template in edit.templates]
        tokens = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad(), tap({"site": module}) as seen:
            encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        places = [locate(tokenizer, template, edit.source).last for template in edit.templates]
        found.append(torch.stack([seen["site"][row, place] for row, place in enumerate(places)]))
    return found
