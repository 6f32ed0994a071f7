"""affNIST: trained on shifted MNIST digits, tested on affinely transformed ones, 40×40 pixels.

DR17 (§5.2) trains on MNIST digits placed at random on a black 40×40 image, stops two networks at
the same accuracy on test digits placed likewise (`expanded`), and then compares them on affNIST's
test set, which T. Tieleman made by 32 random affine maps of each of MNIST's test digits.

No checksum of that file is published, so its digits are held against those of MNIST.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capsrepro.data import mnist
from capsrepro.data.affnist_format import SIDE_PX, read_transformed
from capsrepro.data.archives import unreadable
from capsrepro.data.dataset import Dataset, Images, Labels, Parameter, Split, Splits
from capsrepro.data.sources import SOURCES

SHIFT_PX = 6
"""Border around a centred MNIST digit, and so its largest shift."""
TRANSFORMS = 32
COUNTS = {"train": 60_000, "expanded": 10_000, "test": 10_000 * TRANSFORMS}


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Read MNIST's four files and the official affNIST test set.

    Args:
        raw_root: Folder that holds `mnist/` and `affnist/` with the files.
        parameters: None are known; the mapping is empty.

    Yields:
        `train` and `expanded`, see `shifted_digits`, then `test`, in the official order: images
        (320000, 1, 40, 40) 0..255 and labels (320000, 1) 0..9.

    Raises:
        CapsreproError: A file is missing or is not what it should be.
    """
    digits = dict(mnist.prepare(raw_root, {}))
    yield from shifted_digits(digits)
    path = raw_root / "affnist" / "test.mat.zip"
    images, labels = read_transformed(path, COUNTS["test"])
    check_against_mnist(path, images, labels, digits["test"])
    yield "test", Split(images, labels)


def shifted_digits(digits: Mapping[str, Split]) -> Splits:
    """Put MNIST digits on 40×40 pixels.

    Args:
        digits: MNIST's `train` and `test`, images (count, 1, 28, 28).

    Yields:
        `train`: the training digits, centred; it is training that shifts them, by up to 6 pixels.
        `expanded`: the test digits, each shifted once and for all.
    """
    train, test = digits["train"], digits["test"]
    yield "train", Split(centred(train.images), train.labels)
    yield "expanded", Split(placed(test.images), test.labels)


def centred(images: Images) -> Images:
    """Add a black border of 6 pixels: (count, 1, 28, 28) becomes (count, 1, 40, 40)."""
    return np.pad(images, [(0, 0), (0, 0), (SHIFT_PX, SHIFT_PX), (SHIFT_PX, SHIFT_PX)])


def placed(images: Images) -> Images:
    """Shift digits as training does; which of the 13×13 places item i gets depends on i alone.

    Args:
        images: Shape (count, 1, 28, 28).

    Returns:
        Shape (count, 1, 40, 40).
    """
    import torch

    from capsrepro.data.augmentation import shift
    from capsrepro.data.counters import mix_counters, named_seed

    numbers = mix_counters(named_seed("affnist/expanded"), 0, torch.arange(len(images)))
    return shift(torch.from_numpy(centred(images)), SHIFT_PX, numbers).numpy()


def check_against_mnist(path: Path, images: Images, labels: Labels, originals: Split) -> None:
    """Make sure that the images can be 32 versions of each original, and that they lie like them.

    Args:
        path: Where they are from.
        images: Shape (count, 1, 40, 40).
        labels: Shape (count, 1).
        originals: MNIST's test digits, images (count / 32, 1, 28, 28).

    Raises:
        CapsreproError: They cannot.
    """
    found, once = (np.bincount(each[:, 0], minlength=10) for each in (labels, originals.labels))
    if (found != TRANSFORMS * once).any():
        reason = (
            f"the digits 0 to 9 occur {found.tolist()} times, and not {TRANSFORMS} times as often "
            f"as in MNIST, {once.tolist()}"
        )
        raise unreadable(path, reason, "affnist")
    # Moving a digit changes nothing, and swapping rows and columns turns every sign.
    if not tallness(images, labels) @ tallness(originals.images, originals.labels) > 0:
        reason = "its digits do not stand as MNIST's do, rows may have been taken for columns"
        raise unreadable(path, reason, "affnist")


def tallness(images: Images, labels: Labels) -> NDArray[np.float64]:
    """By how much the ink of each class is spread further down than across.

    Args:
        images: Shape (count, 1, height, width).
        labels: Shape (count, 1), every class among them.

    Returns:
        Variance of the row less that of the column, in px², mean over the class, shape (10,).
    """
    down, across = (_spread(images[:, 0].sum(axis, dtype=np.float64)) for axis in (2, 1))
    classes = labels[:, 0]
    return np.bincount(classes, down - across) / np.bincount(classes)


def _spread(ink: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of the place along a line, from the ink at each place, shape (count, places)."""
    places = np.arange(ink.shape[1])
    weights = ink / np.maximum(ink.sum(1, keepdims=True), 1)
    variance: NDArray[np.float64] = weights @ places**2 - (weights @ places) ** 2
    return variance


DATASET = Dataset(
    name="affnist",
    title="affNIST, affinely transformed MNIST digits, 40×40",
    sources=SOURCES["mnist"] + SOURCES["affnist"],
    prepare=prepare,
    parameters={},
    image_shape=(1, SIDE_PX, SIDE_PX),
    classes=mnist.CLASSES,
    counts=COUNTS,
    licence=SOURCES["affnist"][0].licence,
    citation=SOURCES["affnist"][0].citation,
)
