"""The whole network against plain loops, in both readings of the paper, gradients included."""

from __future__ import annotations

from typing import Any

import procedure_1
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from capsrepro.models.capsnet import CapsNet
from capsrepro.models.routing import dynamic_routing

TYPES, DIM, CLASSES, CLASS_DIM = 2, 3, 4, 5
# What the two readings say otherwise, as in params.yaml.
READINGS: dict[str, dict[str, Any]] = {
    "text": {"primary_scale": 1.0, "class_bias": False, "margin_loss_reduction": "sum"},
    "code": {"primary_scale": 1 / 32, "class_bias": True, "margin_loss_reduction": "half-mean"},
}


def tiny(reading: str, **changes: Any) -> Any:
    """A CapsNet of 18 primary capsules in float64."""
    torch.manual_seed(0)
    keys: dict[str, Any] = {
        "image_shape": (2, 8, 8),
        "classes": CLASSES,
        "conv1_channels": 3,
        "conv1_kernel": 2,
        "primary_types": TYPES,
        "primary_dim": DIM,
        "primary_kernel": 3,
        "primary_stride": 2,
        "padding": "valid",
        "class_dim": CLASS_DIM,
        "routing_iterations": 3,
        "routing_gradient": "full",
        "none_of_the_above": False,
        "decoder_widths": (6,),
        "reconstruction_weight": 0.05,
        "initial": {
            "conv1_std": None,
            "primary_std": 1.0,
            "transform_std": 1.0,
            "decoder_std": None,
            "bias": 0.1 if reading == "code" else None,
        },
    }
    return CapsNet(**keys | READINGS[reading] | changes).double()


def primary_capsules(model: Any, images: Tensor, scale: float) -> Tensor:
    """u_BEI: the channels of one type at one place are one vector; types first, then rows."""
    features = F.relu(F.conv2d(images, *model.conv1.parameters()))
    maps = F.conv2d(features, model.primary.convolution.weight, stride=2)
    capsules = []
    for image in maps:
        for kind in range(TYPES):
            for row in range(3):
                for column in range(3):
                    channels = slice(kind * DIM, (kind + 1) * DIM)
                    s = scale * image[channels, row, column] + model.primary.bias[channels]
                    capsules.append(procedure_1.squash(s))
    return torch.stack(capsules).view(len(images), TYPES * 9, DIM).transpose(1, 2)


def printed_loss(
    model: Any, reading: str, images: Tensor, labels: list[list[int]], targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Lengths of the class capsules, and the loss: Eq. 4 and §4.1 term by term."""
    children = primary_capsules(model, images, READINGS[reading]["primary_scale"])
    capsules = procedure_1.route_all(
        procedure_1.votes(children, model.transforms_KEID),
        model.routing_iterations,
        model.bias_KD,
        model.none_of_the_above,
    )
    lengths = capsules.square().sum(2).sqrt()
    total = torch.zeros((), dtype=torch.float64)
    for image, present in enumerate(labels):
        for k in range(CLASSES):
            v = lengths[image, k]
            T = float(k in present)
            term = T * torch.relu(0.9 - v) ** 2 + 0.5 * (1 - T) * torch.relu(v - 0.1) ** 2
            total = total + (term if reading == "text" else 0.5 * term / CLASSES)
        for place, k in enumerate(present):
            masked = torch.zeros(CLASSES, CLASS_DIM, dtype=torch.float64)
            masked[k] = capsules[image, k]
            hidden = torch.relu(model.decoder.layers[0](masked.flatten()))
            drawn = torch.sigmoid(model.decoder.layers[2](hidden))
            total = total + 0.05 * ((drawn - targets[image, place].flatten()) ** 2).sum()
    return lengths, total / len(labels)


@pytest.mark.parametrize("labels", [[[3], [0]], [[3, 1], [0, 2]]], ids=["one digit", "two digits"])
@pytest.mark.parametrize("none_of_the_above", [False, True])
@pytest.mark.parametrize("reading", READINGS)
def test_loss_and_gradients_are_those_of_the_loops(
    reading: str, none_of_the_above: bool, labels: list[list[int]]
) -> None:
    model = tiny(reading, none_of_the_above=none_of_the_above)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 2, 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.rand(2, len(labels[0]), 2, 8, 8, generator=generator, dtype=torch.float64)
    wanted = [images, *model.parameters()]
    lengths, printed = printed_loss(model, reading, images, labels, targets)
    loss, terms, scores = model.objective(images, torch.tensor(labels), targets)
    torch.testing.assert_close(scores, lengths, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss, printed, rtol=1e-5, atol=1e-7)
    assert loss.item() == pytest.approx(
        (terms["margin_loss"] + 0.05 * terms["reconstruction_sse"]).item()
    )
    expected = torch.autograd.grad(printed, wanted)
    for gradient, other in zip(torch.autograd.grad(loss, wanted), expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("none_of_the_above", [False, True])
def test_network_agrees_with_routing_over_votes(none_of_the_above: bool) -> None:
    model = tiny("code", none_of_the_above=none_of_the_above)
    images = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    children = model.primary(F.relu(model.conv1(images)))
    votes = torch.einsum("bei,jeid->bijd", children, model.transforms_KEID)
    capsules = dynamic_routing(votes, 3, bias_JD=model.bias_KD, none_of_the_above=none_of_the_above)
    torch.testing.assert_close(model.class_capsules(images), capsules)


def test_readings_are_twenty_times_apart_in_what_a_reconstruction_counts() -> None:
    # paper_spec A1: 0.0005 beside 1/20 of Eq. 4's sum is 0.01 beside the sum, for ten classes.
    images, labels = torch.rand(3, 2, 8, 8, dtype=torch.float64), torch.tensor([[1], [9], [5]])
    shares = []
    for reduction in ("sum", "half-mean"):
        model = tiny("text", classes=10, margin_loss_reduction=reduction)
        loss, terms, _ = model.objective(images, labels, images.unsqueeze(1))
        shares.append((loss - terms["margin_loss"]) / terms["margin_loss"])
    assert (shares[1] / shares[0]).item() == pytest.approx(20)
