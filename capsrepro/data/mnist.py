"""MNIST: 28×28 grey digits, 60,000 to train on and 10,000 to test on, in the official order.

The four files are in the IDX format: a big-endian magic number that tells type and rank, one
32-bit size per axis, then the bytes. Our own reader, since it must refuse what is not exactly
that: torchvision's accepts any rank and leaves a truncated gzip to a bare EOFError.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.archives import unreadable
from capsrepro.data.dataset import Dataset, Labels, Parameter, Split, Splits
from capsrepro.data.sources import SOURCES

CLASSES = tuple("0123456789")
COUNTS = {"train": 60_000, "test": 10_000}

IMAGES_MAGIC = 2051
LABELS_MAGIC = 2049

_unreadable = partial(unreadable, dataset="mnist")


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Read the four official files.

    Args:
        raw_root: Folder that holds `mnist/` with the files.
        parameters: None are known; the mapping is empty.

    Yields:
        `train` and `test`: images (count, 1, 28, 28) 0..255 and labels (count, 1) 0..9.

    Raises:
        CapsreproError: A file is missing or is not what it should be.
    """
    folder = raw_root / "mnist"
    for split, prefix in (("train", "train"), ("test", "t10k")):
        count = COUNTS[split]
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", IMAGES_MAGIC, (count, 28, 28))
        labels = _read_labels(folder / f"{prefix}-labels-idx1-ubyte.gz", count)
        yield split, Split(images.reshape(count, 1, 28, 28), labels)


def _read_labels(path: Path, count: int) -> Labels:
    labels = read_idx(path, LABELS_MAGIC, (count,))
    if labels.max() >= len(CLASSES):
        raise _unreadable(path, f"it holds the label {labels.max()}, and digits end at 9")
    return labels.reshape(count, 1)


def read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes that must have exactly this magic number and shape.

    Args:
        path: The `.gz` file.
        magic: 2051 for images, 2049 for labels; its last byte is the number of axes.
        shape: Expected size of every axis.

    Returns:
        A writable array of that shape.

    Raises:
        CapsreproError: The file is missing, damaged, of another format or shape, too short, or
            has bytes left over.
    """
    header = struct.pack(f">{1 + len(shape)}i", magic, *shape)
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) as file:
            # One byte more than there should be: it shows a file that is too long, makes gzip
            # check its CRC at the end, and unpacks no bomb.
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    if content[:4] != header[:4]:
        raise _unreadable(path, f"it starts with {content[:4].hex()}, not with {header[:4].hex()}")
    if content[: len(header)] != header:
        # A header cut short gives fewer sizes than axes, which is as wrong as other sizes.
        usable = content[4 : len(header)]
        found = struct.unpack(f">{len(usable) // 4}i", usable[: len(usable) // 4 * 4])
        raise _unreadable(path, f"its shape is {found} instead of {shape}")
    if len(content) != size:
        fault = "has bytes left over" if len(content) > size else f"ends at {len(content):,} bytes"
        raise _unreadable(path, f"it should unpack to {size:,} bytes and {fault}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()


DATASET = Dataset(
    name="mnist",
    title="MNIST handwritten digits, 28×28",
    sources=SOURCES["mnist"],
    prepare=prepare,
    parameters={},
    image_shape=(1, 28, 28),
    classes=CLASSES,
    counts=COUNTS,
    licence=SOURCES["mnist"][0].licence,
    citation=SOURCES["mnist"][0].citation,
)
