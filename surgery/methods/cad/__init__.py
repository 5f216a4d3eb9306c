"""Component attribution: which weights make a concept, and what masking them does (arXiv 2412.02542)."""
