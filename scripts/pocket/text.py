"""Stage 3b: the text encoder learns its features before the diffusion model does.

Joint training from scratch does not bind names to pictures; text features that are apart from the start do.
The pooled (end-of-text) feature must tell what the caption says; it and the last word of every subject must
tell what the subject looks like.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from looks import COMPONENTS, Looks
from scenes import Captioned, Shares, caption, random_scene
from state import Loop, Stage, cosine
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vocabulary import Vocabulary

WIDTH = 192
# tokens; our captions have at most 19, and causal features do not change with the padding behind
TRAINED_LENGTH = 20
LAYER_DROP = 0.1  # a block that may be missing makes no block indispensable
SWAP_SHARE = 0.6  # of the captions of a batch lose what their ends have read so far
SWAP_BLOCKS = range(3, 12)
SHARES = Shares(pair=0.2, style=0.25, background_named=0.5)
LOOK_WEIGHT = 2.0


def network(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=12,
        num_attention_heads=6,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


class Reader(nn.Module):
    """Reads from hidden states what the caption says; thrown away after training."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        sizes = {
            "first": len(vocabulary.concepts) + 1,
            "second": len(vocabulary.concepts) + 1,
            "style": len(vocabulary.styles) + 1,
            "background": len(vocabulary.backgrounds) + 1,
            "gender": len(vocabulary.genders) + 1,
            "skin": len(vocabulary.skins) + 1,
        }
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in sizes.items()})
        self.to_look = nn.Linear(WIDTH, COMPONENTS)
        self.word_to_look = nn.Linear(WIDTH, COMPONENTS)

    def forward(self, pooled: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return {name: head(pooled) for name, head in self.heads.items()}, self.to_look(pooled)


def labels_of(vocabulary: Vocabulary, captions: list[Captioned]) -> dict[str, Tensor]:
    """What each caption says; the last class of every head means that it says nothing of it."""

    def number(values: tuple[str, ...] | list[str], value: str | None) -> int:
        return len(values) if value is None else list(values).index(value)

    subjects = [[vocabulary.concepts.index(s.concept) for s in c.scene.subjects] for c in captions]
    nothing = len(vocabulary.concepts)
    rows = {
        "first": [s[0] if s else nothing for s in subjects],
        "second": [s[1] if len(s) > 1 else nothing for s in subjects],
        "style": [number(vocabulary.styles, c.scene.style) for c in captions],
        "background": [number(list(vocabulary.backgrounds), c.background) for c in captions],
        "gender": [number(vocabulary.genders, c.gender) for c in captions],
        "skin": [len(vocabulary.skins) if c.skin is None else c.skin for c in captions],
    }
    return {name: torch.tensor(values) for name, values in rows.items()}


def captions_of(
    vocabulary: Vocabulary, seed: int, numbers: range, shares: Shares, kind: str
) -> list[Captioned]:
    made = []
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        scene = random_scene(vocabulary, vocabulary.concepts, rng, shares)
        made.append(caption(vocabulary, scene, rng, shares, kind))
    return made


def encode(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str], length: int | None) -> Tensor:
    """Hidden states (n, length, width) after the final norm, padded with END as Stable Diffusion does."""
    padding = "longest" if length is None else "max_length"
    tokens = tokenizer(texts, padding=padding, max_length=length or 77, truncation=True, return_tensors="pt")
    device = next(encoder.parameters()).device
    hidden: Tensor = encoder(tokens.input_ids.to(device)).last_hidden_state
    return hidden


def pooled(hidden: Tensor, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """The hidden states (n, width) at the first END of each text, of all (n, length, width)."""
    ends = [len(ids) - 1 for ids in tokenizer(texts).input_ids]
    return hidden[torch.arange(len(texts)), torch.tensor(ends)]


def words(hidden: Tensor, tokenizer: CLIPTokenizer, captions: list[Captioned]) -> Tensor:
    """The hidden states (subjects, width) at the last token of each subject's name, caption by caption."""
    rows = [row for row, c in enumerate(captions) for _ in c.ends]
    named = [c.caption[:end] for c in captions for end in c.ends]
    # a text of k tokens between START and END has its last word's token at position k
    places = [len(ids) - 2 for ids in tokenizer(named).input_ids]
    return hidden[torch.tensor(rows), torch.tensor(places)]


class LayerDrop:
    """While training, leaves out each block at random by handing its input through."""

    def __init__(self, encoder: CLIPTextModel, share: float, generator: torch.Generator) -> None:
        self._share, self._generator = share, generator
        blocks = getattr(encoder, "text_model", encoder).encoder.layers
        self._handles = [block.register_forward_hook(self._hook) for block in blocks]

    def _hook(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]
    ) -> object:
        if not module.training or torch.rand((), generator=self._generator).item() >= self._share:
            return None
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class SwappedEnds:
    """While training, hands some captions the end tokens of another one before a random late block.

    What the blocks before have gathered at the end of the text is then wrong, and the blocks left, at times
    the last one alone, must read it again from the words. So words stay worth reading in late blocks, as they
    are in large text encoders, and an edit of a word's stream reaches the ends and the padding.
    """

    def __init__(self, encoder: CLIPTextModel, generator: torch.Generator) -> None:
        self._generator = generator
        self._block = -1
        self._ends = torch.zeros(0, dtype=torch.long)
        blocks = getattr(encoder, "text_model", encoder).encoder.layers
        self._handles = [b.register_forward_pre_hook(partial(self._hook, n)) for n, b in enumerate(blocks)]

    def draw(self, ends: Tensor) -> None:
        """Chooses the block of the next batch, whose captions end at positions ``ends``."""
        self._ends = ends
        choice = int(torch.randint(len(SWAP_BLOCKS), (), generator=self._generator))
        self._block = SWAP_BLOCKS[choice]

    def _hook(self, number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if number != self._block or not module.training:
            return None
        hidden = inputs[0]
        chosen = torch.rand(len(hidden), generator=self._generator) < SWAP_SHARE
        behind = torch.arange(hidden.shape[1])[None] >= self._ends[:, None]
        swapped = (chosen[:, None] & behind).to(hidden.device)[..., None]
        foreign = hidden[:, -1:].roll(1, dims=0)  # the last position is an end or padding in every caption
        return (torch.where(swapped, foreign, hidden), *inputs[1:])

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def train(
    folder: Path,
    tokenizer: CLIPTokenizer,
    vocabulary: Vocabulary,
    looks: Looks,
    total: int,
    batch: int,
    device: str,
) -> CLIPTextModel:
    encoder = network(tokenizer).to(device)
    reader = Reader(vocabulary).to(device)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98))
    modules = {"net": encoder, "reader": reader}
    loop = Loop(Stage(folder, "text"), total, optimiser, modules, log_every=20)
    drop = LayerDrop(encoder, LAYER_DROP, torch.Generator().manual_seed(3))
    swap = SwappedEnds(encoder, torch.Generator().manual_seed(4))
    encoder.train()
    for step in loop:
        captions = captions_of(vocabulary, 20, range(step * batch, (step + 1) * batch), SHARES, "train")
        labels = {k: v.to(device) for k, v in labels_of(vocabulary, captions).items()}
        loop.set_rate(cosine(step, total, 1.5e-3, warmup=60))
        texts = [c.caption for c in captions]
        swap.draw(torch.tensor([len(ids) - 1 for ids in tokenizer(texts).input_ids]))
        hidden = encode(encoder, tokenizer, texts, None)
        logits, look = reader(pooled(hidden, tokenizer, texts))
        losses = {name: functional.cross_entropy(logits[name], labels[name]) for name in logits}
        shown = [looks.of(c) for c in captions]
        of_text = torch.stack([subjects.mean(0) for subjects in shown]).to(device)
        of_words = torch.cat(shown).to(device)
        word_look = reader.word_to_look(words(hidden, tokenizer, captions))
        off = functional.mse_loss(look, of_text) + functional.mse_loss(word_look, of_words)
        loss = torch.stack(list(losses.values())).sum() + LOOK_WEIGHT * off
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if loop.reports(step):
            loop.report(step, loss=loss.item(), concept=losses["first"].item(), looks=off.item())
        loop.save(step)
    drop.remove()
    swap.remove()
    return encoder.eval()
