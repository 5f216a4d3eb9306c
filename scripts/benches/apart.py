"""Work in a process of its own, which finds no memory that other work left."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")


def apart(work: Callable[Given, Found], *given: Given.args, **named: Given.kwargs) -> Found:
    """What ``work`` gives, which a new process imports."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given, **named).result()
