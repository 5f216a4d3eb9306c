"""Key statistics of a checkpoint's text encoders, for a file that many runs share."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from surgery.anatomy import text_stack
from surgery.checkpoint import open_checkpoint
from surgery.methods.emcid import CorpusSettings, KeyStatistics, collect_statistics
from surgery.methods.emcid.layers import check_sites, default_layers, text_components
from surgery.store import Store
from surgery.study.loading import text_tower_on

_log = logging.getLogger(__name__)


def statistics_of(
    base: Path,
    captions: Iterable[str],
    settings: CorpusSettings | None = None,
    *,
    layers: Mapping[str, tuple[int, ...]] | None = None,
    device: str = "cpu",
    store: Store | None = None,
) -> dict[str, KeyStatistics]:
    """The key statistics of every text encoder of a checkpoint, by component.

    Args:
        base: A diffusers folder or a single file.
        captions: Ordinary prompts: a list, or a ``CaptionFile`` of any size.
        settings: Which of their tokens count.
        layers: Text blocks by component; where left out, those that an edit of this family changes.
        device: Where the encoders run.
        store: Where parts are kept, so that a stopped run goes on where it was.

    Raises:
        SurgeryError: when the checkpoint has no text encoder of CLIP's kind, or there are no captions.
    """
    checkpoint = open_checkpoint(base)
    chosen = {name: default_layers(checkpoint, name) for name in text_components(checkpoint)}
    chosen |= layers or {}
    check_sites(checkpoint, chosen)
    found = {}
    for component, numbers in chosen.items():
        encoder, tokenizer = text_tower_on(checkpoint.path, component, device)
        one = collect_statistics(encoder, tokenizer, captions, numbers, settings, store=store)
        for finding in one.findings(text_stack(encoder).mlp_width):
            _log.warning("%s of the %s: %s", finding.subject, component, finding.message)
        found[component] = one
    return found
