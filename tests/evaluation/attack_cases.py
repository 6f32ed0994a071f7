"""Networks, images and attacks for the tests of robustness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.evaluation.attacks import Clean
from capsrepro.models.losses import ATTACKED_LOSSES, present
from capsrepro.running.assembly import build_model
from capsrepro.schema.attacks import AttackSpec
from capsrepro.schema.augmentation import Operation

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")
LOSSES = {"cnn-baseline": "cross-entropy", "capsnet-r3-recon": "margin"}
"""The networks of the digits, and what each is trained on."""


def network(name: str) -> nn.Module:
    """Untrained, but with predictions that differ between images and can be changed."""
    model = build_model(resolve_run(PARAMS, f"digits/{name}/seed-0"), CPU).eval()
    if name == "cnn-baseline":
        with torch.no_grad():
            model.layers[-1].bias -= model(as_tensors(*random_images())[0]).mean(0)
    return model


def random_images(count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return (
        random.integers(0, 256, (count, 1, 8, 8), np.uint8),
        random.integers(0, 10, (count, 1), np.uint8),
    )


def said_images(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Random images, labelled as the model takes them."""
    images, labels = random_images()
    with torch.no_grad():
        labels[:, 0] = model(as_tensors(images, labels)[0]).argmax(1).numpy()
    return images, labels


def as_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images) / 255, torch.from_numpy(labels).long()


def split_of(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 10,
    operations: tuple[Operation, ...] = (),
) -> EvaluationSplit:
    examples = StoredExamples(images, labels, CPU)
    return EvaluationSplit(examples, batch_size=batch_size, operations=operations)


def attack(method: str = "fgsm", **changes: Any) -> AttackSpec:
    """An attack in raw pixels."""
    fields = {"models": (), "method": method, "loss": "own", "epsilons": (0, "16/255")}
    return AttackSpec.model_validate({**fields, **changes})


def clean(images: Tensor, labels: Tensor) -> Clean:
    """Images in [0, 1], from the first of a split on."""
    white = torch.ones_like(images[:, :1, :1, :1])
    return Clean(images, labels, torch.arange(len(images)), 0 * white, white, white)


def rising(model: nn.Module, loss: str) -> Any:
    """What an untargeted attack on this loss raises."""

    def rise(images: Tensor, labels: Tensor) -> Tensor:
        scores = model(images)
        return ATTACKED_LOSSES[loss](scores, present(labels, scores.shape[1]))

    return rise


class Linear(nn.Module):
    """Scores (w·x, -w·x): for class 0 the loss rises against w, for class 1 along it."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, images: Tensor) -> Tensor:
        product = images.flatten(1) @ self.weights
        return torch.stack([product, -product], dim=1)


class Saturated(nn.Module):
    """Lengths 0.95 and 0.05 for bright images: their margin loss is 0, and so is its gradient."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.flatten(1).mean(1)
        return torch.stack([0.95 * brightness, 0.05 * brightness], dim=1)


class Pixel(nn.Module):
    """Class 0 where the first pixel shown is above a level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, images: Tensor) -> Tensor:
        above = images[:, 0, 0, 0] - self.level
        return torch.stack([above, -above], dim=1)
