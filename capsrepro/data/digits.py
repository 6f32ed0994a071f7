"""Digits: the 1,797 real 8×8 digits that scikit-learn carries; needs no network.

They are the *test* part of the UCI set, written by 13 people. Who wrote which is not recorded in
it, so our train and test splits share writers: accuracies here are optimistic, and stand for
nothing but this split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.dataset import Dataset, Parameter, Split, Splits
from capsrepro.errors import CapsreproError, UsageError

CLASSES = tuple("0123456789")
COUNT = 1_797
LICENCE = "CC BY 4.0"
CITATION = (
    "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI Machine Learning "
    "Repository, 1998, doi:10.24432/C50P49."
)

# Of pixels 0..16 then labels, as bytes: a scikit-learn that carries other digits is noticed.
CONTENT_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Scale the digits to 0..255 and split them, class by class, by a seed.

    Args:
        raw_root: Not used: scikit-learn is the source.
        parameters: `test_count`, the images held out, 1..1,796; `split_seed`, any whole number.

    Yields:
        `train` and `test`: images (count, 1, 8, 8) 0..255 and labels (count, 1) 0..9, both in
        the order of the original file.

    Raises:
        UsageError: `test_count` is out of its range.
        CapsreproError: scikit-learn is missing or carries other digits.
    """
    pixels, labels = _load()
    # Pixels count the inked bits of a 4×4 block, 0..16. Whole-number arithmetic, half up.
    images = ((pixels.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8).reshape(COUNT, 1, 8, 8)
    test = held_out(labels, int(parameters["test_count"]), int(parameters["split_seed"]))
    train = np.setdiff1d(np.arange(COUNT), test)
    for split, indices in (("train", train), ("test", test)):
        yield split, Split(images[indices], labels[indices, None])


def held_out(labels: NDArray[np.uint8], count: int, seed: int) -> NDArray[np.int64]:
    """Choose the items to hold out, in proportion to the classes.

    The items of a class are ranked by SHA-256 of `seed/index`, not by numpy's generator: the
    split must be the same under every numpy version.

    Args:
        labels: Class of every item, shape (items,).
        count: How many to choose, at least 1 and fewer than there are.
        seed: Gives another choice for every value.

    Returns:
        Their indices, ascending, shape (count,).

    Raises:
        UsageError: `count` is out of its range.
    """
    if not 1 <= count < len(labels):
        raise UsageError(
            f"test_count of data set digits is {count}; set it between 1 and {len(labels) - 1}."
        )
    chosen: list[int] = []
    for label, quota in enumerate(_quotas(np.bincount(labels), count)):
        members = np.flatnonzero(labels == label).tolist()
        members.sort(key=lambda index: hashlib.sha256(f"{seed}/{index}".encode()).digest())
        chosen += members[:quota]
    return np.array(sorted(chosen), np.int64)


def _quotas(sizes: NDArray[np.int64], count: int) -> list[int]:
    """Share `count` among classes in proportion to their sizes, by largest remainder."""
    total = int(sizes.sum())
    exact = [divmod(int(size) * count, total) for size in sizes]
    quotas = [whole for whole, _ in exact]
    by_remainder = sorted(range(len(exact)), key=lambda label: (-exact[label][1], label))
    for label in by_remainder[: count - sum(quotas)]:
        quotas[label] += 1
    return quotas


def _load() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels 0..16, shape (1797, 64), and labels, shape (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise CapsreproError(
            "data set digits comes from scikit-learn, which is not installed; "
            "run `uv sync --extra train`."
        ) from error
    bunch = load_digits()
    pixels, labels = bunch.data.astype(np.uint8), bunch.target.astype(np.uint8)
    if hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest() != CONTENT_SHA256:
        raise CapsreproError(
            "the installed scikit-learn carries other digits than those of this suite; "
            "install the version that uv.lock names with `uv sync --extra train`."
        )
    return pixels, labels


DATASET = Dataset(
    name="digits",
    title="Optical recognition of handwritten digits, 8×8 (embedded in scikit-learn)",
    sources=(),
    prepare=prepare,
    parameters={"test_count": 500, "split_seed": 0},
    image_shape=(1, 8, 8),
    classes=CLASSES,
    counts={"train": 1_297, "test": 500},
    licence=LICENCE,
    citation=CITATION,
)
