"""Names of weights in the store: of a checkpoint's parts as they are loaded, and of the same with a patch."""

from typing import Any

from surgery.anatomy import settings_text
from surgery.diffusion import two_encoders
from surgery.evaluate import Cache
from surgery.patch import Patch
from surgery.record import JSON
from surgery.store import Store


def picture_cache(models: Any, patch: Patch, store: Store) -> Cache:
    """Where the pictures of a patch's effect are kept, under the names of the weights that draw them."""
    before, after = weights_names(models, patch)
    return Cache(store=store, before=before, after=after)


def weights_names(models: Any, patch: Patch) -> tuple[str, str]:
    """Digests of all that pictures depend on in the models: without the patch, and with it."""
    roots = [patch.roots[name].bytes for name in sorted(patch.roots)]
    parts = [models.text_encoder, models.unet, models.vae, models.scheduler]
    base: dict[str, JSON] = {"base": roots, "padding": models.tokenizer.pad_token_id}
    if two_encoders(models):
        parts.append(models.text_encoder_2)
        base["padding_2"] = models.tokenizer_2.pad_token_id
    base["settings"] = [settings_text(part) for part in parts]
    changes: dict[str, JSON] = {name: change.after.bytes for name, change in patch.changes.items()}
    return Store.key(base), Store.key({**base, "changes": changes})
