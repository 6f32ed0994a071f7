"""Arrays of numbers in a MATLAB 5 file, read without believing any size or type that it claims.

A file is a header of 128 bytes, then one element per variable. An element is its type and its
size, four bytes each, then its content; an array has four elements inside: flags, sizes of the
axes, name, numbers. Usually a variable is a zlib stream, with the array unpacked from it.
Described in MathWorks' "MAT-File Format"; little-endian files alone are read.

Our own reader, since scipy's is not made for files that one cannot trust: a wrong type ends Python
with a segmentation fault (scipy 1.17, github.com/scipy/scipy/pull/25349), and a zlib stream is
unpacked whatever its size.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.archives import unreadable

HEADER_BYTES = 128
HEADER_END = b"\x00\x01IM"  # version 1.0, little-endian
CHUNK_BYTES = 1 << 16

ARRAY = 14
COMPRESSED = 15
DTYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
"""Of the numbers as they are stored: MATLAB stores doubles that are small and whole as bytes."""


def read_arrays(
    path: Path, shapes: Mapping[str, tuple[int, ...]], most_bytes: int, dataset: str
) -> dict[str, NDArray[Any]]:
    """Read a file that must hold exactly these variables, all of them arrays of real numbers.

    Args:
        path: The `.mat` file.
        shapes: Of every variable, by its name; 2 to 8 axes.
        most_bytes: What all variables together may take, unpacked.
        dataset: What to fetch again when the file is no good.

    Returns:
        Every variable, in Fortran's order and in the type in which it is stored.

    Raises:
        CapsreproError: The file is missing, damaged, holds anything else, or unpacks to more.
    """
    try:
        with path.open("rb") as file:
            return _read_arrays(file, shapes, most_bytes)
    except (OSError, ValueError, zlib.error) as error:
        raise unreadable(path, getattr(error, "strerror", None) or str(error), dataset) from error


def _read_arrays(
    file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], most_bytes: int
) -> dict[str, NDArray[Any]]:
    if file.read(HEADER_BYTES)[-4:] != HEADER_END:
        raise ValueError("it does not start like a MATLAB 5 file")
    arrays: dict[str, NDArray[Any]] = {}
    for content in _variables(file, most_bytes):
        name, array = _parse(content)
        if name in arrays or array.shape != shapes.get(name):
            wanted = ", ".join(f"{name!r} {shape}" for name, shape in shapes.items())
            raise ValueError(f"it holds {name!r} {array.shape}, and should hold {wanted} once")
        arrays[name] = array
    if missing := [name for name in shapes if name not in arrays]:
        raise ValueError(f"it holds no {missing[0]!r}")
    return arrays


def _variables(file: BinaryIO, most_bytes: int) -> Iterator[memoryview]:
    """What is inside every array, unpacked."""
    left = most_bytes
    while tag := file.read(8):
        kind, size = _words(tag)
        content = memoryview(_read(file, kind, size, left))
        left -= len(content)
        if left < 0:
            raise ValueError(f"it unpacks to more than {most_bytes:,} bytes")
        if kind == COMPRESSED:
            kind, size = _words(content[:8])
            content = content[8:]
        if kind != ARRAY or size != len(content):
            raise ValueError("it holds a variable that is no array, or not of its own size")
        yield content


def _read(file: BinaryIO, kind: int, size: int, most_bytes: int) -> bytearray:
    """Read an element of `size` bytes and unpack it; one that is too long, not to its end."""
    stream = zlib.decompressobj() if kind == COMPRESSED else None
    content = bytearray()
    while len(content) <= most_bytes and (chunk := file.read(min(size, CHUNK_BYTES))):
        size -= len(chunk)
        content += stream.decompress(chunk, most_bytes + 1 - len(content)) if stream else chunk
    if len(content) <= most_bytes and (size or (stream and not stream.eof)):
        raise ValueError("it ends early")
    return content


def _parse(content: memoryview) -> tuple[str, NDArray[Any]]:
    """Name and numbers of an array."""
    # One more than there should be, since a damaged one may have millions.
    elements = list(islice(_elements(content), 5))
    kinds, parts = zip(*elements, strict=True) if elements else ((), ())
    if len(parts) != 4 or kinds[3] not in DTYPES or len(parts[1]) not in range(8, 33, 4):
        raise ValueError("it holds a variable that is no array of real numbers with 2 to 8 axes")
    _flags, sizes, name, numbers = parts
    shape = tuple(np.frombuffer(sizes, "<i4").tolist())
    dtype = np.dtype(DTYPES[kinds[3]])
    if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"it holds {len(numbers):,} bytes of numbers for the shape {shape}")
    array = np.frombuffer(numbers, dtype).reshape(shape, order="F")
    return bytes(name[:64]).decode("latin-1"), array


def _elements(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and content of every element inside an array."""
    position = 0
    while position < len(content):
        kind, size = _words(content[position : position + 8])
        start = position + 8
        if kind >> 16:  # a small one: two bytes of type, two of size, at most four of content
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        end = start + size
        if end > len(content):
            raise ValueError("it holds a variable that ends early")
        yield kind, content[start:end]
        position = end + -end % 8


def _words(tag: bytes | memoryview) -> tuple[int, int]:
    if len(tag) < 8:
        raise ValueError("it ends early")
    first, second = struct.unpack("<II", tag)
    return first, second
