"""The shape of a row of `DATASETS`, and of the arrays that a data set is made of.

A new data set is a module with a `prepare` function and its row, its files in
`capsrepro/data/sources.py`, and its name in `capsrepro/data/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.sources import Source

Parameter: TypeAlias = int | float | str | bool

Images: TypeAlias = NDArray[np.uint8]
"""Pixels 0..255, shape (count, channels, height, width)."""

Labels: TypeAlias = NDArray[np.uint8]
"""Class indices, shape (count, labels per image); MNIST has one per image, MultiMNIST two."""

Note: TypeAlias = int | float | str


class Split(NamedTuple):
    """The arrays of one split.

    Attributes:
        images: uint8, shape (count, channels, height, width).
        labels: uint8, shape (count, labels per image).
        factors: What else is known of every image, as its authors coded it (smallNORB: instance,
            elevation, azimuth, lighting), uint8, shape (count, factors); None when nothing is.
        notes: Measured facts to keep in the manifest.
    """

    images: Images
    labels: Labels
    factors: NDArray[np.uint8] | None = None
    notes: Mapping[str, Note] | None = None


Splits: TypeAlias = Iterable[tuple[str, Split]]
"""Splits by name, one after another, so that only one of them need be in memory."""


@dataclass(frozen=True)
class Dataset:
    """One row of `DATASETS`: all that the rest of the suite has to know about a data set.

    Attributes:
        name: As in params.yaml and on the command line.
        title: For people.
        sources: Files to fetch first; empty when a library carries the data. They may belong to
            another data set (MultiMNIST is made from MNIST's files).
        prepare: `prepare(raw_root, parameters)` reads the fetched files and gives every split,
            one after another.
        parameters: Every parameter that `prepare` knows, with its default.
        image_shape: (channels, height, width) of what a network gets before any crop.
        classes: Names, in the order of the label values.
        counts: Images per split under the default parameters.
        licence: Under which its authors published it.
        citation: What to cite when using it.
        labels_per_image: Two when its images are pairs of the stored ones, composed on the device.
        factors: Names of the columns of every split's `factors`.
        optional: Whether it is left out where every data set is meant.
        version: Raised when `prepare` would give other arrays for the same parameters.
    """

    name: str
    title: str
    sources: tuple[Source, ...]
    prepare: Callable[[Path, Mapping[str, Parameter]], Splits]
    parameters: Mapping[str, Parameter]
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    licence: str
    citation: str
    labels_per_image: int = 1
    factors: tuple[str, ...] = ()
    optional: bool = False
    version: int = 1
