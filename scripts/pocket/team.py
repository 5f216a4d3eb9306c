"""Several processes that train one model: each takes its share of every batch; their weights are averaged.

On CPUs this beats threads inside one process, which wait for each other in every operation; and averaging
weights every few steps (local SGD, Stich 2019) beats averaging gradients in each.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(tensor: Tensor) -> Tensor:
    """This process's rows of a batch."""
    return tensor[rank() :: size()]


def average_weights(parameters: Iterable[Tensor]) -> None:
    """The mean over all processes, in place."""
    if size() == 1:
        return
    weights = [p.data for p in parameters]
    flat = torch.cat([w.flatten() for w in weights])
    distributed.all_reduce(flat)
    flat /= size()
    for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.copy_(part.view_as(weight))


def add_up(tensor: Tensor) -> None:
    """The sum over all processes, in place."""
    if size() > 1:
        distributed.all_reduce(tensor)


def wait() -> None:
    """Until every process is here."""
    if size() > 1:
        distributed.barrier()


def together(processes: int, work: Callable[[], object]) -> None:
    """Runs `work`, which must be picklable, in so many processes of one thread each."""
    if processes == 1:
        work()
        return
    # a polite end of this process ends the others too, which would else train on, and save, by themselves
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder:
        spawn(_member, (processes, Path(folder) / "meeting", work), nprocs=processes, daemon=True)


def _member(number: int, processes: int, meeting: Path, work: Callable[[], object]) -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) >= processes:
        os.sched_setaffinity(0, {cores[number]})
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=processes)
    try:
        work()
    finally:
        distributed.destroy_process_group()
