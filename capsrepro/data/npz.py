"""Writing `.npz` files whose bytes depend on the arrays alone.

`numpy.savez` leaves that to `zipfile`, whose headers for files that might grow beyond 4 GB differ
between patch releases of Python. Here every size is known beforehand.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def write_array(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    blocks: Iterable[NDArray[Any]],
) -> None:
    """Add one array to an archive, block after block along its first axis.

    Args:
        archive: Opened for writing.
        name: Key of the array.
        shape: Of the whole.
        dtype: Of every block.
        blocks: Together the whole, contiguous in C order.
    """
    header = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    # A ZipInfo of its own has a fixed date, and no room for 64-bit sizes unless they are needed.
    info = zipfile.ZipInfo(f"{name}.npy")
    info.file_size = len(header.getvalue()) + int(np.prod(shape)) * dtype.itemsize
    with archive.open(info, "w") as member:
        member.write(header.getvalue())
        for block in blocks:
            member.write(np.ascontiguousarray(block).data)


def write_npz(file: BinaryIO, **arrays: NDArray[Any]) -> None:
    """What `numpy.savez` writes, uncompressed, but the same under every Python."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            write_array(archive, name, array.shape, array.dtype, [array])
