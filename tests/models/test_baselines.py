from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from capsrepro.config import load_params
from capsrepro.errors import UsageError
from capsrepro.models import MODELS
from capsrepro.models.baselines import PooledCNN
from capsrepro.models.convolution import Conv2d, RectifiedConv2d
from capsrepro.models.losses import CLASSIFICATION_LOSSES, present

SHIPPED = Path(__file__).parents[2] / "params.yaml"
PARAMS = load_params(SHIPPED)
FAN_IN = {"conv_std": None, "dense_std": None, "bias": None}


def small(**changes: Any) -> PooledCNN:
    torch.manual_seed(0)
    keys: dict[str, Any] = {
        "image_shape": (2, 12, 8),
        "classes": 4,
        "conv_channels": (5, 6),
        "conv_kernels": (5, 3),
        "padding": "same",
        "dense_widths": (7,),
        "dropout": 0.5,
        "classification_loss": "cross-entropy",
        "initial": FAN_IN,
    }
    return PooledCNN(**keys | changes)


def test_layers_stand_in_the_papers_order() -> None:
    kinds = [type(layer) for layer in small().layers]
    first, last = [RectifiedConv2d, nn.Identity], [Conv2d, nn.ReLU]
    stages = [*first, nn.MaxPool2d, *last, nn.MaxPool2d]
    assert kinds == [*stages, nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


def test_sizes_along_the_way() -> None:
    model, images = small(), torch.rand(3, 2, 12, 8)
    sizes = [tuple((images := layer(images)).shape[1:]) for layer in model.layers]
    assert sizes[:3] == [(5, 12, 8), (5, 12, 8), (5, 6, 4)]
    assert sizes[3:7] == [(6, 6, 4), (6, 6, 4), (6, 3, 2), (36,)]
    assert sizes[7:] == [(7,), (7,), (7,), (4,)]


def test_pooling_keeps_the_largest_of_four_and_leaves_out_an_odd_pixel() -> None:
    pool = small().layers[2]
    image = torch.arange(25.0).view(1, 1, 5, 5)
    assert pool(image).tolist() == [[[[6, 8], [16, 18]]]]
    assert small(image_shape=(2, 13, 9))(torch.rand(1, 2, 13, 9)).shape == (1, 4)


def test_dropout_is_off_when_not_training() -> None:
    model, images = small(), torch.rand(3, 2, 12, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    torch.testing.assert_close(model(images[:1]), model(images)[:1])
    assert torch.equal(small(dropout=0)(images), small(dropout=0)(images))


@pytest.mark.parametrize("loss", [name for name in CLASSIFICATION_LOSSES if "cross" in name])
def test_objective_is_the_mean_of_its_loss(loss: str) -> None:
    model = small(classification_loss=loss, dropout=0)
    assert model.classification_loss == loss
    images, labels = torch.rand(3, 2, 12, 8), torch.tensor([[0, 1], [3, 2], [1, 3]])
    objective = model.objective(images, labels, images.unsqueeze(1))
    expected = CLASSIFICATION_LOSSES[loss](model(images), present(labels, 4)).mean()
    torch.testing.assert_close(objective.loss, expected)
    assert objective.terms == {"cross_entropy": objective.loss}
    assert torch.equal(objective.scores, model(images))
    objective.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_learns_two_digits_at_once() -> None:
    # Each class is one bright quarter of the image; every image has two of them.
    torch.manual_seed(0)
    pairs = torch.combinations(torch.arange(4))
    images = torch.zeros(6, 1, 8, 8)
    for image, pair in zip(images, pairs, strict=True):
        for k in pair.tolist():
            image[0, k // 2 * 4 : k // 2 * 4 + 4, k % 2 * 4 : k % 2 * 4 + 4] = 1
    model = small(
        image_shape=(1, 8, 8), dropout=0, classification_loss="sigmoid-cross-entropy-halved"
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model.objective(images, pairs, images.unsqueeze(1)).loss.backward()
        optimizer.step()
    assert torch.equal(model(images).topk(2).indices.sort(1).values, pairs)
    # What it asserts about a class that is present is a half.
    torch.testing.assert_close(model(images).sigmoid(), present(pairs, 4) / 2, rtol=0, atol=0.05)


def test_images_too_small_for_the_poolings_are_refused() -> None:
    with pytest.raises(ValueError, match="2 poolings leave nothing"):
        small(image_shape=(1, 3, 8))
    with pytest.raises(ValueError, match="a 5x5 kernel does not fit into 4x4"):
        small(image_shape=(1, 4, 8), padding="valid")


@pytest.mark.parametrize(
    ("kernels", "where", "why"),
    [
        ("[9]", "models.multimnist.cnn-baseline is wrong", "should be equally long"),
        ("[9, 5, 3]", "models.multimnist.cnn-baseline is wrong", "should be equally long"),
        ("[9, 0]", "models.multimnist.cnn-baseline.conv_kernels.1 is wrong", "greater than 0"),
    ],
)
def test_wrong_kernels_are_refused(tmp_path: Path, kernels: str, where: str, why: str) -> None:
    text = SHIPPED.read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("conv_kernels: [9, 5]", f"conv_kernels: {kernels}"))
    with pytest.raises(UsageError, match=rf", line \d+: {where} .*{why}.*\.$"):
        load_params(path)


def test_starts_of_the_code() -> None:
    spec = PARAMS.models["multimnist"]["cnn-baseline-code"]
    fields = spec.model_dump(exclude={"family", "stands_for", "reading"})
    model = MODELS[spec.family](
        image_shape=(1, 8, 8), classes=10, **fields | {"conv_channels": (512, 8)}
    )
    first, *_, hidden, _, _, last = model.layers
    assert 0.04 < first.weight.std() < 0.05
    assert first.weight.abs().max() <= 0.1  # truncated at two standard deviations
    for dense in (hidden, last):
        assert 0.08 < dense.weight.std() < 0.1
        assert dense.weight.abs().max() <= 0.2
    for layer in (first, hidden, last):
        assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.1))


def test_starts_of_the_text_are_those_of_torch() -> None:
    torch.manual_seed(0)
    expected = Conv2d(2, 5, 5, padding="same")
    assert torch.equal(small().layers[0].weight, expected.weight)
    assert torch.equal(small().layers[0].bias, expected.bias)
