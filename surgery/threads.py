"""Several pieces of work at once on the CPU, each on one thread of torch's."""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

T = TypeVar("T")


@contextmanager
def one_thread_each(workers: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch computes in the calling thread alone: pieces are small, the cores are shared.

    Operations on one thread round the same in any company. The first error of the block ends what waits.

    Args:
        workers: How many; one for each core, up to four, unless said.
    """
    before = torch.get_num_threads()
    workers = min(4, os.cpu_count() or 1) if workers is None else workers
    pool = ThreadPoolExecutor(workers, "surgery", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # new threads elsewhere start from what was set last


def ahead(items: Iterable[T], most: int) -> Generator[T, None, None]:
    """The same items, each made in another thread before it is asked for, up to ``most`` of them.

    An error comes where its item would have come. Close the iterator to end the thread early.
    """
    source = iter(items)

    def more() -> list[T]:
        return list(islice(source, 1))

    with one_thread_each(1) as pool:
        waiting = deque(pool.submit(more) for _ in range(most))
        while item := waiting.popleft().result():
            waiting.append(pool.submit(more))
            yield item[0]
