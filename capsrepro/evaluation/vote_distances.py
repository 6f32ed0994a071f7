"""How far votes lie from the class capsules, iteration by iteration (EM18 §4, Figs 2 and B.2).

EM18 is Hinton et al. 2018. Its histograms show the "distances of votes to the mean of each of the 5
final capsules after each routing iteration", each "weighted by its assignment probability". Norm
and bins are not said. Here a distance is Euclidean over the sixteen numbers of a pose, between a
vote and the pose of the class capsule that an M-step gives; it is weighted by the R that this
M-step used, and not by the child's activation. A window is a range of distances from 0, cut into
equal bins; a last bin takes whatever is as far as its end or further.

Shape suffixes: B images, T iterations, J classes, N votes, W windows, H bins; I types of children,
X places; R, C, K rows, columns and inner index of poses (see capsrepro/models/votes.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Routed(NamedTuple):
    """What routing made of some images in the class layer.

    Attributes:
        distances: Of the votes to each class capsule, shape (B, T, J, N).
        assignments: R, summing up to 1 over the classes for each vote, shape (B, T, J, N).
        activations: Of the class capsules, shape (B, T, J).
    """

    distances: Tensor
    assignments: Tensor
    activations: Tensor


def route_classes(model: Any, images_BCHW: Tensor) -> Routed:
    """Route some images and look at the class layer after each iteration.

    Args:
        model: A MatrixCapsNet.
        images_BCHW: As the network sees them.

    Returns:
        Everything on the CPU, where sums by bins come out the same every time.
    """
    children = model.conv_caps(model.primary_capsules(images_BCHW))
    votes = model.class_caps.votes(children)
    iterations = model.class_caps.route(children)
    distances = [
        votes.distances(parents.poses, torch.ones_like(parents.poses)).sqrt()
        for parents in iterations
    ]
    assignments = [parents.assignments for parents in iterations]
    activations = [parents.activations for parents in iterations]
    return Routed(*(torch.stack(x, 1).cpu() for x in (distances, assignments, activations)))


def vote_histograms(routed: Routed, windows: Sequence[float], bins: int) -> Tensor:
    """Assignment probability by distance, in each window.

    Args:
        routed: Distances and weights.
        windows: Ends of the windows, all of which begin at 0.
        bins: Equal bins of each.

    Returns:
        Sums of R, shape (B, T, J, W, bins + 1); the last bin is all beyond the window.
    """
    histograms = []
    for window in windows:
        places = (routed.distances * (bins / window)).long().clamp(max=bins)
        histograms.append(weighted_counts(places, routed.assignments, bins + 1))
    return torch.stack(histograms, 3)


def weighted_counts(places: Tensor, weights: Tensor, bins: int) -> Tensor:
    """Sums of the weights that fall into each bin, over the last axis.

    Args:
        places: Bins 0 to bins − 1, int64, any shape (…, N).
        weights: The same shape.
        bins: H.

    Returns:
        Shape (…, H).
    """
    counts = weights.new_zeros((*places.shape[:-1], bins))
    return counts.scatter_add_(-1, places, weights)


def assignment_entropy(assignments_BTJN: Tensor) -> Tensor:
    """Entropy of a child's R over the classes, in nats, mean over the children, shape (B, T)."""
    entropies_BTJN: Tensor = torch.special.entr(assignments_BTJN)
    return entropies_BTJN.sum(2).mean(2)


def class_shares(assignments_BTJN: Tensor) -> Tensor:
    """Share of each class in all that the children assign, shape (B, T, J)."""
    return assignments_BTJN.mean(3)
