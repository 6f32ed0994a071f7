"""The table of data sets; importing it needs neither torch nor scikit-learn."""

from __future__ import annotations

from capsrepro.data import digits, mnist
from capsrepro.data.sources import SOURCES, Dataset

DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        name="digits",
        title="Optical recognition of handwritten digits, 8×8 (embedded in scikit-learn)",
        sources=(),
        prepare=digits.prepare,
        parameters={"test_count": 500, "split_seed": 0},
        image_shape=(1, 8, 8),
        classes=digits.CLASSES,
        counts={"train": 1_297, "test": 500},
        licence=digits.LICENCE,
        citation=digits.CITATION,
    ),
    "mnist": Dataset(
        name="mnist",
        title="MNIST handwritten digits, 28×28",
        sources=SOURCES["mnist"],
        prepare=mnist.prepare,
        parameters={},
        image_shape=(1, 28, 28),
        classes=mnist.CLASSES,
        counts=mnist.COUNTS,
        licence=SOURCES["mnist"][0].licence,
        citation=SOURCES["mnist"][0].citation,
    ),
}
