"""smallNORB: stereo pairs of 50 toys, EM18's splits by viewpoint, and the pairs taken apart.

A split of 24,300 pairs is a full grid: 5 categories × 5 toys × 9 elevations × 18 azimuths ×
6 lightings, each once; no toy is in both splits.

Both capsule papers halve the 96×96 images without saying how. Our `text` reading averages blocks of
2×2 pixels. The authors' programs call TensorFlow 1's bilinear `resize_images`, which samples at
even positions: at exactly one half it keeps every second pixel and averages nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.dataset import Dataset, Images, Labels, Parameter, Split, Splits
from capsrepro.data.norb_format import BYTES, INTEGERS, read_blocks, read_matrix, unreadable
from capsrepro.data.sources import SOURCES
from capsrepro.errors import UsageError

CLASSES = ("animal", "human", "plane", "truck", "car")
FACTORS = ("instance", "elevation", "azimuth", "lighting")
CAMERAS = ("left", "right")
COUNT = 24_300
PREFIXES = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
INSTANCES = {"train": (4, 6, 7, 8, 9), "test": (0, 1, 2, 3, 5)}

Viewpoint = Literal["azimuth", "elevation"]

FAMILIAR: dict[Viewpoint, tuple[int, ...]] = {
    "azimuth": (30, 32, 34, 0, 2, 4),  # 300°, 320°, 340°, 0°, 20°, 40°
    "elevation": (0, 1, 2),  # 30°, 35°, 40°
}
"""Codes of the third of the viewpoints that EM18 (§5.1) trains on."""

Arrays = tuple[Images, Labels, NDArray[np.uint8]]


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Read the six official files and halve the images.

    Args:
        raw_root: Folder that holds `smallnorb/` with the files.
        parameters: `halving`, a key of `HALVINGS`.

    Yields:
        `train` and `test`, in the official order: images (24300, 2, 48, 48) 0..255, whose
        channels are the left and the right camera, labels (24300, 1) 0..4, and the codes of
        the factors (24300, 4).

    Raises:
        UsageError: There is no such halving.
        CapsreproError: A file is missing or is not what it should be.
    """
    for split in PREFIXES:
        yield split, Split(*_read(raw_root, split, parameters))


def prepare_viewpoints(
    by: Viewpoint, raw_root: Path, parameters: Mapping[str, Parameter]
) -> Splits:
    """Read the same files, and part them by whether the viewpoint is one to train on.

    Args:
        by: Which factor makes the viewpoint.
        raw_root: See `prepare`.
        parameters: See `prepare`.

    Returns:
        `train`, the 8,100 familiar pairs of the official training split; `familiar` and `novel`,
        the 8,100 familiar and the 16,200 other pairs of the test split. Arrays as in `prepare`.

    Raises:
        UsageError: There is no such halving.
        CapsreproError: A file is missing or is not what it should be.
    """
    pairs = ((split, _read(raw_root, split, parameters)) for split in PREFIXES)
    return part_by_viewpoint(by, pairs)


def part_by_viewpoint(by: Viewpoint, pairs: Iterable[tuple[str, Arrays]]) -> Splits:
    """Keep the familiar pairs of `train`, and part those of `test` into `familiar` and `novel`."""
    for split, arrays in pairs:
        familiar = familiar_viewpoints(arrays[2], by)
        if split == "train":
            yield split, _part(arrays, familiar)
        else:
            yield "familiar", _part(arrays, familiar)
            yield "novel", _part(arrays, ~familiar)


def prepare_monocular(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Read the same files, and make an example of each camera's image (Gritzman 2019).

    Args:
        raw_root: See `prepare`.
        parameters: See `prepare`.

    Yields:
        `train` and `test`, twice as many images as there are pairs, ordered as `take_apart` says.

    Raises:
        UsageError: There is no such halving.
        CapsreproError: A file is missing or is not what it should be.
    """
    for split in PREFIXES:
        yield split, take_apart(_read(raw_root, split, parameters))


def take_apart(pairs: Arrays) -> Split:
    """Part every pair into its two images, the left one first, so that pairs stay neighbours.

    Args:
        pairs: Images (count, 2, height, width), labels (count, 1) and factors (count, 4).

    Returns:
        Images (2·count, 1, height, width), of which 2·n and 2·n + 1 are the left and the right of
        pair n, labels (2·count, 1), and factors (2·count, 5), the last of which is the camera, an
        index of `CAMERAS`. The images share the memory of the pairs.
    """
    images, labels, factors = pairs
    count, cameras, *sides = images.shape
    camera = np.tile(np.arange(cameras, dtype=np.uint8), count)
    return Split(
        images.reshape(count * cameras, 1, *sides),
        labels.repeat(cameras, axis=0),
        np.column_stack([factors.repeat(cameras, axis=0), camera]),
    )


def familiar_viewpoints(factors: NDArray[np.uint8], by: Viewpoint) -> NDArray[np.bool_]:
    """Which pairs are seen from a viewpoint that EM18 (§5.1) trains on.

    Args:
        factors: Codes, shape (count, 4), columns as in `FACTORS`.
        by: Which factor makes the viewpoint.

    Returns:
        A mask, shape (count,).
    """
    return np.isin(factors[:, FACTORS.index(by)], FAMILIAR[by])


def average(images: Images) -> Images:
    """Average every 2×2 block, half rounded up, in whole numbers.

    Args:
        images: 0..255, shape (..., height, width), both even.

    Returns:
        0..255, shape (..., height / 2, width / 2).
    """
    rows = np.add(images[..., ::2, :], images[..., 1::2, :], dtype=np.uint16)
    sums = rows[..., ::2] + rows[..., 1::2]
    return ((sums + 2) >> 2).astype(np.uint8)


def every_second(images: Images) -> Images:
    """Keep the pixels of even row and column; see `average` for the shapes."""
    return images[..., ::2, ::2]


HALVINGS = {"average": average, "every-second": every_second}


def _part(arrays: Arrays, chosen: NDArray[np.bool_]) -> Split:
    images, labels, factors = arrays
    return Split(images[chosen], labels[chosen], factors[chosen])


def _read(raw_root: Path, split: str, parameters: Mapping[str, Parameter]) -> Arrays:
    """Images (24300, 2, 48, 48), labels (24300, 1) and factors (24300, 4) of an official split."""
    halve = HALVINGS.get(str(parameters["halving"]))
    if halve is None:
        raise UsageError(
            f"halving of smallNORB is {parameters['halving']!r}; set it to {' or '.join(HALVINGS)}."
        )
    folder = raw_root / "smallnorb"
    labels, factors = _read_metadata(folder, split)
    path = folder / f"{PREFIXES[split]}-dat.mat.gz"
    images = np.empty((COUNT, 2, 48, 48), np.uint8)
    filled = 0
    for block in read_blocks(path, BYTES, (COUNT, 2, 96, 96)):
        images[filled : filled + len(block)] = halve(block)
        filled += len(block)
    return images, labels, factors


def _read_metadata(folder: Path, split: str) -> tuple[Labels, NDArray[np.uint8]]:
    """Labels (24300, 1) and factors (24300, 4), found to be the full grid."""
    cat_path, info_path = (folder / f"{PREFIXES[split]}-{kind}.mat.gz" for kind in ("cat", "info"))
    categories = read_matrix(cat_path, INTEGERS, (COUNT,))
    counts = [int(np.count_nonzero(categories == label)) for label in range(len(CLASSES))]
    if counts != [COUNT // len(CLASSES)] * len(CLASSES):
        raise unreadable(cat_path, f"the categories 0 to 4 occur {counts} times, not 4,860 each")
    info = read_matrix(info_path, INTEGERS, (COUNT, len(FACTORS)))
    grid = (INSTANCES[split], tuple(range(9)), tuple(range(0, 36, 2)), tuple(range(6)))
    for factor, codes, known in zip(FACTORS, info.T, grid, strict=True):
        strange = codes[~np.isin(codes, known)]
        if strange.size:
            raise unreadable(info_path, f"it holds the {factor} {strange[0]}, not one of {known}")
    # As many different points as the grid has: the whole grid, and so every viewpoint's share.
    points = len(np.unique(np.column_stack([categories, info]), axis=0))
    if points != COUNT:
        raise unreadable(
            info_path, f"with its -cat file it tells {points:,} pictures apart instead of {COUNT:,}"
        )
    return categories.astype(np.uint8)[:, None], info.astype(np.uint8)


DATASET = Dataset(
    name="smallnorb",
    title="smallNORB, stereo pairs of toys halved to 48×48",
    sources=SOURCES["smallnorb"],
    prepare=prepare,
    parameters={"halving": "average"},
    image_shape=(2, 48, 48),
    classes=CLASSES,
    counts={"train": COUNT, "test": COUNT},
    licence=SOURCES["smallnorb"][0].licence,
    citation=SOURCES["smallnorb"][0].citation,
    factors=FACTORS,
)

VIEWPOINT_COUNTS = {"train": 8_100, "familiar": 8_100, "novel": 16_200}

AZIMUTH = replace(
    DATASET,
    name="smallnorb-azimuth",
    title="smallNORB, trained on a third of the azimuths",
    prepare=partial(prepare_viewpoints, "azimuth"),
    counts=VIEWPOINT_COUNTS,
)

ELEVATION = replace(
    DATASET,
    name="smallnorb-elevation",
    title="smallNORB, trained on a third of the elevations",
    prepare=partial(prepare_viewpoints, "elevation"),
    counts=VIEWPOINT_COUNTS,
)

MONOCULAR = replace(
    DATASET,
    name="smallnorb-monocular",
    title="smallNORB, each camera's image an example of its own",
    prepare=prepare_monocular,
    image_shape=(1, 48, 48),
    counts={split: COUNT * len(CAMERAS) for split in PREFIXES},
    factors=(*FACTORS, "camera"),
)
