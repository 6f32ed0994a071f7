"""MultiMNIST: pairs of overlapping MNIST digits (DR17 §6), three readings of how they are placed.

What is prepared are the single digits; `composites.py` makes the pairs on the device. The notes of
the manifest hold what was measured on them: how much the digits overlap, and the hash of the first
composites, which every machine must draw alike.

The paper shifts each digit by up to 4 pixels and states an overlap of 80 %: these contradict each
other, and the authors' program does a third thing (paper_spec A6). None of the readings is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from capsrepro.data import mnist
from capsrepro.data.dataset import Dataset, Note, Parameter, Split, Splits
from capsrepro.data.sources import SOURCES
from capsrepro.errors import UsageError

if TYPE_CHECKING:
    import torch

    from capsrepro.data.composites import Composites, Reading

LARGEST_SHIFT_PX = 8
CHOICES = {"placement": ("independent", "relative"), "base_shift": ("composite", "shared")}
HASHED = 1_000
MEASURED = 600_000


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Read the single digits and measure the composites made of them.

    Args:
        raw_root: Folder that holds `mnist/` with the official files.
        parameters: `shift_px`, 0..8; `placement` and `base_shift`, see `CHOICES`.

    Yields:
        `train` and `test`: the single digits, images (count, 1, 28, 28), labels (count, 1).

    Raises:
        UsageError: A parameter is impossible.
        CapsreproError: A file is missing or is not what it should be.
    """
    import torch

    reading = reading_of(parameters)
    for name, split in mnist.prepare(raw_root, {}):
        composites = composites_of(split, reading, name, torch.device("cpu"))
        yield name, split._replace(notes=_measured(composites))


def reading_of(parameters: Mapping[str, Parameter]) -> Reading:
    """The reading that the parameters name.

    Raises:
        UsageError: A parameter is impossible.
    """
    from capsrepro.data.composites import Reading

    shift_px = int(parameters["shift_px"])
    if not 0 <= shift_px <= LARGEST_SHIFT_PX:
        raise UsageError(
            f"shift_px of MultiMNIST is {shift_px}; set it between 0 and {LARGEST_SHIFT_PX}."
        )
    for key, known in CHOICES.items():
        if parameters[key] not in known:
            raise UsageError(
                f"{key} of MultiMNIST is {parameters[key]!r}; set it to {' or '.join(known)}."
            )
    return Reading(shift_px, parameters["placement"], parameters["base_shift"])  # type: ignore[arg-type]


def composites_of(split: Split, reading: Reading, name: str, device: torch.device) -> Composites:
    """The composites that a prepared split stands for."""
    from capsrepro.data.composites import Composites

    return Composites(split.images, split.labels, reading, name, device)


def _measured(composites: Composites) -> dict[str, Note]:
    import torch

    from capsrepro.data.composites import PARTNERS, box_overlap

    count = composites.items * PARTNERS
    index = torch.arange(MEASURED) * (count // MEASURED) + torch.arange(MEASURED) % PARTNERS
    overlap = box_overlap(composites, index.clamp(max=count - 1)).mean().item()
    items = torch.arange(HASHED)
    found = hashlib.sha256()
    for tensor in composites.draw(items, torch.zeros_like(items)):
        assert tensor is not None
        found.update(tensor.numpy().tobytes())
    return {
        "composites": count,
        "mean_box_overlap_pct": round(100 * overlap, 3),
        "first_composites_sha256": found.hexdigest(),
    }


def _row(name: str, title: str, parameters: Mapping[str, Parameter]) -> Dataset:
    return Dataset(
        name=name,
        title=title,
        sources=SOURCES["mnist"],
        prepare=prepare,
        parameters=parameters,
        image_shape=(1, 36, 36),
        classes=mnist.CLASSES,
        counts={"train": 60_000_000, "test": 10_000_000},
        licence=SOURCES["mnist"][0].licence,
        citation=SOURCES["mnist"][0].citation,
        labels_per_image=2,
    )


TEXT = _row(
    "multimnist",
    "MultiMNIST, 36×36: both digits shifted by up to 4 px (the paper's sentence)",
    {"shift_px": 4, "placement": "independent", "base_shift": "composite"},
)
RELATIVE = _row(
    "multimnist-relative",
    "MultiMNIST, 36×36: one digit shifted by up to 4 px (the paper's 80 % overlap)",
    {"shift_px": 4, "placement": "relative", "base_shift": "composite"},
)
CODE = _row(
    "multimnist-code",
    "MultiMNIST, 36×36: both digits shifted by up to 6 px (the authors' command)",
    {"shift_px": 6, "placement": "independent", "base_shift": "shared"},
)
