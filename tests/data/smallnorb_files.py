"""Writes files in the official format of smallNORB, of any size, for tests to read."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

OFFICIAL_NAMES = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training-{}.mat.gz",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing-{}.mat.gz",
}
OFFICIAL_INSTANCES = {"train": [4, 6, 7, 8, 9], "test": [0, 1, 2, 3, 5]}
MAGICS = {"uint8": b"\x55\x4c\x3d\x1e", "int32": b"\x54\x4c\x3d\x1e"}


def matrix(array: NDArray) -> bytes:
    """What an unpacked `.mat` file holds: uint8 stays, everything else becomes int32."""
    array = array if array.dtype == np.uint8 else array.astype("<i4")
    sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
    header = MAGICS[array.dtype.name] + struct.pack(f"<{1 + len(sizes)}i", array.ndim, *sizes)
    return header + array.tobytes()


def write_matrix(path: Path, array: NDArray, compresslevel: int = 1) -> None:
    """Write one `.mat.gz` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb", compresslevel) as file:
        file.write(matrix(array))


def write_split(
    folder: Path,
    split: str,
    images: NDArray,
    cat: NDArray,
    info: NDArray,
    compresslevel: int = 1,
) -> None:
    """Write the three files of `train` or `test` into `folder`, under their official names.

    Args:
        folder: `raw_root / "smallnorb"` for the data set's own reader.
        split: Key of `OFFICIAL_NAMES`.
        images: uint8, (count, 2, height, width).
        cat: Categories, (count,).
        info: Instance, elevation, azimuth, lighting, (count, 4).
        compresslevel: 0 is quickest by far on noise.
    """
    for kind, array in (("dat", images), ("cat", cat), ("info", info)):
        write_matrix(folder / OFFICIAL_NAMES[split].format(kind), array, compresslevel)


def official_metadata(split: str) -> tuple[NDArray, NDArray]:
    """`cat` (24300,) and `info` (24300, 4): the official ones of `test`.

    The official `cat` of `train` is the same, but its `info` comes in no order that we know.
    """
    axes = (OFFICIAL_INSTANCES[split], range(9), range(0, 36, 2), range(6), range(5))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 5)
    return grid[:, 4], grid[:, :4]
