"""Which device and how many threads a verb computes with."""

import logging

from surgery.errors import SurgeryError

_log = logging.getLogger(__name__)


def chosen_device(wanted: str) -> str:
    """The device that ``--device`` names; ``auto`` takes the first of cuda, mps and cpu, and says so.

    Raises:
        SurgeryError: when this machine does not have it.
    """
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    present = [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if wanted == "auto":
        _log.info("computing on %s", present[0])
        return present[0]
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in present:
        raise SurgeryError(f"there is no device {wanted!r} here. Present are: auto, {', '.join(present)}.")
    return name


def use_threads(threads: int | None) -> None:
    """Let torch use that many CPU threads in this process; None leaves it alone."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
