"""Adversarial robustness: FGSM (Goodfellow et al. 2015), as Hinton et al. 2018, Section 6, use it.

A few lines of our own, because libraries attack the cross-entropy of logits, and for capsules the
loss attacked changes the answer. Images and ε are in raw pixels: black is 0, white is 1.

Shape suffixes: B images, C channels, H rows, W columns, K classes, L labels per image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.errors import UsageError
from capsrepro.models.losses import CLASSIFICATION_LOSSES, present
from capsrepro.models.predictions import correct


def attacked_loss(own: str, loss: str) -> str:
    """The name of the loss an attack follows: `own` is the one the model is trained on.

    Args:
        own: The loss that the model is trained on.
        loss: `own` or a key of `CLASSIFICATION_LOSSES`.

    Raises:
        UsageError: There is no loss of this name.
    """
    name = own if loss == "own" else loss
    if name not in CLASSIFICATION_LOSSES:
        known = ", ".join(["own", *CLASSIFICATION_LOSSES])
        raise UsageError(f"unknown loss {loss!r} to attack; choose one of {known}.")
    return name


def input_gradient(model: nn.Module, images_BCHW: Tensor, labels_BL: Tensor, loss: str) -> Tensor:
    """Gradient of each image's classification loss with respect to its own pixels.

    Args:
        model: Returns class scores_BK; in evaluation mode.
        images_BCHW: In [0, 1].
        labels_BL: True classes.
        loss: A key of `CLASSIFICATION_LOSSES`.

    Returns:
        Same shape as the images. The loss is summed over the batch, so that a small batch share
        cannot round small gradients to zero.
    """
    pixels = images_BCHW.detach().clone().requires_grad_()
    scores_BK = model(pixels)
    per_image = CLASSIFICATION_LOSSES[loss](scores_BK, present(labels_BL, scores_BK.shape[1]))
    (gradient,) = torch.autograd.grad(per_image.sum(), pixels)
    return gradient


def fgsm_step(images_BCHW: Tensor, gradient_BCHW: Tensor, epsilon: float) -> Tensor:
    """Return x + ε·sign(∇), kept in [0, 1]; a pixel with zero gradient stays as it is."""
    return (images_BCHW + epsilon * gradient_BCHW.sign()).clamp(0, 1)


def measure_fgsm(
    model: nn.Module, split: EvaluationSplit, epsilons: Sequence[float], loss: str
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Accuracy of the whole split under FGSM at every ε; the clean gradient is computed once.

    Args:
        model: The trained model.
        split: Test images.
        epsilons: L∞ radii in raw pixels, each ≥ 0.
        loss: As `attacked_loss` returns it.

    Returns:
        Metrics (`zero_gradient_pct`: images whose gradient is zero everywhere; they cannot be
        attacked this way and make a model look robust; `test_images`), and curves (`epsilon`,
        `accuracy_pct`).

    Raises:
        UsageError: An ε is negative.
    """
    if any(epsilon < 0 for epsilon in epsilons):
        raise UsageError(f"ε must not be negative, but {min(epsilons)} was given; use 0 or more.")
    model.eval()
    right = [0] * len(epsilons)
    zero = 0
    for batch in split:
        gradient_BCHW = input_gradient(model, batch.images, batch.labels, loss)
        zero += int((gradient_BCHW == 0).flatten(1).all(1).sum())
        with torch.inference_mode():
            for index, epsilon in enumerate(epsilons):
                attacked = fgsm_step(batch.images, gradient_BCHW, epsilon)
                right[index] += int(correct(model(attacked), batch.labels).sum())
    metrics = {"zero_gradient_pct": 100 * zero / split.items, "test_images": float(split.items)}
    accuracy_pct = [100 * hits / split.items for hits in right]
    return metrics, {"epsilon": list(epsilons), "accuracy_pct": accuracy_pct}
