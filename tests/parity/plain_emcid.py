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
from surgery.methods.emcid import ConceptEdit

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
                teacher = self.models.unet(noisy, timesteps, encoder_hidden_states=goal).sample
            student = self.models.unet(noisy, timesteps, encoder_hidden_states=source).sample
            loss = loss + ((student - teacher) ** 2).mean()
        return loss


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
    wanted: Tensor,
    moments: dict[int, Tensor],
    *,
    ridge: float,
    alpha: float,
    residual: str,
) -> dict[int, Tensor]:
    """Stage II for v* in ``wanted``: two full passes over all prompts for each layer, LU in float64."""
    encoder = copy.deepcopy(encoder)
    layers = sorted(moments)
    changes = {}
    for index, layer in enumerate(layers):
        block = encoder.encoder.layers[layer]
        keys = concept_means(encoder, tokenizer, edits, block.mlp.fc2, reading_inputs)
        if residual == "mlp":
            current = concept_means(encoder, tokenizer, edits, block.mlp.fc2, reading)
        else:
            current = concept_means(encoder, tokenizer, edits, encoder.encoder.layers[layers[-1]], reading)
        missing = ((wanted - current) / (len(layers) - index)).double()
        scale = (alpha / 0.5) ** 0.5
        k, r = keys.double().T * scale, missing.T * scale
        system = ridge * moments[layer] * (1 - alpha) / 0.5 + k @ k.T
        change = r @ torch.linalg.solve(system, k).T
        with torch.no_grad():
            block.mlp.fc2.weight += change.float()
        changes[layer] = change
    return changes


def concept_means(
    encoder: Any, tokenizer: Any, edits: Sequence[ConceptEdit], module: Any, tap: Any
) -> Tensor:
    """The mean over each concept's prompts of what a module reads or gives at the subject."""
    means = []
    for edit in edits:
        texts = [fill(template, edit.source) for template in edit.templates]
        tokens = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad(), tap({"site": module}) as seen:
            encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        places = [locate(tokenizer, template, edit.source).last for template in edit.templates]
        means.append(torch.stack([seen["site"][row, place] for row, place in enumerate(places)]).mean(0))
    return torch.stack(means)
