"""Solids: rendered stereo pairs of 50 simple bodies, for machines without smallNORB.

They are not smallNORB and enter no verdict. They are laid out as it is, so that the comparison of
familiar with novel viewpoints (Hinton et al. 2018, §5.1) runs without a download: a split is a full
grid of 5 shapes × 5 solids × 9 elevations (30° to 70°) × 18 azimuths (0° to 340°) × 6 lightings,
each once; no solid is in both splits; factors have smallNORB's names and codes.

`solids_shapes` says why the shapes are what they are, `solids_view` how they are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.dataset import Dataset, Images, Parameter, Split, Splits
from capsrepro.data.smallnorb import (
    FACTORS,
    INSTANCES,
    VIEWPOINT_COUNTS,
    Arrays,
    Viewpoint,
    average,
    part_by_viewpoint,
)
from capsrepro.data.solids_shapes import DRAWS, SHAPES, Solid, shape_solid
from capsrepro.data.solids_view import LIGHTINGS, SIDE_PX, STEREO_DEG, brightness, face_map
from capsrepro.errors import UsageError

CLASSES = tuple(SHAPES)
ELEVATIONS_DEG = range(30, 75, 5)
AZIMUTHS_DEG = range(0, 360, 20)
FRONT_DEG = 350
"""The middle of the familiar azimuths; no picture shows a side exactly head-on."""
MOST = {"instances": len(INSTANCES["train"]), "lightings": len(LIGHTINGS)}
"""Of what may be left out to make the data set smaller."""


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Draw every solid from every viewpoint.

    Args:
        raw_root: Not used: nothing is fetched.
        parameters: `instances`, solids per shape and split, 1..5; `lightings`, 1..6; `seed` of
            the proportions, any whole number.

    Yields:
        `train` and `test`, each 810 · instances · lightings pairs in smallNORB's order (instance,
        elevation, azimuth, lighting, shape, the last fastest): images (count, 2, 48, 48) 0..255,
        whose channels are the left and the right camera, labels (count, 1) 0..4, and smallNORB's
        codes of the factors (count, 4).

    Raises:
        UsageError: `instances` or `lightings` is out of its range.
    """
    for split, arrays in _pairs(parameters):
        yield split, Split(*arrays)


def prepare_viewpoints(
    by: Viewpoint, raw_root: Path, parameters: Mapping[str, Parameter]
) -> Splits:
    """Part the same pairs by whether the viewpoint is one to train on.

    Args:
        by: Which factor makes the viewpoint.
        raw_root: Not used.
        parameters: See `prepare`.

    Returns:
        `train`, the familiar third of the training pairs; `familiar` and `novel`, the familiar
        third and the rest of the test pairs. Arrays as in `prepare`.

    Raises:
        UsageError: `instances` or `lightings` is out of its range.
    """
    return part_by_viewpoint(by, _pairs(parameters))


def make_solid(shape: str, instance: int, seed: int) -> Solid:
    """The solid of a shape and an instance code 0..9; a function of these and the seed alone."""
    import torch

    from capsrepro.data.counters import mix_counters, named_seed, uniform

    numbers = (CLASSES.index(shape) * 10 + instance) * DRAWS + torch.arange(DRAWS)
    draws: list[float] = uniform(mix_counters(named_seed(f"solids/{seed}"), 0, numbers)).tolist()
    return shape_solid(shape, draws)


def _pairs(parameters: Mapping[str, Parameter]) -> Iterator[tuple[str, Arrays]]:
    """The arrays of `prepare`, one split after another."""
    for key, most in MOST.items():
        if not 1 <= int(parameters[key]) <= most:
            raise UsageError(
                f"{key} of the data set of solids is {parameters[key]}; "
                f"set it between 1 and {most}."
            )
    instances, lightings, seed = (
        int(parameters[key]) for key in ("instances", "lightings", "seed")
    )
    for split, codes in INSTANCES.items():
        chosen = codes[:instances]
        yield split, (_draw(chosen, lightings, seed), *_grid(chosen, lightings))


def _grid(
    instances: tuple[int, ...], lightings: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels (count, 1) and factors (count, 4) of the full grid, in order."""
    axes = (
        instances,
        range(len(ELEVATIONS_DEG)),
        range(0, 2 * len(AZIMUTHS_DEG), 2),
        range(lightings),
        range(len(CLASSES)),
    )
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    return points[:, 4:].astype(np.uint8), points[:, :4].astype(np.uint8)


def _draw(instances: tuple[int, ...], lightings: int, seed: int) -> Images:
    """The images of the full grid, in order."""
    viewpoints = (len(ELEVATIONS_DEG), len(AZIMUTHS_DEG))
    pair = (len(STEREO_DEG), SIDE_PX, SIDE_PX)
    images = np.empty((len(instances), *viewpoints, lightings, len(CLASSES), *pair), np.uint8)
    for row, instance in enumerate(instances):
        for label, shape in enumerate(CLASSES):
            _turn(make_solid(shape, instance, seed), images[row, ..., label, :, :, :])
    return images.reshape(-1, *pair)


def _turn(solid: Solid, images: Images) -> None:
    """Draw a solid from everywhere, into (elevations, azimuths, lightings, cameras, 48, 48)."""
    for column, azimuth in enumerate(AZIMUTHS_DEG):
        heading = azimuth - FRONT_DEG
        levels = brightness(solid, heading)[: images.shape[2]]
        for row, elevation in enumerate(ELEVATIONS_DEG):
            for camera, beside in enumerate(STEREO_DEG):
                faces = face_map(solid, heading + beside, elevation)
                images[row, column, :, camera] = average(levels[:, faces])


DATASET = Dataset(
    name="solids",
    title="solids, rendered stereo pairs of simple bodies, 48×48 (generated, not smallNORB)",
    sources=(),
    prepare=prepare,
    parameters={"instances": 5, "lightings": 6, "seed": 0},
    image_shape=(len(STEREO_DEG), SIDE_PX, SIDE_PX),
    classes=CLASSES,
    counts={"train": 24_300, "test": 24_300},
    licence="Apache-2.0",
    citation="The capsrepro authors: Solids, a data set generated by this suite. 2026.",
    factors=FACTORS,
)

AZIMUTH = replace(
    DATASET,
    name="solids-azimuth",
    title="solids, trained on a third of the azimuths (generated, not smallNORB)",
    prepare=partial(prepare_viewpoints, "azimuth"),
    counts=VIEWPOINT_COUNTS,
)

ELEVATION = replace(
    DATASET,
    name="solids-elevation",
    title="solids, trained on a third of the elevations (generated, not smallNORB)",
    prepare=partial(prepare_viewpoints, "elevation"),
    counts=VIEWPOINT_COUNTS,
)
