"""Showing what a network sees of a data set: the very batches that a run would be given."""

from __future__ import annotations

from pathlib import Path

import torch

from capsrepro.config import load_params
from capsrepro.data.batches import Batch, EvaluationSplit, TrainingStream
from capsrepro.data.loading import load_examples
from capsrepro.data.preparation import find_dataset, prepare_dataset
from capsrepro.errors import UsageError
from capsrepro.project import Project
from capsrepro.report.image_grid import draw_grid
from capsrepro.schema.augmentation import Augmentation
from capsrepro.training.state import stream_seed


def show_images(
    project: Project,
    name: str,
    split: str,
    reading: str | None,
    count: int,
    seed: int,
    out: Path,
) -> str:
    """Draw a labelled grid of one split, preparing the data set first where it is not.

    Args:
        project: Where things are.
        name: Data set.
        split: `train` is drawn as a run of this seed sees its first batch; other splits as an
            evaluation sees them, from the first image on.
        reading: Key of its `augmentations` in params.yaml; the first when None.
        count: Images.
        seed: Root seed of the run.
        out: Picture to write.

    Returns:
        The picture's title.

    Raises:
        UsageError: There is no such data set, split, reading or picture format.
        CapsreproError: The data cannot be got, or the picture cannot be written.
    """
    dataset = find_dataset(name)
    params = load_params(project.params)
    readings = params.augmentations.get(name, {"none": Augmentation(shift_px=0)})
    chosen = reading or next(iter(readings))
    if chosen not in readings:
        raise UsageError(
            f"data set {name} has no reading {chosen} in params.yaml; "
            f"choose one of {', '.join(readings)}."
        )
    prepare_dataset(
        name,
        params.datasets.get(name, {}),
        project.data,
        mirror=project.mirror,
        progress=True,
        manifest_copy=project.manifest_path(name),
    )
    batch = _batch(project, name, split, readings[chosen], count, seed)
    captions = ["+".join(dataset.classes[label] for label in row) for row in batch.labels.tolist()]
    height, width = batch.images.shape[2:]
    title = f"{name} · {split} · {chosen} · seed {seed} · {height}×{width}"
    draw_grid(batch.images.numpy(), captions, title, out)
    return title


def _batch(
    project: Project, name: str, split: str, augmentation: Augmentation, count: int, seed: int
) -> Batch:
    examples = load_examples(name, split, project.data, torch.device("cpu"))
    if split != "train":
        operations = augmentation.operations
        return next(iter(EvaluationSplit(examples, batch_size=count, operations=operations)))
    stream = TrainingStream(
        examples,
        batch_size=count,
        augmentation=augmentation,
        order_seed=stream_seed(seed, "order"),
        augmentation_seed=stream_seed(seed, "augmentation"),
    )
    return stream.batch(0)
