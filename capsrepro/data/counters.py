"""Random numbers without a state: each is a function of (seed, epoch, item).

A resumed run sees exactly what an uninterrupted one would have seen, and CPU and GPU see the same:
the arithmetic is on whole numbers only.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(counters: Tensor) -> Tensor:
    """Scramble 64-bit counters into independent-looking 63-bit numbers (the splitmix64 finaliser).

    Integer arithmetic only, so every device gives the same bits.

    Args:
        counters: int64, any shape; distinct inputs give distinct 64-bit states.

    Returns:
        int64 in [0, 2^63), same shape.
    """
    state = counters + _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shift_right(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift_right(state, 27)) * _signed(0x94D049BB133111EB)
    return (state ^ _shift_right(state, 31)) & ((1 << 63) - 1)


def _signed(value: int) -> int:
    """The same 64 bits read as a signed number, which is what torch has."""
    return value - (1 << 64) if value >> 63 else value


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own is arithmetic and would smear the sign bit."""
    return (values >> bits) & (_MASK >> bits)


def mix_counters(seed: int, epoch: Tensor | int, item: Tensor) -> Tensor:
    """One number in [0, 2^63) for each (seed, epoch, item), shape of `item`."""
    # Filled there: a number copied to a GPU would wait for all it has to do.
    start = torch.full((), _signed(seed & _MASK), dtype=torch.int64, device=item.device)
    stream = mix(start + epoch)
    return mix(stream ^ mix(item))


def uniform(numbers: Tensor) -> Tensor:
    """Numbers of `mix` as float32 in [0, 1): their upper 24 bits, so that no device rounds."""
    return (numbers >> 39).float() * 2.0**-24


def named_seed(name: str) -> int:
    """A 64-bit seed that belongs to a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
