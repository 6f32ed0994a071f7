"""Losses of Sabour et al. 2017 (DR17) and Hinton et al. 2018 (EM18).

Each is per image, so that training and attacks share it.

Shape suffixes: B images, K classes, L labels per image, C channels, H rows, W columns.
Every classification loss takes scores_BK and present_BK (1 where a class is in the image, else 0)
and returns one value per image; reducing over the batch is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MarginReduction = Literal["sum", "half-mean"]


class Objective(NamedTuple):
    """What one training step needs from a model.

    Attributes:
        loss: Scalar to minimise.
        terms: Its parts before weighting, batch means, by metric name.
        scores: Class scores of shape (B, K); the largest is the prediction.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    scores: Tensor


def present(labels_BL: Tensor, classes: int) -> Tensor:
    """Multi-hot labels: shape (B, K), 1 for every class that is in the image."""
    classes_K = torch.arange(classes, device=labels_BL.device)
    return (labels_BL.unsqueeze(2) == classes_K).any(1).float()


def margin_loss(
    lengths_BK: Tensor, present_BK: Tensor, reduction: MarginReduction = "sum"
) -> Tensor:
    """DR17 Eq. 4 with m⁺ = 0.9, m⁻ = 0.1, λ = 0.5.

    Args:
        lengths_BK: Capsule lengths, used as they are: a softmax could never reach 0.9.
        present_BK: See the module.
        reduction: `sum` over classes is the paper's; the authors' code halves every term and
            takes the mean over classes, which is 1/20 of the sum for ten classes.

    Returns:
        Shape (B,).
    """
    missed_BK = present_BK * F.relu(0.9 - lengths_BK).square()
    false_BK = 0.5 * (1 - present_BK) * F.relu(lengths_BK - 0.1).square()
    terms_BK = missed_BK + false_BK
    return terms_BK.sum(1) if reduction == "sum" else 0.5 * terms_BK.mean(1)


def cross_entropy(logits_BK: Tensor, present_BK: Tensor) -> Tensor:
    """Softmax cross-entropy in nats, shape (B,); with several labels, their mean."""
    shares_BK = present_BK / present_BK.sum(1, keepdim=True)
    return -(shares_BK * logits_BK.log_softmax(1)).sum(1)


def sigmoid_cross_entropy(logits_BK: Tensor, present_BK: Tensor) -> Tensor:
    """One yes-or-no question per class: their cross-entropies in nats, summed, shape (B,)."""
    return F.binary_cross_entropy_with_logits(logits_BK, present_BK, reduction="none").sum(1)


def halved_sigmoid_cross_entropy(logits_BK: Tensor, present_BK: Tensor) -> Tensor:
    """What the authors' code calls sigmoid: a class that is present has the target ½.

    Returns:
        Mean (not sum) over classes in nats, shape (B,). Its least value is not 0: with two of ten
        classes present it is 0.139, ln 2 for each of them.
    """
    halves_BK = present_BK / 2
    return F.binary_cross_entropy_with_logits(logits_BK, halves_BK, reduction="none").mean(1)


def spread_loss(activations_BK: Tensor, present_BK: Tensor, margin: float | Tensor = 0.9) -> Tensor:
    """EM18 Eq. 3: Σ_{i≠t} max(0, m − (a_t − a_i))², shape (B,).

    Args:
        activations_BK: In [0, 1].
        present_BK: See the module; exactly one class present.
        margin: m, 0.9 at the end of training.
    """
    target_B1 = (activations_BK * present_BK).sum(1, keepdim=True)
    excess_BK = F.relu(margin - (target_B1 - activations_BK))
    return ((1 - present_BK) * excess_BK.square()).sum(1)


def logit_difference(scores_BK: Tensor, present_BK: Tensor) -> Tensor:
    """How far the best wrong class is ahead of the last right one, shape (B,); for attacks alone.

    Above 0 exactly where an image is classified wrong. Unlike the losses that end at a margin it
    has a slope wherever the scores have one (Carlini and Wagner 2017, §IV-A, f₆ without its max).
    """
    wrong_BK = scores_BK.masked_fill(present_BK > 0, -torch.inf)
    right_BK = scores_BK.masked_fill(present_BK == 0, torch.inf)
    return wrong_BK.amax(1) - right_BK.amin(1)


def reconstruction_sse(images_BLCHW: Tensor, targets_BLCHW: Tensor) -> Tensor:
    """Sum (not mean) of squared pixel differences over everything but the batch (DR17 §4.1).

    With several labels that is the sum of their reconstruction losses (§6.2).
    """
    return (images_BLCHW - targets_BLCHW).square().flatten(1).sum(1)


CLASSIFICATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": margin_loss,
    "spread": spread_loss,
    "cross-entropy": cross_entropy,
    "sigmoid-cross-entropy": sigmoid_cross_entropy,
    "sigmoid-cross-entropy-halved": halved_sigmoid_cross_entropy,
}

ATTACKED_LOSSES = {**CLASSIFICATION_LOSSES, "logit-difference": logit_difference}
"""What an attack may follow."""
