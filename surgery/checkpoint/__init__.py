"""Checkpoints on disk: layouts, key maps, lazy reading, digests, streaming writing, and their models."""
