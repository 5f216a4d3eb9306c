"""Small networks on many cores: several pieces of work at once, one thread each."""

from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Final, TypeVar

import torch
from torch import nn

from surgery.diffusion.offload import device_and_dtype, is_offloaded
from surgery.threads import one_thread_each

A = TypeVar("A")
T = TypeVar("T")

# an operation of a network this size is over before a second core has joined in; and several sets of its
# activations fit beside one another
SMALL: Final = 50_000_000


def at_once(unet: nn.Module, items: int) -> int:
    """How many of ``items`` pieces of work with this U-Net to do at once: 1, or one for each core allowed."""
    device, _ = device_and_dtype(unet)
    small = sum(weight.numel() for weight in unet.parameters()) <= SMALL
    alone = device.type != "cpu" or is_offloaded(unet) or not small
    return 1 if alone else max(1, min(torch.get_num_threads(), items))


def in_order(work: Callable[[A], T], items: Sequence[A], workers: int) -> Iterator[T]:
    """Results of ``work`` on each item, in order; with several ``workers``, each computes on one thread.

    Operations on one thread round the same in any company, so results do not depend on how many workers
    there are as long as there are two or more. The first error ends everything.
    """
    if workers == 1:
        yield from map(work, items)
        return
    with one_thread_each(workers) as pool:
        # each piece sees what its caller sees: silenced bars, hooks of tests
        futures = [pool.submit(copy_context().run, work, item) for item in items]
        for future in futures:
            yield future.result()
