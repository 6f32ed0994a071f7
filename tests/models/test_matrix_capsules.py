import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from capsrepro.config import load_params
from capsrepro.models.capsule_layers import POSES, Capsules, MatrixPrimaryCapsules
from capsrepro.models.losses import margin_loss, present, spread_loss
from capsrepro.models.matrix_capsules import MatrixCapsNet

NORB = Path(__file__).parents[3] / "shared/datasets/smallnorb-sample"
SHIPPED = load_params(Path(__file__).parents[2] / "params.yaml").models["matrix-capsules"]
TEXT: dict[str, Any] = {
    "image_shape": (2, 32, 32),
    "classes": 5,
    "conv1_channels": 64,
    "conv1_kernel": 5,
    "conv1_stride": 2,
    "primary_types": 8,
    "primary_shift": 0.0,
    "conv_types": (16, 16),
    "conv_kernels": (3, 3),
    "conv_strides": (2, 1),
    "pose": "matrix",
    "coordinates": "right-column",
    "coordinate_scale": 1 / 32,
    "routing": {
        "iterations": 3,
        "activation": "procedure-1",
        "assignment": "sum",
        "inverse_temperature": 0.01,
        "variance_floor": 1e-6,
        "new_share": 1.0,
    },
    "class_temperature_share": 1.0,
    "shared_beta": False,
    "classification_loss": "spread",
    "loss_reduction": "sum",
    "initial": SHIPPED["matcaps-em3"].initial.model_dump(),
}
CODE = TEXT | {
    "primary_shift": -1.0,
    "coordinates": "first-two",
    "coordinate_scale": 0.01,
    "routing": TEXT["routing"]
    | {"activation": "released-code", "variance_floor": 5e-4, "new_share": 0.9},
    "class_temperature_share": 0.25,
    "loss_reduction": "mean",
    "initial": SHIPPED["matcaps-em3-code"].initial.model_dump(),
}
LARGE = {"conv1_channels": 32, "primary_types": 32, "conv_types": (32, 32)}
TINY = {"conv1_channels": 4, "primary_types": 2, "conv_types": (3, 2)}
READINGS = pytest.mark.parametrize("reading", [TEXT, CODE], ids=["text", "code"])


def net(reading: dict[str, Any] = TEXT, **changes: Any) -> MatrixCapsNet:
    torch.manual_seed(0)
    return MatrixCapsNet(**reading | changes)


def noise(images: int, *shape: int) -> Tensor:
    return torch.randn(images, *shape, generator=torch.Generator().manual_seed(1))


def layers(model: MatrixCapsNet, images: Tensor) -> list[Capsules]:
    """Primary capsules and everything that is routed from them."""
    found = [model.primary_capsules(images)]
    for layer in model.routed_layers:
        found.append(layer(found[-1]))
    return found


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Sizes


@pytest.mark.parametrize(("sizes", "total"), [(LARGE, 316_650), ({}, 68_618)])
def test_parameters_are_those_of_the_paper(sizes: dict[str, Any], total: int) -> None:
    model = net(**sizes)
    assert count(model) == total
    assert [name for name, _ in model.named_children()] == [
        "conv1",
        "primary",
        "conv_caps",
        "class_caps",
    ]
    A, B = model.conv1.out_channels, model.primary.types
    C, D = (layer.types for layer in model.conv_caps)
    assert count(model.conv1) == 25 * 2 * A + A
    assert count(model.primary) == A * B * (16 + 1)
    assert count(model.conv_caps[0]) == 9 * B * C * 16 + 2 * C
    assert count(model.conv_caps[1]) == 9 * C * D * 16 + 2 * D
    assert count(model.class_caps) == D * 5 * 16 + 2 * 5


def test_a_vector_has_sixteen_times_the_transforms() -> None:
    model = net(pose="vector")
    first, second = model.conv_caps
    assert first.transforms_KIKJC.numel() == 9 * 8 * 16 * 256
    assert second.transforms_KIKJC.numel() == 9 * 16 * 16 * 256
    assert model.class_caps.transforms_KIKJC.numel() == 16 * 5 * 256
    assert count(model.primary) == count(net().primary)
    poses = [capsules.poses.shape[3:] for capsules in layers(model, noise(1, 2, 32, 32))]
    assert poses == [(1, 16)] * 4


def test_shared_betas_are_one_pair_per_layer() -> None:
    assert count(net()) - count(net(shared_beta=True)) == 2 * (15 + 15 + 4)


@pytest.mark.parametrize("pose", POSES)
@pytest.mark.parametrize(
    ("image_shape", "sides"),
    [((2, 32, 32), (14, 6, 4)), ((1, 28, 28), (12, 5, 3)), ((3, 24, 24), (10, 4, 2))],
)
@READINGS
def test_every_layer_has_its_size_and_every_parameter_a_gradient(
    reading: dict[str, Any], image_shape: tuple[int, int, int], sides: tuple[int, ...], pose: str
) -> None:
    model = net(reading, image_shape=image_shape, pose=pose, classes=10, **TINY)
    images = noise(3, *image_shape)
    for capsules, side, types in zip(
        layers(model, images), (*sides, 1), (2, 3, 2, 10), strict=True
    ):
        assert capsules.poses.shape == (3, side**2, types, *POSES[pose])
        assert capsules.activations.shape == (3, side**2, types)
    objective = model.objective(images, torch.tensor([[0], [9], [4]]), images)
    assert objective.scores.shape == (3, 10)
    objective.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_images_must_be_square_and_large_enough() -> None:
    with pytest.raises(ValueError, match="32x28 pixels are not square"):
        net(image_shape=(2, 32, 28))
    with pytest.raises(ValueError, match="3x3 kernel does not fit into 2x2 capsules"):
        net(image_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="3x3 kernel does not fit"):
        net(image_shape=(1, 16, 16))


# Primary capsules


def test_a_primary_capsule_is_its_own_channels_at_one_place() -> None:
    torch.manual_seed(0)
    primary = MatrixPrimaryCapsules(6, 3, "matrix", shift=-1.0)
    features = noise(2, 6, 5, 5)
    poses, activations = primary(features)
    for row, column, i in [(0, 0, 0), (1, 4, 2), (4, 3, 1)]:
        here, place = features[1, :, row, column], 5 * row + column
        numbers = primary.poses.weight[16 * i : 16 * (i + 1), :, 0, 0] @ here
        torch.testing.assert_close(poses[1, place, i].flatten(), numbers)
        logit = primary.activations.weight[i, :, 0, 0] @ here - 1
        torch.testing.assert_close(activations[1, place, i], logit.sigmoid())


@READINGS
def test_conv1_is_rectified(reading: dict[str, Any]) -> None:
    model, images = net(reading, **TINY), noise(2, 2, 32, 32)
    assert (model.conv1(images) >= 0).all()
    nn.init.constant_(model.conv1.bias, -100.0)
    capsules = model.primary_capsules(images)
    assert (capsules.poses == 0).all()
    off = torch.tensor(reading["primary_shift"]).sigmoid()
    torch.testing.assert_close(capsules.activations, off.expand_as(capsules.activations))


# Coordinates


def slots(model: MatrixCapsNet) -> list[tuple[int, int]]:
    offsets = model.class_caps.offsets
    return [] if offsets is None else [tuple(x) for x in offsets.abs().sum(0).nonzero().tolist()]


@pytest.mark.parametrize(
    ("coordinates", "pose", "where"),
    [
        ("right-column", "matrix", [(0, 3), (1, 3)]),
        ("first-two", "matrix", [(0, 0), (0, 1)]),
        ("first-two", "vector", [(0, 0), (0, 1)]),
        ("right-column", "vector", [(0, 0), (0, 1)]),
        ("none", "matrix", []),
    ],
)
def test_coordinates_stand_in_their_slots(
    coordinates: str, pose: str, where: list[tuple[int, int]]
) -> None:
    model = net(coordinates=coordinates, pose=pose, **TINY)
    assert slots(model) == where
    # A class that all poses are multiplied away for is where the children are, and nothing else.
    nn.init.zeros_(model.class_caps.transforms_KIKJC)
    poses = layers(model, noise(1, 2, 32, 32))[-1].poses
    assert [tuple(x) for x in poses[0, 0, 0].nonzero().tolist()] == where


@pytest.mark.parametrize("side", [24, 28, 32])
def test_coordinates_are_the_centres_of_receptive_fields(side: int) -> None:
    model = net(image_shape=(1, side, side), coordinate_scale=0.01, **TINY)
    grid = math.isqrt(len(model.class_caps.fields.windows[0]))
    centres = []
    for place in range(grid):
        first = last = place
        for kernel, stride in ((3, 1), (3, 2), (5, 2)):
            first, last = first * stride, last * stride + kernel - 1
        centres.append((first + last) / 2)
    assert all(0 <= x < side for x in centres)
    offsets = model.class_caps.offsets.unflatten(0, (grid, grid, 2))[..., :2, 3]
    got = offsets / 0.01
    want = torch.tensor(centres) - side / 2
    for i in range(2):
        torch.testing.assert_close(got[:, :, i, 0], want[:, None].expand(grid, grid))
        torch.testing.assert_close(got[:, :, i, 1], want[None, :].expand(grid, grid))


def test_class_capsules_tell_places_apart_only_by_coordinates() -> None:
    children = Capsules(noise(1, 16, 2, 4, 4), noise(1, 16, 2).sigmoid())
    moved = Capsules(children.poses.flip(1), children.activations.flip(1))
    for coordinates, same in (("none", True), ("right-column", False)):
        class_caps = net(coordinates=coordinates, **TINY).class_caps
        poses = class_caps(children).poses, class_caps(moved).poses
        assert torch.allclose(*poses, atol=1e-5) == same


@pytest.mark.parametrize("coordinates", ["right-column", "first-two"])
def test_origin_of_coordinates_does_not_matter(coordinates: str) -> None:
    # In the text's reading. The authors' program smooths means from 0, and so has an origin.
    model = net(coordinates=coordinates, **TINY).double()
    images = noise(2, 2, 32, 32).double()
    before = layers(model, images)[-1]
    shift = torch.zeros(4, 4, dtype=torch.float64)
    shift[tuple(zip(*slots(model), strict=True))] = torch.tensor([3.0, -2.0]).double()
    model.class_caps.offsets += shift
    after = layers(model, images)[-1]
    torch.testing.assert_close(after.activations, before.activations, rtol=1e-5, atol=0)
    torch.testing.assert_close(after.poses, before.poses + shift, rtol=0, atol=1e-5)


# Starts


def digits_on_stereo() -> Tensor:
    digits = torch.from_numpy(load_digits().images[:4]).float().unsqueeze(1)
    return nn.functional.interpolate(digits, size=32, mode="bilinear").expand(-1, 2, -1, -1)


def smallnorb() -> Tensor:
    pairs = np.load(next(NORB.glob("*.npz")))["x_train"]
    return nn.functional.avg_pool2d(torch.from_numpy(pairs).float(), 2)[..., 8:40, 8:40]


def standardised(images: Tensor) -> Tensor:
    mean, std = (part.view(-1, 1, 1, 1) for part in (images.mean((1, 2, 3)), images.std((1, 2, 3))))
    return (images - mean) / std


IMAGES = pytest.mark.parametrize(
    "images",
    [
        pytest.param(lambda: noise(4, 2, 32, 32), id="noise"),
        pytest.param(digits_on_stereo, id="digits"),
        pytest.param(
            smallnorb,
            id="smallnorb",
            marks=[
                pytest.mark.real_data,
                pytest.mark.skipif(not NORB.is_dir(), reason=f"{NORB} is not there"),
            ],
        ),
    ],
)


@IMAGES
@pytest.mark.parametrize("sizes", [LARGE, {}], ids=["large", "small"])
def test_about_half_of_the_capsules_are_active_at_the_start(images, sizes: dict[str, Any]) -> None:
    with torch.no_grad():
        found = layers(net(TEXT, **sizes), standardised(images()))
    means = [capsules.activations.mean().item() for capsules in found]
    assert [mean for mean in means if not 0.3 < mean < 0.75] == []


@IMAGES
def test_authors_start_is_the_one_their_constants_give(images) -> None:
    # A third of the primary capsules; above them -5000 β_a, which is far more than anything that
    # the votes can say: 0.03 and, for the classes, 0.15.
    with torch.no_grad():
        found = layers(net(CODE, **LARGE), standardised(images()))
    means = [capsules.activations.mean().item() for capsules in found]
    assert 0.25 < means[0] < 0.5
    share = 1 - 0.95**3
    conv, classes = (1 / (1 + math.exp(5000 * 0.01 * share * x)) for x in (0.5, 1 / 4))
    assert means[1:] == pytest.approx([conv, conv, classes], rel=0.2)


def test_starts_are_truncated_normals() -> None:
    model = net(CODE)
    kernels = [model.conv1.weight, model.primary.poses.weight, model.primary.activations.weight]
    kernels += [layer.transforms_KIKJC for layer in model.routed_layers]
    for kernel, std in zip(kernels, (0.05, 0.5, 3.0, 0.3, 0.3, 0.01), strict=True):
        # A normal cut at 2σ has 0.88 of its standard deviation.
        assert kernel.abs().max() <= 2 * std
        assert kernel.std().item() == pytest.approx(0.88 * std, rel=0.1)
    assert (model.conv1.bias == 0.1).all()
    assert (net(TEXT).conv1.bias == 0).all()
    betas = [(layer.beta_a_J, layer.beta_u_J) for layer in model.routed_layers]
    for (beta_a, beta_u), (a, u) in zip(betas, [(0.5, 0.5), (0.5, 0.5), (1, 2)], strict=True):
        assert (beta_a == a).all()
        assert (beta_u == u).all()


def test_class_layer_has_its_own_temperature() -> None:
    assert [layer.how.inverse_temperature for layer in net(CODE).routed_layers] == [
        0.01,
        0.01,
        0.0025,
    ]


# The whole network


@READINGS
def test_mixing_proportions_sum_to_one_over_a_layer(reading: dict[str, Any]) -> None:
    routing = reading["routing"] | {"activation": "mixing-proportion"}
    images = noise(3, 2, 32, 32)
    for capsules in layers(net(reading, routing=routing), images)[1:]:
        torch.testing.assert_close(capsules.activations.sum((1, 2)), torch.ones(3))
        assert len(capsules.activations.unique()) > 1
    sums = layers(net(reading), images)[2].activations.sum((1, 2))
    assert ((sums - 1).abs() > 0.1).all()


@READINGS
def test_written_votes_give_the_same_network(reading: dict[str, Any]) -> None:
    # In float32 each is as far from the truth as from the other: 3e-4 of some gradients of β_u.
    images, labels = noise(3, 2, 32, 32).double(), torch.tensor([[0], [4], [2]])
    results = []
    for factored in (True, False):
        model = net(reading).double()
        for layer in model.routed_layers:
            layer.factored = factored
        objective = model.objective(images, labels, images)
        objective.loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([objective.loss.detach(), objective.scores.detach(), *gradients])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-10 * other.abs().max()


@READINGS
def test_an_image_is_classified_alone(reading: dict[str, Any]) -> None:
    model, images = net(reading, **TINY).double(), noise(4, 2, 32, 32).double()
    together = model(images)
    alone = torch.cat([model(images[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    images[1:] = 50
    torch.testing.assert_close(model(images)[0], together[0])


# Losses


def test_spread_loss_by_hand() -> None:
    # (0.9 − 0.7)² + (0.9 + 0.05)²; the second image is past the margin for one class of two.
    activations = torch.tensor([[0.9, 0.2, 0.95], [0.0, 0.05, 0.95]], dtype=torch.float64)
    labels = present(torch.tensor([[0], [2]]), 3).double()
    expected = torch.tensor([0.2**2 + 0.95**2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(spread_loss(activations, labels), expected)
    expected = torch.tensor([0.0, 0.0], dtype=torch.float64)
    expected[0] = 0.25**2
    torch.testing.assert_close(spread_loss(activations, labels, 0.2), expected)


@pytest.mark.parametrize("margin", [0.2, 0.9, 1.0])
def test_spread_loss_in_closed_form(margin: float) -> None:
    classes = 5
    labels = present(torch.tensor([[3]]), classes)
    # Equal activations: m² for each wrong class. All right: nothing. All wrong: (m + 1)² and m².
    equal = spread_loss(torch.full((1, classes), 0.4), labels, margin)
    assert equal.item() == pytest.approx((classes - 1) * margin**2)
    assert spread_loss(labels, labels, margin).item() == 0
    wrong = present(torch.tensor([[0]]), classes)
    expected = (margin + 1) ** 2 + (classes - 2) * margin**2
    assert spread_loss(wrong, labels, margin).item() == pytest.approx(expected)


def test_spread_loss_at_margin_one_is_the_squared_hinge() -> None:
    activations, labels = torch.rand(6, 5), torch.randint(0, 5, (6,))
    hinge = nn.functional.multi_margin_loss(activations, labels, p=2, margin=1, reduction="none")
    torch.testing.assert_close(
        spread_loss(activations, present(labels[:, None], 5), torch.tensor(1.0)), hinge * 5
    )


@READINGS
def test_network_trains_on_the_margin_of_its_buffer(reading: dict[str, Any]) -> None:
    model, images = net(reading, **TINY), noise(3, 2, 32, 32)
    labels = torch.tensor([[0], [4], [2]])
    assert model.margin.item() == pytest.approx(0.9)
    assert "margin" in dict(model.named_buffers())
    assert "margin" not in model.state_dict()
    for margin in (0.9, 0.2, 0.5):
        model.margin.fill_(margin)
        objective = model.objective(images, labels, images)
        losses = spread_loss(objective.scores, present(labels, 5), margin)
        divisor = 1 if reading is TEXT else 5
        torch.testing.assert_close(objective.loss, losses.mean() / divisor)
        assert list(objective.terms) == ["spread_loss"]
        assert objective.terms["spread_loss"] is objective.loss


@pytest.mark.parametrize(
    ("name", "term"), [("margin", "margin_loss"), ("cross-entropy", "cross_entropy")]
)
def test_other_losses_of_table_1(name: str, term: str) -> None:
    model, images = net(classification_loss=name, **TINY), noise(3, 2, 32, 32)
    labels = torch.tensor([[0], [4], [2]])
    objective = model.objective(images, labels, images)
    want = {
        "margin": margin_loss(objective.scores, present(labels, 5)).mean(),
        "cross-entropy": nn.functional.cross_entropy(objective.scores, labels[:, 0]),
    }[name]
    torch.testing.assert_close(objective.loss, want)
    assert list(objective.terms) == [term]
