"""CIFAR-10: 32×32 colour photographs of ten classes, 50,000 to train on and 10,000 to test on.

The official "binary version" (cs.toronto.edu/~kriz/cifar.html): a tar archive with six files of
10,000 records each, and one with the names of the classes. A record is its label, then the red,
the green and the blue plane, row by row. Not the "python version" that torchvision reads: that one
is a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from capsrepro.data.archives import read_members, unreadable
from capsrepro.data.dataset import Dataset, Labels, Parameter, Split, Splits
from capsrepro.data.sources import SOURCES

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
COUNTS = {"train": 50_000, "test": 10_000}

FOLDER = "cifar-10-batches-bin"
BATCHES = {
    "train": tuple(f"{FOLDER}/data_batch_{number}.bin" for number in range(1, 6)),
    "test": (f"{FOLDER}/test_batch.bin",),
}
NAMES = f"{FOLDER}/batches.meta.txt"
NAMES_MOST_BYTES = 1_000  # 61 in the official one
RECORD_BYTES = 1 + 3 * 32 * 32


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Read the official archive.

    Args:
        raw_root: Folder that holds `cifar10/` with the archive.
        parameters: None are known; the mapping is empty.

    Yields:
        `train`, the five batches in their order, and `test`: images (count, 3, 32, 32) 0..255,
        whose channels are red, green, blue, and labels (count, 1) 0..9.

    Raises:
        CapsreproError: The archive is missing or is not what it should be.
    """
    path = raw_root / "cifar10" / "cifar-10-binary.tar.gz"
    yield from read_batches(path, COUNTS["test"]).items()


def read_batches(path: Path, batch_size: int) -> dict[str, Split]:
    """Read an archive of six batches, in whatever order they stand in it.

    Args:
        path: The `.tar.gz` file.
        batch_size: Records per batch, a multiple of 10; officially 10,000.

    Returns:
        `train` with 5 batches and `test` with one; arrays as in `prepare`.

    Raises:
        CapsreproError: The archive is missing, damaged, or has other members, sizes, class names
            or labels; every class must be there equally often, as it officially is.
    """
    splits = {split: empty_split(batch_size * len(batches)) for split, batches in BATCHES.items()}
    # The official archive has them in another order: 1, 3, 4, test, 5, 2.
    places = {
        batch: (split, slice(number * batch_size, (number + 1) * batch_size))
        for split, batches in BATCHES.items()
        for number, batch in enumerate(batches)
    }
    batch_bytes = batch_size * RECORD_BYTES
    sizes = {NAMES: (1, NAMES_MOST_BYTES)} | dict.fromkeys(places, (batch_bytes, batch_bytes))
    for name, content in read_members(path, sizes, "cifar10"):
        if name == NAMES:
            _check_names(path, content)
            continue
        split, rows = places[name]
        records = np.frombuffer(content, np.uint8).reshape(batch_size, RECORD_BYTES)
        splits[split].labels[rows] = records[:, :1]
        splits[split].images[rows] = records[:, 1:].reshape(batch_size, 3, 32, 32)
    for arrays in splits.values():
        check_labels(path, arrays.labels, "cifar10")
    return splits


def empty_split(count: int) -> Split:
    """Room for `count` images (count, 3, 32, 32) and labels (count, 1)."""
    return Split(np.empty((count, 3, 32, 32), np.uint8), np.empty((count, 1), np.uint8))


def check_labels(path: Path, labels: Labels, dataset: str) -> None:
    """Check that the labels are those of ten classes of the same size.

    Args:
        path: File that they are from.
        labels: Shape (count, 1).
        dataset: What to fetch again when they are not.

    Raises:
        CapsreproError: A label is not in 0..9, or a class is there more often than another.
    """
    if labels.max() >= len(CLASSES):
        reason = f"it holds the label {labels.max()}, and labels end at 9"
        raise unreadable(path, reason, dataset)
    wanted = len(labels) // len(CLASSES)
    for name, found in zip(CLASSES, np.bincount(labels[:, 0], minlength=10), strict=True):
        if found != wanted:
            reason = f"{found:,} images of {len(labels):,} are of class {name}, not {wanted:,}"
            raise unreadable(path, reason, dataset)


def _check_names(path: Path, content: bytes) -> None:
    found = content.decode("ascii", "replace").split()
    if tuple(found) != CLASSES:
        reason = f"its member {NAMES!r} names the classes {found}, not {list(CLASSES)}"
        raise unreadable(path, reason, "cifar10")


DATASET = Dataset(
    name="cifar10",
    title="CIFAR-10 photographs, 32×32",
    sources=SOURCES["cifar10"],
    prepare=prepare,
    parameters={},
    image_shape=(3, 32, 32),
    classes=CLASSES,
    counts=COUNTS,
    licence=SOURCES["cifar10"][0].licence,
    citation=SOURCES["cifar10"][0].citation,
)
