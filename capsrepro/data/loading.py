"""A prepared split, put on the device in the form that batches are drawn from."""

from __future__ import annotations

from pathlib import Path

import torch

from capsrepro.data.examples import Examples, StoredExamples
from capsrepro.data.multimnist import composites_of, reading_of
from capsrepro.data.preparation import find_dataset
from capsrepro.data.prepared import load_split, read_manifest
from capsrepro.errors import UsageError


def load_examples(
    name: str,
    split: str,
    data_root: Path,
    device: torch.device,
    *,
    first: int = 0,
    end: int | None = None,
) -> Examples:
    """Load one split of a prepared data set.

    Args:
        name: A key of `DATASETS`.
        split: One of its splits.
        data_root: Root of the data folders.
        device: Where to keep it.
        first: First stored image to take.
        end: One behind the last; all when None.

    Returns:
        Its stored images, or the composites of a data set whose images are pairs.

    Raises:
        CapsreproError: The data set is not prepared, or its file is missing or changed.
        UsageError: There is no such data set or split.
    """
    dataset = find_dataset(name)
    arrays = load_split(name, split, data_root)
    taken, stored = slice(first, end), len(arrays.images)
    arrays = arrays._replace(images=arrays.images[taken], labels=arrays.labels[taken])
    if not len(arrays.images):
        raise UsageError(
            f"split {split} of data set {name} has {stored:,} images and none left when the first "
            f"{first:,} are held out; hold out fewer (validation_images), or one at least."
        )
    if dataset.labels_per_image == 1:
        return StoredExamples(arrays.images, arrays.labels, device)
    reading = reading_of(read_manifest(name, data_root)["parameters"])
    return composites_of(arrays, reading, split, device)
