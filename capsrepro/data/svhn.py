"""SVHN: 32×32 crops of house numbers, 73,257 digits to train on and 26,032 to test on.

Two files in MATLAB's format 5 (ufldl.stanford.edu/housenumbers, "cropped digits"): `X`, pixels of
shape (32, 32, 3, count), and `y`, labels of shape (count, 1), where 10 means the digit 0. The
531,131 `extra` digits are never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from capsrepro.data.archives import unreadable
from capsrepro.data.dataset import Dataset, Parameter, Split, Splits
from capsrepro.data.matlab_format import read_arrays
from capsrepro.data.sources import SOURCES

CLASSES = tuple("0123456789")
COUNTS = {"train": 73_257, "test": 26_032}

BYTES_PER_DIGIT = 32 * 32 * 3 + 8  # the label may be a double
OTHER_BYTES = 1 << 16  # for names, sizes and the like


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Read the two official files.

    Args:
        raw_root: Folder that holds `svhn/` with the files.
        parameters: None are known; the mapping is empty.

    Yields:
        `train` and `test`, in the official order: images (count, 3, 32, 32) 0..255, whose
        channels are red, green, blue, and labels (count, 1) 0..9, the digits.

    Raises:
        CapsreproError: A file is missing or is not what it should be.
    """
    for split, count in COUNTS.items():
        yield split, read_mat(raw_root / "svhn" / f"{split}_32x32.mat", count)


def read_mat(path: Path, count: int) -> Split:
    """Read one file, which must have exactly so many digits.

    Args:
        path: The `.mat` file.
        count: Digits in it.

    Returns:
        Images and labels as in `prepare`.

    Raises:
        CapsreproError: The file is missing, damaged, unpacks to more than it should, or holds
            other variables, types, shapes or labels.
    """
    shapes = {"X": (32, 32, 3, count), "y": (count, 1)}
    arrays = read_arrays(path, shapes, count * BYTES_PER_DIGIT + OTHER_BYTES, "svhn")
    pixels, digits = arrays["X"], arrays["y"]
    if pixels.dtype != np.uint8:
        raise unreadable(path, f"its X is {pixels.dtype} instead of uint8", "svhn")
    if not np.isin(digits, range(1, 11)).all():
        raise unreadable(path, "its y holds other labels than 1 to 10", "svhn")
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return Split(images, digits.astype(np.uint8) % 10)


DATASET = Dataset(
    name="svhn",
    title="SVHN house numbers, cropped digits, 32×32",
    sources=SOURCES["svhn"],
    prepare=prepare,
    parameters={},
    image_shape=(3, 32, 32),
    classes=CLASSES,
    counts=COUNTS,
    licence=SOURCES["svhn"][0].licence,
    citation=SOURCES["svhn"][0].citation,
)
