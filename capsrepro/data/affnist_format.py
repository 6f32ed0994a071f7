"""The official affNIST file: a zip that holds one MATLAB 5 file.

Its layout is what its public loaders agree on; of its own page only the beginning could be read.
`affNISTdata` is a struct of eight fields. `image` is uint8 of shape (1600, count): a column is an
image, row after row (one loader takes it column after column, all others do not, and
`affnist.tallness` can tell). `label_int` holds the digits. The others hold the number of the
image and of its original, the digit one-hot, and the transformation: a matrix, its inverse, and
six readable numbers.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.archives import unreadable
from capsrepro.data.dataset import Images, Labels

MEMBER = "test.mat"
SIDE_PX = 40
BYTES_PER_IMAGE = 2_048
"""Enough for the pixels and, in double precision, all other fields."""

_HEADER_BYTES = 128
_ORDERS = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}  # version 1.0, then the order of bytes
_COMPRESSED = 15  # type of an element that is a zlib stream
_CHUNK_BYTES = 1 << 16


def read_transformed(path: Path, count: int) -> tuple[Images, Labels]:
    """Read all images and labels.

    Args:
        path: The `.mat.zip` file.
        count: Images that it must hold.

    Returns:
        Images (count, 1, 40, 40) and labels (count, 1).

    Raises:
        CapsreproError: The file is missing, damaged, unpacks to more than it should, or holds
            other arrays or labels.
    """
    try:
        columns, digits = _load(path, _HEADER_BYTES + count * BYTES_PER_IMAGE)
        if columns.dtype != np.uint8 or columns.shape != (SIDE_PX**2, count):
            raise ValueError(
                f"its images are {columns.dtype} of shape {columns.shape} and not uint8 of shape "
                f"{(SIDE_PX**2, count)}"
            )
        if digits.size != count:
            raise ValueError(f"its labels are {digits.size:,} {digits.dtype} and not {count:,}")
        if not np.isin(digits, range(10)).all():
            raise ValueError("it holds other labels than the digits 0 to 9")
    except Exception as error:  # zipfile, zlib and scipy have a dozen ways to fail
        reason = getattr(error, "strerror", None) or str(error) or "it ends too early"
        raise unreadable(path, reason.partition(". ")[0], "affnist") from error
    # MATLAB keeps a column in one piece, so no pixel is copied.
    images = columns.T.reshape(count, 1, SIDE_PX, SIDE_PX)
    return images, digits.reshape(count, 1).astype(np.uint8)


def _load(path: Path, most_bytes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """`image` and `label_int`, whatever they are."""
    from scipy.io import loadmat

    with zipfile.ZipFile(path) as archive:
        if MEMBER not in archive.namelist():
            raise ValueError(f"it has no member {MEMBER!r}")
        with archive.open(MEMBER) as file:
            size = archive.getinfo(MEMBER).file_size
            if size > most_bytes or _unpacked_bytes(file, most_bytes) > most_bytes:
                raise ValueError(f"it unpacks to more than {most_bytes:,} bytes")
            # It has been read to its end once, which makes zipfile check its CRC.
            file.seek(0)
            records = loadmat(file, variable_names=["affNISTdata"]).get("affNISTdata")
    if records is None or not {"image", "label_int"} <= set(records.dtype.names or ()):
        raise ValueError(f"its {MEMBER} holds no struct affNISTdata with image and label_int")
    return np.asarray(records["image"].item()), np.asarray(records["label_int"].item())


def _unpacked_bytes(file: IO[bytes], most_bytes: int) -> int:
    """What the elements of a MATLAB 5 file take when their zlib streams are unpacked.

    Left to itself, scipy unpacks whatever an element claims to hold. Here nothing is kept, and
    counting ends beyond `most_bytes`.
    """
    order = _ORDERS.get(file.read(_HEADER_BYTES)[-4:])
    if order is None:
        raise ValueError(f"its {MEMBER} does not start like a MATLAB 5 file")
    size = _HEADER_BYTES
    while len(tag := file.read(8)) == 8:
        kind, length = struct.unpack(f"{order}II", tag)
        stream = zlib.decompressobj() if kind == _COMPRESSED else None
        for left in range(length, 0, -_CHUNK_BYTES):
            chunk = file.read(min(left, _CHUNK_BYTES))
            size += len(stream.decompress(chunk, most_bytes + 1 - size) if stream else chunk)
            if size > most_bytes:
                return size
    return size
