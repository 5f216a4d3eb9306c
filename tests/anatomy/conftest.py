"""The tiny pipeline's models."""

from tests.support.models import encoder, models, tokenizer

__all__ = ["encoder", "models", "tokenizer"]
