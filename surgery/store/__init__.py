"""Results kept by content: what was computed once from the same inputs is read back, never computed again."""

from surgery.store.store import Store, StoredResult

__all__ = ["Store", "StoredResult"]
