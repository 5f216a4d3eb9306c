"""Key statistics: the second moment of every layer's ``fc2`` inputs over a corpus of captions."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery import progress
from surgery.anatomy import (
    TextStack,
    Tokenizer,
    after_attention,
    frozen,
    mlp_keys,
    text_stack,
    weights_digest,
)
from surgery.errors import MethodError, raise_all
from surgery.methods.emcid.corpus import Corpus, Ids, survey
from surgery.methods.emcid.nouns import warning
from surgery.methods.emcid.settings import CorpusSettings
from surgery.numerics import MomentSum, pack, shrink, unpack
from surgery.record import JSON, Finding
from surgery.store import Store

_log = logging.getLogger(__name__)

# Enough tokens to fill a device, few enough for the keys of one pass to fit beside the model.
_TOKENS_PER_BATCH = 3072
# Fewer tokens than this many times the width leave directions that no caption ever used.
_TOKENS_PER_DIRECTION = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatistics:
    """E[k kᵀ] of each layer as a packed float32 triangle, with what it was collected from.

    ``word_count`` is the tokens without padding: that of one caption is nearly the same everywhere.

    Sums are packed before anything reads them, so that fresh and stored statistics are the same numbers.
    """

    moments: Mapping[int, Float[Tensor, "triangle"]]
    token_count: int
    word_count: int
    caption_count: int
    encoder_digest: str
    corpus_digest: str
    includes_bos: bool = True
    includes_padding: bool = True
    word_weight: float = 1.0
    shrinkage: float = 0.0

    def moment(self, layer: int) -> Float[Tensor, "d_in d_in"]:
        """The second moment of one layer in float64, shrunk as asked."""
        return shrink(unpack(self.moments[layer]), self.shrinkage)

    def check(self, stack: TextStack, encoder_digest: str, layers: Sequence[int]) -> None:
        """Refuse statistics of another encoder, of other layers, or of another width.

        Raises:
            MethodError: with all that does not fit.
        """
        faults = []
        if self.encoder_digest != encoder_digest:
            faults.append(
                f"the key statistics belong to the text encoder {self.encoder_digest[:12]}; this one is "
                f"{encoder_digest[:12]}. Collect them again for this checkpoint."
            )
        missing = [layer for layer in layers if layer not in self.moments]
        if missing:
            faults.append(
                f"the key statistics have layers {sorted(self.moments)}; layers {missing} are edited too. "
                "Collect them for all edited layers."
            )
        size = stack.mlp_width * (stack.mlp_width + 1) // 2
        wrong = [layer for layer, packed in self.moments.items() if len(packed) != size]
        if wrong:
            faults.append(
                f"the key statistics of layers {wrong} are not of width {stack.mlp_width}. "
                "Collect them again for this checkpoint."
            )
        raise_all(MethodError, faults)

    def findings(self, width: int) -> tuple[Finding, ...]:
        """A warning when there are too few tokens for a matrix of this width."""
        if self.word_count >= _TOKENS_PER_DIRECTION * width:
            return ()
        message = (
            f"{self.word_count} tokens without padding for a second moment of width {width}; expected "
            f"{_TOKENS_PER_DIRECTION * width} or more. Give more captions, or set corpus.shrinkage."
        )
        return (warning("few-tokens", "key statistics", message),)


def collect_statistics(
    encoder: nn.Module,
    tokenizer: Tokenizer,
    captions: Iterable[str],
    layers: Sequence[int],
    settings: CorpusSettings | None = None,
    *,
    without: Collection[Ids] = (),
    store: Store | None = None,
    digest: str | None = None,
) -> KeyStatistics:
    """The key statistics of several layers from one pass over the captions.

    Captions are read and sorted by length in chunks of some thousand: memory does not grow with them, and
    their order inside of a chunk does not matter. A token counts once for each time it occurs, the begin
    token and the padding by ``settings``. Layers that the store knows are not computed again, and of a large
    corpus a killed run loses one chunk.

    Args:
        encoder: A CLIP text encoder in float32.
        tokenizer: Its tokenizer.
        captions: Ordinary prompts, whose behaviour is to be kept: a list, or a ``CaptionFile`` of any size.
        layers: Text blocks.
        settings: Which tokens count; all 77 of each caption when left out.
        without: Phrases as tokens, where captions that hold one are passed over.
        store: Where results are kept.
        digest: The encoder's ``weights_digest``, where the caller has it.

    Raises:
        MethodError: when there are no captions.

    Source: 2.4 of the study (100,000 captions, one pass for each layer); here one pass serves all.
    """
    settings = settings or CorpusSettings()
    stack = text_stack(encoder)
    corpus = survey(tokenizer, captions, stack.positions, settings.count, without)
    digest = digest or weights_digest(encoder)
    common = _meaning(digest, corpus.digest, settings, tokenizer.pad_token_id, encoder)
    keys = {layer: {**common, "layer": layer} for layer in layers}
    moments = {} if store is None else _known(store, keys)
    missing = [layer for layer in layers if layer not in moments]
    count = _token_count(corpus, settings, stack.positions)
    if missing:
        resumed = None if store is None else _Resumed(store=store, meaning={**common, "layers": missing})
        for layer, total in _collect(encoder, corpus, missing, settings, resumed).items():
            moments[layer] = pack(total.mean())
            if store is not None:
                store.put(store.key(keys[layer]), {"moment": moments[layer]}, {"tokens": count})
        if resumed is not None:
            resumed.forget()
    _log.info("key statistics: %d tokens in %d captions, %d layers", count, corpus.caption_count, len(layers))
    return KeyStatistics(
        moments=moments,
        token_count=count,
        word_count=corpus.word_count - (0 if settings.include_bos else corpus.caption_count),
        caption_count=corpus.caption_count,
        encoder_digest=digest,
        corpus_digest=corpus.digest,
        includes_bos=settings.include_bos,
        includes_padding=settings.include_padding,
        word_weight=settings.word_weight,
        shrinkage=settings.shrinkage,
    )


def _meaning(
    encoder_digest: str, corpus_digest: str, settings: CorpusSettings, pad: int, encoder: nn.Module
) -> dict[str, JSON]:
    return {
        "result": "emcid/key-statistics",
        "version": 1,
        "encoder": encoder_digest,
        "corpus": corpus_digest,
        "include_bos": settings.include_bos,
        "padding": pad if settings.include_padding else None,
        "word_weight": settings.word_weight,
        "tokens_per_batch": _TOKENS_PER_BATCH,
        "device": text_stack(encoder).device.type,
        "threads": torch.get_num_threads(),
    }


def _known(store: Store, keys: Mapping[int, Mapping[str, JSON]]) -> dict[int, Tensor]:
    found = {layer: store.get(store.key(meaning)) for layer, meaning in keys.items()}
    return {layer: result.tensors()["moment"] for layer, result in found.items() if result is not None}


def _token_count(corpus: Corpus, settings: CorpusSettings, positions: int) -> int:
    total = corpus.caption_count * positions if settings.include_padding else corpus.word_count
    return total if settings.include_bos else total - corpus.caption_count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resumed:
    """The sums over the chunks of a large corpus that were counted so far, for a run that is killed."""

    store: Store
    meaning: Mapping[str, JSON]

    @property
    def _key(self) -> str:
        return self.store.key({**self.meaning, "result": "emcid/key-statistics so far"})

    def take(self, sums: Mapping[int, MomentSum]) -> int:
        """Bring the sums to where they were; the number of chunks that they hold."""
        found = self.store.get(self._key)
        if found is None or not found.data["chunks"]:
            return 0
        tensors = found.tensors()
        for layer, total in sums.items():
            total.total, total.weight = tensors[str(layer)], float(found.data["tokens"])
        return int(found.data["chunks"])

    def keep(self, sums: Mapping[int, MomentSum], chunks: int) -> None:
        """Remember the sums over so many chunks."""
        tokens = next(iter(sums.values())).weight
        tensors = {str(layer): total.total for layer, total in sums.items()}
        self.store.put(self._key, tensors, {"chunks": chunks, "tokens": tokens})

    def forget(self) -> None:
        """Free the place of sums that are not needed any more."""
        if self.store.get(self._key) is not None:
            self.store.put(self._key, {}, {"chunks": 0, "tokens": 0.0})


@torch.no_grad()
def _collect(
    encoder: nn.Module,
    corpus: Corpus,
    layers: Sequence[int],
    settings: CorpusSettings,
    resumed: _Resumed | None,
) -> dict[int, MomentSum]:
    stack = text_stack(encoder)
    sums = {layer: MomentSum(stack.mlp_width) for layer in layers}
    length = stack.positions if settings.include_padding else None
    done = 0 if resumed is None or corpus.only is not None else resumed.take(sums)
    with frozen(encoder), progress.bar(corpus.caption_count, "key statistics", "caption") as bar:
        for number, chunk in enumerate(corpus.chunks(), start=1):
            for batch in _batches(chunk, length) if number > done else ():
                tokens, weights = _padded(batch, settings, length, corpus.tokenizer.pad_token_id)
                _count(stack, tokens.to(stack.device), weights.to(stack.device), sums)
                bar.update(len(batch))
            if number <= done:
                bar.update(len(chunk))
            elif resumed is not None and corpus.only is None:
                resumed.keep(sums, number)
    return sums


def _batches(ids: Sequence[Ids], length: int | None) -> Iterator[list[Ids]]:
    batch: list[Ids] = []
    for one in ids:  # ascending lengths: the newest is the longest
        if batch and (len(batch) + 1) * (length or len(one)) > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(one)
    yield batch


def _padded(
    batch: list[Ids], settings: CorpusSettings, length: int | None, pad: int
) -> tuple[Tensor, Tensor]:
    """The tokens of some captions, and the weight of each; 0 for those that do not count."""
    width = length or len(batch[-1])
    tokens = torch.tensor([[*one, *[pad] * (width - len(one))] for one in batch])
    lengths = torch.tensor([len(one) for one in batch])
    words = torch.arange(width)[None] < lengths[:, None]
    weights = torch.where(words, settings.word_weight, 0.0 if length is None else 1.0)
    if not settings.include_bos:
        weights[:, 0] = 0.0
    return tokens, weights


def _count(stack: TextStack, tokens: Tensor, weights: Tensor, sums: Mapping[int, MomentSum]) -> None:
    counted = weights > 0
    # padding on the right is never read by the tokens before it, so no mask is needed
    stream = stack.embed(tokens)
    for layer, block in enumerate(stack.blocks[: max(sums) + 1]):
        middle = after_attention(block, stream)
        keys = mlp_keys(block, middle)
        if layer in sums:
            sums[layer].add(keys[counted], weights[counted])
        stream = middle + block.mlp.fc2(keys)
