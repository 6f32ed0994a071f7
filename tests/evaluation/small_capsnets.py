"""CapsNets small enough to be looked at image by image, and images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import Batch, EvaluationSplit
from capsrepro.data.composites import Composites, Reading
from capsrepro.data.examples import Drawn, StoredExamples
from capsrepro.models.capsnet import CapsNet

CPU = torch.device("cpu")
PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
FIELDS = resolve_run(PARAMS, "digits/capsnet-r3-recon/seed-0").model.model_dump(
    exclude={"family", "stands_for", "reading"}
)
TWO_DIGITS = {"image_shape": (1, 36, 36), "conv1_kernel": 9, "primary_kernel": 9}


def capsnet(**changes: Any) -> CapsNet:
    """The one of the digits, untrained, with long capsules and pictures that differ by class.

    Its start is numpy's: torch's own differs from version to version.
    """
    fields = {**FIELDS, "primary_scale": 1.0, "image_shape": (1, 8, 8), "classes": 10, **changes}
    model = CapsNet(**fields)
    random = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            start = random.normal(0, (3 * fan_in) ** -0.5, parameter.shape)
            parameter.copy_(torch.from_numpy(start))
        model.transforms_KEID.copy_(
            torch.from_numpy(random.normal(0, 5, model.transforms_KEID.shape))
        )
        if model.bias_KD is not None:
            model.bias_KD.copy_(torch.from_numpy(random.normal(0, 1, model.bias_KD.shape)))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight *= 3
    return model


def random_images(count: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, side, side), np.uint8)


def stored(images: np.ndarray, labels: Any, batch_size: int = 7) -> EvaluationSplit:
    labels = np.array(labels, np.uint8).reshape(len(images), -1)
    return EvaluationSplit(StoredExamples(images, labels, CPU), batch_size=batch_size)


def predictions(model: CapsNet, images: np.ndarray, winners: int = 1) -> np.ndarray:
    """Classes of the longest capsules, shape (N, winners)."""
    with torch.no_grad():
        lengths = model(torch.from_numpy(images).float() / 255)
    return lengths.topk(winners, dim=1).indices.numpy()


def composites(reading: Reading, batch_size: int, count: int) -> EvaluationSplit:
    """Of random 20×20 boxes in 28×28, about a third of each ink, in ten classes."""
    random = np.random.default_rng(0)
    images = np.zeros((1_500, 1, 28, 28), np.uint8)
    ink = random.random((1_500, 1, 5, 5)) < 0.35
    grey = random.integers(100, 256, (1_500, 1, 20, 20))
    images[:, :, 4:24, 4:24] = ink.repeat(4, axis=2).repeat(4, axis=3) * grey
    labels = (random.random((1_500, 1)) ** 1.3 * 10).astype(np.uint8)
    source = Composites(images, labels, reading, "test", CPU)
    return EvaluationSplit(source, batch_size=batch_size, count=count)


class Pairs:
    """Two pictures each, uint8 of shape (N, 2, 1, H, W), and their labels; the image is the sum."""

    has_targets = True
    device = CPU

    def __init__(self, singles: Any, labels: Any) -> None:
        self.singles = torch.from_numpy(np.array(singles, np.uint8))
        self.labels = torch.tensor(labels)
        self.items = len(self.labels)

    def draw(self, items: Tensor, epochs: Tensor) -> Drawn:
        singles = self.singles[items]
        images = singles.int().sum(1).clamp(max=255).to(torch.uint8)
        return Drawn(images, self.labels[items], singles)


def one_by_one(split: EvaluationSplit) -> list[Batch]:
    """Every image of a split as a batch of its own."""
    return [
        Batch(*(part[item : item + 1] for part in batch))
        for batch in split
        for item in range(len(batch.images))
    ]
