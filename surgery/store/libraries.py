"""The libraries that results depend on, by their installed versions."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from surgery.record import JSON

_LIBRARIES: Final = ("sd-surgery", "torch", "numpy", "safetensors", "transformers", "diffusers")


def library_versions() -> dict[str, JSON]:
    """Installed versions of the libraries that results depend on; those that are missing are left out."""
    return {library: found for library in _LIBRARIES if (found := _version(library)) is not None}


@cache
def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
