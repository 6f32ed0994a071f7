"""The parts of a run, made from its specification: data, model, batches."""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from capsrepro.config import RunSpec
from capsrepro.data.augmentation import seen_shape
from capsrepro.data.batches import EvaluationSplit, TrainingStream
from capsrepro.data.loading import load_examples
from capsrepro.data.preparation import find_dataset, prepare_dataset
from capsrepro.data.prepared import Manifest
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.models import MODELS
from capsrepro.models.convolution import Conv2d
from capsrepro.project import Project
from capsrepro.training import loop, state

# Whole vectors of 16 images, and whole tiles of 128.
_EVALUATION_BATCH = 256


def build_model(spec: RunSpec, device: torch.device) -> nn.Module:
    """A fresh model of a run, started from its seed: the same on every device.

    Raises:
        UsageError: The device does not have the precision of the recipe.
        CapsreproError: The model does not fit the images.
    """
    state.check_precision(spec.protocol.recipe.precision, device)
    dataset = find_dataset(spec.protocol.dataset)
    fields = spec.model.model_dump(exclude={"family", "stands_for", "reading"})
    if "primary_scale" in fields:
        fields["primary_scale"] = float(Fraction(fields["primary_scale"]))
    torch.manual_seed(state.stream_seed(spec.seed, "init"))
    try:
        shape = seen_shape(dataset.image_shape, spec.protocol.recipe.operations)
        model: nn.Module = MODELS[spec.model.family](
            image_shape=shape, classes=len(dataset.classes), **fields
        )
    except ValueError as error:
        raise CapsreproError(
            f"model {spec.model_name} does not fit the images of {dataset.name}: {error}; "
            "choose another model or change it in params.yaml."
        ) from error
    loop.set_precision(model, spec.protocol.recipe.precision)
    # From here on the random state serves dropout alone.
    torch.manual_seed(state.stream_seed(spec.seed, "dropout"))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    exact_on_gpu = device.type == "cuda" and spec.protocol.recipe.precision == "float32"
    if not exact_on_gpu or any(isinstance(m, Conv2d) and m.by_tiles(device) for m in convolutions):
        for module in convolutions:
            # Faster (docs/performance.md); the layout of the transforms must stay as it is.
            module.to(memory_format=torch.channels_last)
    return model.to(device)


def classification_loss(spec: RunSpec) -> str:
    """Name of the loss that a run's model is trained on, without building it."""
    chosen = getattr(spec.model, "classification_loss", None)
    family: Any = MODELS[spec.model.family]
    return str(chosen or family.classification_loss)


def try_step(model: nn.Module, spec: RunSpec, device: torch.device) -> None:
    """One step on black images, so that a lack of memory shows before anything is downloaded."""
    dataset = find_dataset(spec.protocol.dataset)
    size = spec.protocol.recipe.batch_size
    shape = seen_shape(dataset.image_shape, spec.protocol.recipe.operations)
    images = torch.zeros(size, *shape, device=device)
    labels = torch.arange(dataset.labels_per_image, device=device).expand(size, -1)
    targets = images.unsqueeze(1).expand(-1, dataset.labels_per_image, *shape)
    model.objective(images, labels, targets).loss.backward()  # type: ignore[operator]
    model.zero_grad(set_to_none=True)
    torch.manual_seed(state.stream_seed(spec.seed, "dropout"))


def training_stream(project: Project, spec: RunSpec, device: torch.device) -> TrainingStream:
    """The augmented training batches of a run."""
    recipe = spec.protocol.recipe
    return TrainingStream(
        load_examples(
            spec.protocol.dataset, "train", project.data, device, first=recipe.validation_images
        ),
        batch_size=recipe.batch_size,
        augmentation=recipe,
        order_seed=state.stream_seed(spec.seed, "order"),
        augmentation_seed=state.stream_seed(spec.seed, "augmentation"),
    )


def check_test_images(spec: RunSpec) -> None:
    """Only of composites can there be more than are stored.

    Raises:
        UsageError: The protocol asks for a number of test images where each holds one digit.
    """
    dataset, count = find_dataset(spec.protocol.dataset), spec.protocol.test_images
    if count is not None and dataset.labels_per_image == 1:
        raise UsageError(
            f"protocols.{spec.protocol_name}.test_images asks for {count:,} composites, but "
            f"{dataset.name} has single images; remove the key from params.yaml."
        )


def evaluation_split(
    project: Project, spec: RunSpec, split: str, device: torch.device, count: int | None = None
) -> EvaluationSplit:
    """A split of a run's data set as it is evaluated; `validation` is the held-out images.

    Of composites there are as many as `count` asks for; every item once when it is None.

    Where the training stops by a rule on the held-out images, each has its own fixed shift, like
    the test images of the paper's rule.
    """
    recipe = spec.protocol.recipe
    name, operations = spec.protocol.dataset, recipe.operations
    if split != "validation":
        examples = load_examples(name, split, project.data, device)
        return EvaluationSplit(
            examples, batch_size=_EVALUATION_BATCH, operations=operations, count=count
        )
    held_out = load_examples(name, "train", project.data, device, end=recipe.validation_images)
    return EvaluationSplit(
        held_out,
        batch_size=_EVALUATION_BATCH,
        operations=operations,
        shift_px=recipe.shift_px if recipe.stop else 0,
    )


def measured_splits(spec: RunSpec) -> dict[str, str]:
    """Metric of each split that a trained run is tested on."""
    return spec.protocol.measured or {"test": "test_error_pct"}


def prepare_data(project: Project, spec: RunSpec) -> Manifest:
    """Have the run's data set prepared here; quick when it is."""
    return prepare_dataset(
        spec.protocol.dataset,
        spec.dataset_parameters,
        project.data,
        mirror=project.mirror,
        progress=sys.stderr.isatty(),
        manifest_copy=project.manifest_path(spec.protocol.dataset),
    )
