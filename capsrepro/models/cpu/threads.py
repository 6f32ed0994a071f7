"""Loops over places on several threads, with results that do not depend on how many there are."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_STARTED = os.getpid()


@cache
def has_compiler() -> bool:
    """Whether loops can be compiled at all."""
    return find_spec("llvmlite") is not None


def can_compile(values: Tensor) -> bool:
    """Whether compiled loops can take such numbers: on the processor, in float32 or float64."""
    on_processor = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    return on_processor and has_compiler()


PARTS = 8
"""Ranges that places are cut into, whatever the number of threads."""


def in_parts(run: Callable[[int, int, int], None], places: int) -> None:
    """Call it with the number, the first and the end of each range, on as many threads as torch's.

    The ranges are the same for any number of threads: what each of them adds up is too. The threads
    are torch's own where they can be had: after each of its loops these wait for the next one
    without sleeping, and would take the processor away from others.
    """
    left = iter(range(PARTS))
    failures: list[BaseException] = []

    def work(_: int | None = None) -> None:
        try:
            for part in left:
                run(part, places * part // PARTS, places * (part + 1) // PARTS)
        except BaseException as failure:  # Raised below: a thread of torch's has nobody to tell.
            failures.append(failure)

    threads, team, process = torch.get_num_threads(), _team(), os.getpid()
    # Threads do not live on in a forked process, which would wait for torch's for ever.
    if team is not None and process == _STARTED:
        team(_TASK(work), None, threads, 0)
    else:
        others = [_pool(threads - 1, process).submit(work) for _ in range(threads - 1)]
        work()
        wait(others)
    if failures:
        raise failures[0]


def addresses(
    arrays: Mapping[str, Tensor | None], sizes: Mapping[str, int], dtype: torch.dtype
) -> list[int | None]:
    """Where arrays lie in memory, for loops that know no strides and see no ends.

    Args:
        arrays: By names whose axes stand after the last underscore; None where there is none.
        sizes: Of each axis.
        dtype: Of all arrays.

    Raises:
        ValueError: One is not what its name says, of another type, or not contiguous.
    """
    for name, array in arrays.items():
        shape = tuple(sizes[axis] for axis in name.rpartition("_")[2])
        if array is not None and not (
            array.shape == shape
            and array.dtype == dtype
            and array.device.type == "cpu"
            and array.is_contiguous()
        ):
            raise ValueError(
                f"{name} is {array.dtype} {tuple(array.shape)} with strides {array.stride()} on "
                f"{array.device}: a compiled loop needs contiguous {dtype} {shape} on the cpu"
            )
    return [None if array is None else array.data_ptr() for array in arrays.values()]


def call_in_parts(
    function: Callable[..., None],
    arrays: Mapping[str, Tensor | None],
    sizes: Mapping[str, int],
    dtype: torch.dtype,
    numbers: Sequence[int],
    places: int,
    *,
    own: int = 0,
) -> None:
    """Call a compiled loop for each range of `in_parts`.

    Args:
        function: It takes addresses, whole numbers, and the first and the end of a range.
        arrays: In its order, by names as in `addresses`.
        sizes: Of each axis.
        dtype: Of all arrays.
        numbers: Those before the range.
        places: How many there are.
        own: So many of the first arrays are stacks of `PARTS`, one for each range.

    Raises:
        ValueError: See `addresses`.
    """
    stacks = [array for array in list(arrays.values())[:own] if array is not None]
    tops = {name: stack[0] for name, stack in zip(arrays, stacks, strict=False)}
    shared = addresses({**arrays, **tops}, sizes, dtype)[own:]

    def run(part: int, first: int, last: int) -> None:
        mine = [stack[part].data_ptr() for stack in stacks]
        function(*mine, *shared, *numbers, first, last)

    in_parts(run, places)


@cache
def _team() -> Callable[..., None] | None:
    """`GOMP_parallel`, which calls a function on each of torch's threads; None without OpenMP."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    # Torch's wheels bring the library along, under one name or another; Linux distributions do not.
    for path in [*Path(torch.__file__).parent.glob("lib/libgomp*"), "libgomp.so.1"]:
        try:
            # Not one that is only loaded now: its threads would be others than torch's.
            team = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        team.argtypes = [_TASK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        team.restype = None
        return team
    return None


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Of this process."""
    return ThreadPoolExecutor(threads, "places")
