"""Distances of votes, histograms and entropies, against loops over children and classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_capsnets import random_images
from small_matcaps import matcaps
from torch import Tensor

from capsrepro.evaluation.vote_distances import (
    Routed,
    assignment_entropy,
    class_shares,
    route_classes,
    vote_histograms,
)

NETWORKS = {
    "text": {},
    "code": {"reading": "code"},
    "vector": {"pose": "vector", "coordinates": "first-two"},
    "no coordinates": {"coordinates": "none"},
    "one iteration": {"routing": {"iterations": 1}},
}


def network(name: str) -> Any:
    changes = dict(NETWORKS[name])
    routing = changes.pop("routing", None)
    model = matcaps(**changes)
    if routing:
        model = matcaps(**changes, routing=vars(model.class_caps.how) | routing)
    return model.double()


def images(count: int = 3) -> Tensor:
    return torch.from_numpy(random_images(count)).double() / 255


def printed_votes(layer: Any, poses_XIRK: Tensor) -> np.ndarray:
    """V_ij = M_i W_ij and the place of the child, one child and one class after the other."""
    X, I, _, _ = poses_XIRK.shape
    J = layer.types
    votes = np.empty((X * I, J, 16))
    for x in range(X):
        for i in range(I):
            for j in range(J):
                vote = poses_XIRK[x, i].numpy() @ layer.transforms_KIKJC[0, i, :, j].numpy()
                if layer.offsets is not None:
                    vote = vote + layer.offsets[x * I + i].numpy()
                votes[x * I + i, j] = vote.flatten()
    return votes


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_distances_are_euclidean_between_votes_and_the_poses_of_each_m_step(name: str) -> None:
    model = network(name)
    routed = route_classes(model, images())
    children = model.conv_caps(model.primary_capsules(images()))
    steps = model.class_caps.route(children)
    assert routed.distances.shape == (3, len(steps), 5, 8)
    for b in range(3):
        votes_NJC = printed_votes(model.class_caps, children.poses[b])
        for t, step in enumerate(steps):
            poses_JC = step.poses[b].transpose(0, 1).flatten(1).numpy()
            expected = np.sqrt(((votes_NJC - poses_JC) ** 2).sum(2)).T
            np.testing.assert_allclose(routed.distances[b, t].numpy(), expected, rtol=1e-9)
            assert torch.equal(routed.assignments[b, t], step.assignments[b])
            assert torch.equal(routed.activations[b, t], step.activations[b])
    assert routed.distances.std() > 0.1


@torch.no_grad()
def test_the_votes_are_those_that_the_layer_routes() -> None:
    """Their mean, weighted by activations, is the pose after one iteration: EM18, Procedure 1."""
    model = network("one iteration")
    children = model.conv_caps(model.primary_capsules(images()))
    (step,) = model.class_caps.route(children)
    activations_TN = children.activations.flatten(1)
    fifths_TJN = activations_TN.new_tensor(1 / 5).expand(
        len(activations_TN), 5, activations_TN.shape[1]
    )
    mean = model.class_caps.votes(children).moments(fifths_TJN, activations_TN).mean
    torch.testing.assert_close(step.poses, mean)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_every_vote_is_assigned_once(name: str) -> None:
    routed = route_classes(network(name), images())
    one = torch.ones_like(routed.assignments[:, :, 0])
    torch.testing.assert_close(routed.assignments.sum(2), one)
    assert (routed.assignments[:, 0] == 1 / 5).all()
    shares = class_shares(routed.assignments)
    torch.testing.assert_close(shares.sum(2), torch.ones_like(shares[..., 0]))
    if routed.assignments.shape[1] > 1:
        assert (shares[:, -1].amax(1) > 0.3).any()


@torch.no_grad()
def test_entropy_falls_from_that_of_equal_shares() -> None:
    routed = route_classes(network("text"), images())
    found = assignment_entropy(routed.assignments)
    expected = np.zeros(found.shape)
    for b, t, j, n in np.ndindex(*routed.assignments.shape):
        share = float(routed.assignments[b, t, j, n])
        expected[b, t] -= share * math.log(share) / 8 if share else 0.0
    np.testing.assert_allclose(found.numpy(), expected)
    assert found[:, 0].tolist() == pytest.approx([math.log(5)] * 3)
    assert (found[:, -1] < 0.8 * math.log(5)).all()


def counted(routed: Routed, windows: list[float], bins: int) -> np.ndarray:
    """One vote after the other: bin k holds what is at least k and less than k + 1 bins away."""
    B, T, J, N = routed.distances.shape
    found = np.zeros((B, T, J, len(windows), bins + 1))
    for b, t, j, n in np.ndindex(B, T, J, N):
        distance = float(routed.distances[b, t, j, n])
        for w, window in enumerate(windows):
            edges = [k * window / bins for k in range(1, bins + 1)]
            place = sum(distance >= edge for edge in edges)
            found[b, t, j, w, place] += float(routed.assignments[b, t, j, n])
    return found


@torch.no_grad()
def test_histograms_are_those_of_a_loop() -> None:
    routed = route_classes(network("text"), images())
    windows = [0.5, 2.0, 60.0]
    found = vote_histograms(routed, windows, 7)
    np.testing.assert_allclose(found.numpy(), counted(routed, windows, 7), atol=1e-12)
    # Nothing is lost: what lies beyond a window is in its last bin.
    mass = routed.assignments.sum(3)
    for window in range(3):
        torch.testing.assert_close(found[:, :, :, window].sum(3), mass)
    assert found[:, :, :, 0, :-1].sum() > 0
    assert found[:, :, :, 0, -1].sum() > 0
    assert found[:, :, :, 2, -1].sum() == 0


def test_the_ends_of_bins_belong_to_the_next() -> None:
    distances = torch.tensor([0.0, 0.25, 0.4999, 0.5, 1.0, 1e9]).view(1, 1, 1, 6)
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]).view(1, 1, 1, 6)
    routed = Routed(distances, weights, torch.zeros(1, 1, 1))
    assert vote_histograms(routed, [1.0], 4)[0, 0, 0, 0].tolist() == [1, 6, 8, 0, 48]
