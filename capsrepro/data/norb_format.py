"""The binary matrix format of NORB: a little-endian header, then the numbers, last axis fastest.

The header is a magic number that tells the type, the number of axes, and one 32-bit size per axis,
but three sizes at least: those that a matrix of one or two axes does not need are 1. Described
at cs.nyu.edu/~ylclab/data/norb-v1.0-small. Our own reader, since no library has one.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capsrepro.data import archives

BYTES = 0x1E3D4C55
INTEGERS = 0x1E3D4C54
DTYPES: dict[int, np.dtype[Any]] = {BYTES: np.dtype("u1"), INTEGERS: np.dtype("<i4")}

BLOCK_BYTES = 1 << 20

unreadable = partial(archives.unreadable, dataset="smallnorb")


def read_matrix(path: Path, magic: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a gzipped matrix that must have exactly this type and shape; see `read_blocks`."""
    return np.concatenate(list(read_blocks(path, magic, shape)))


def read_blocks(path: Path, magic: int, shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
    """Read a gzipped matrix that must have exactly this type and shape, about 1 MiB at a time.

    That a file is too long or its checksum wrong shows only after the last block: what is made
    of the blocks counts once the iterator has come to its end.

    Args:
        path: The `.mat.gz` file.
        magic: `BYTES` or `INTEGERS`.
        shape: Expected size of every axis.

    Yields:
        Blocks one after another along the first axis, shape (rows, *shape[1:]), uint8 or int32,
        read-only.

    Raises:
        CapsreproError: The file is missing, damaged, of another type or shape, too short, or has
            bytes left over.
    """
    dtype = DTYPES[magic]
    header = _header(magic, shape)
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    rows = max(1, BLOCK_BYTES // row_bytes)
    try:
        with gzip.open(path) as file:
            _check_header(path, file.read(len(header)), header)
            for first in range(0, shape[0], rows):
                size = min(rows, shape[0] - first) * row_bytes
                content = file.read(size)
                if len(content) != size:
                    found = len(header) + first * row_bytes + len(content)
                    wanted = len(header) + shape[0] * row_bytes
                    raise unreadable(path, f"it unpacks to {found:,} bytes instead of {wanted:,}")
                yield np.frombuffer(content, dtype).reshape(-1, *shape[1:])
            # One byte more than there should be: it makes gzip check its CRC, and unpacks no bomb.
            if file.read(1):
                raise unreadable(path, "it has bytes left over behind its matrix")
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def _header(magic: int, shape: tuple[int, ...]) -> bytes:
    sizes = shape + (1,) * (3 - len(shape))
    return struct.pack(f"<{2 + len(sizes)}i", magic, len(shape), *sizes)


def _check_header(path: Path, found: bytes, expected: bytes) -> None:
    if found[:4] != expected[:4]:
        raise unreadable(path, f"it starts with {found[:4].hex()}, not with {expected[:4].hex()}")
    if found != expected:
        axes, sizes = (
            struct.unpack(f"<{len(header) // 4}i", header[: len(header) // 4 * 4])[1:]
            for header in (found, expected)
        )
        raise unreadable(path, f"its axes and sizes are {axes} instead of {sizes}")
