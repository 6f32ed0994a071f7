"""Loops over places on several threads, with results that do not depend on how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

PARTS = 8
"""Ranges that places are cut into, whatever the number of threads."""


def in_parts(run: Callable[[int, int, int], None], places: int) -> None:
    """Call it with the number, the first and the end of each range, on as many threads as torch's.

    The ranges are the same for any number of threads: what each of them adds up is too.
    """
    threads = min(torch.get_num_threads(), PARTS)
    left = iter(range(PARTS))

    def work() -> None:
        for part in left:
            run(part, places * part // PARTS, places * (part + 1) // PARTS)

    others = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


def addresses(arrays: Sequence[Tensor | None]) -> list[int | None]:
    """Where arrays lie in memory, for loops that know no strides; None where there is none.

    Raises:
        ValueError: One is not contiguous.
    """
    if not all(x is None or x.is_contiguous() for x in arrays):
        raise ValueError("an array for a compiled loop is not contiguous: call contiguous() on it")
    return [None if x is None else x.data_ptr() for x in arrays]


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "places")


# Threads do not live on in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
