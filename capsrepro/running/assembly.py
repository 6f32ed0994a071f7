"""The parts of a run, made from its specification: data, model, batches."""

from __future__ import annotations

import sys
from fractions import Fraction

import torch
from torch import nn

from capsrepro.config import RunSpec
from capsrepro.data.batches import EvaluationSplit, TrainingStream
from capsrepro.data.preparation import find_dataset, prepare_dataset
from capsrepro.data.prepared import Manifest, load_split
from capsrepro.errors import CapsreproError
from capsrepro.models import MODELS
from capsrepro.project import Project
from capsrepro.training import loop, state

_EVALUATION_BATCH = 250


def build_model(spec: RunSpec, device: torch.device) -> nn.Module:
    """A fresh model of a run, started from its seed: the same on every device."""
    dataset = find_dataset(spec.protocol.dataset)
    fields = spec.model.model_dump(exclude={"family", "stands_for", "reading"})
    if "primary_scale" in fields:
        fields["primary_scale"] = float(Fraction(fields["primary_scale"]))
    torch.manual_seed(state.stream_seed(spec.seed, "init"))
    try:
        model: nn.Module = MODELS[spec.model.family](
            image_shape=dataset.image_shape, classes=len(dataset.classes), **fields
        )
    except ValueError as error:
        raise CapsreproError(
            f"model {spec.model_name} does not fit the images of {dataset.name}: {error}; "
            "choose another model or change it in params.yaml."
        ) from error
    loop.set_precision(model, spec.protocol.recipe.precision)
    # From here on the random state serves dropout alone.
    torch.manual_seed(state.stream_seed(spec.seed, "dropout"))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # Faster (docs/performance.md); the layout of the transforms must stay as it is.
            module.to(memory_format=torch.channels_last)
    return model.to(device)


def try_step(model: nn.Module, spec: RunSpec, device: torch.device) -> None:
    """One step on black images, so that a lack of memory shows before anything is downloaded."""
    dataset = find_dataset(spec.protocol.dataset)
    size = spec.protocol.recipe.batch_size
    images = torch.zeros(size, *dataset.image_shape, device=device)
    labels = torch.zeros(size, 1, dtype=torch.long, device=device)
    model.objective(images, labels, images.unsqueeze(1)).loss.backward()  # type: ignore[operator]
    model.zero_grad(set_to_none=True)
    torch.manual_seed(state.stream_seed(spec.seed, "dropout"))


def training_stream(project: Project, spec: RunSpec, device: torch.device) -> TrainingStream:
    """The augmented training batches of a run."""
    split = load_split(spec.protocol.dataset, "train", project.data)
    return TrainingStream(
        split.images,
        split.labels,
        batch_size=spec.protocol.recipe.batch_size,
        shift_px=spec.protocol.recipe.shift_px,
        order_seed=state.stream_seed(spec.seed, "order"),
        augmentation_seed=state.stream_seed(spec.seed, "augmentation"),
        device=device,
    )


def test_split(project: Project, spec: RunSpec, device: torch.device) -> EvaluationSplit:
    """The test images of a run's data set."""
    split = load_split(spec.protocol.dataset, "test", project.data)
    return EvaluationSplit(split.images, split.labels, batch_size=_EVALUATION_BATCH, device=device)


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
