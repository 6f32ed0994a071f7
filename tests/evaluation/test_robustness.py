"""FGSM against closed forms and against foolbox."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.errors import UsageError
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.robustness import (
    attacked_loss,
    fgsm_step,
    input_gradient,
    measure_fgsm,
)
from capsrepro.models.losses import cross_entropy, margin_loss, present
from capsrepro.models.predictions import correct
from capsrepro.running.assembly import build_model, classification_loss

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")
LOSSES = {"cnn-baseline": "cross-entropy", "capsnet-r3-recon": "margin"}


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


def as_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images) / 255, torch.from_numpy(labels).long()


def split_of(images: np.ndarray, labels: np.ndarray, batch_size: int = 10) -> EvaluationSplit:
    return EvaluationSplit(StoredExamples(images, labels, CPU), batch_size=batch_size)


class Linear(nn.Module):
    """Scores (w·x, -w·x): for class 0 the loss rises against w, for class 1 along it."""

    classification_loss = "cross-entropy"

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, images: Tensor) -> Tensor:
        product = images.flatten(1) @ self.weights
        return torch.stack([product, -product], dim=1)


def test_a_linear_model_is_attacked_along_its_weights() -> None:
    images = torch.tensor([[0.5, 0.5, 0.5, 0.05], [0.5, 0.95, 0.5, 0.5]]).view(2, 1, 2, 2)
    labels = torch.tensor([[0], [1]])
    gradient = input_gradient(Linear([3.0, 1.0, 0.0, 2.0]), images, labels, "cross-entropy")
    # d(loss)/dx = ±2·p(wrong class)·w.
    wrong = (1 + (2 * (images.flatten(1) @ torch.tensor([3.0, 1.0, 0.0, 2.0]))).exp()) ** -1
    wrong[1] = 1 - wrong[1]
    weights = torch.tensor([[-3.0, -1.0, 0.0, -2.0], [3.0, 1.0, 0.0, 2.0]])
    torch.testing.assert_close(gradient.flatten(1), 2 * wrong[:, None] * weights)
    # A pixel without a gradient stays; one at the edge of the range stops there.
    attacked = fgsm_step(images, gradient, 0.1).flatten(1)
    torch.testing.assert_close(attacked, torch.tensor([[0.4, 0.4, 0.5, 0.0], [0.6, 1.0, 0.5, 0.6]]))


def test_accuracy_of_a_linear_model_falls_where_it_must() -> None:
    # w = (1, -1): the class changes once both pixels have moved by half their difference.
    images = np.array([[102, 51], [153, 51], [204, 51], [255, 0]], np.uint8).reshape(4, 1, 1, 2)
    labels = np.zeros((4, 1), np.uint8)
    epsilons = [0.0, 0.09, 0.11, 0.19, 0.21, 0.29, 0.31, 0.49, 0.51]
    split = split_of(images, labels)
    metrics, curves = measure_fgsm(Linear([1.0, -1.0]), split, epsilons, "cross-entropy")
    assert curves["accuracy_pct"] == [100, 100, 75, 75, 50, 50, 25, 25, 0]
    assert curves["epsilon"] == epsilons
    assert metrics == {"zero_gradient_pct": 0.0, "test_images": 4.0}


@given(st.integers(0, 2**31), st.floats(0, 2, width=32))
def test_an_attack_stays_within_epsilon_and_the_range_of_pixels(seed: int, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (3, 1, 4, 4), generator=generator) / 255
    gradient = torch.randn(3, 1, 4, 4, generator=generator)
    gradient[0, 0, 0] = 0
    attacked = fgsm_step(images, gradient, epsilon)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    change = attacked - images
    assert change.abs().max() <= epsilon + 1e-7  # the sum is rounded once
    assert (change * gradient >= 0).all()
    assert torch.equal(attacked[0, 0, 0], images[0, 0, 0])


@pytest.mark.parametrize("name", LOSSES)
def test_epsilon_zero_is_the_clean_accuracy(name: str) -> None:
    model, (images, labels) = network(name), random_images()
    with torch.no_grad():
        said = model(as_tensors(images, labels)[0]).argmax(1).numpy()
    labels[:15, 0] = said[:15]
    clean = measure_accuracy(model, split_of(images, labels))
    _, curves = measure_fgsm(model, split_of(images, labels), [0.0], LOSSES[name])
    assert curves["accuracy_pct"] == [pytest.approx(100 - clean["test_error_pct"])]
    assert clean["test_error_pct"] < 50


@pytest.mark.parametrize("name", LOSSES)
def test_the_curve_is_that_of_one_image_at_a_time(name: str) -> None:
    model, (images, labels) = network(name), random_images()
    with torch.no_grad():
        labels[:, 0] = model(as_tensors(images, labels)[0]).argmax(1).numpy()
    epsilons, loss = [0.0, 4 / 255, 16 / 255, 64 / 255], LOSSES[name]
    hits = [0] * 4
    for image, label in zip(*as_tensors(images, labels), strict=True):
        gradient = input_gradient(model, image[None], label[None], loss)
        for index, epsilon in enumerate(epsilons):
            attacked = fgsm_step(image[None], gradient, epsilon)
            hits[index] += int(correct(model(attacked), label[None]))
    expected = [100 * count / 24 for count in hits]
    assert expected[0] == 100 > expected[-1]
    for batch_size in (5, 24):
        # Whatever mode the model comes in, it is attacked without dropout.
        split = split_of(images, labels, batch_size)
        _, curves = measure_fgsm(model.train(), split, epsilons, loss)
        assert curves["accuracy_pct"] == expected
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_float64_differences(name: str) -> None:
    model = network(name).double()
    images, labels = (part[:2] for part in as_tensors(*random_images()))
    images = images.double()
    gradient = input_gradient(model, images, labels, LOSSES[name])
    function = {"cross-entropy": cross_entropy, "margin": margin_loss}[LOSSES[name]]

    def loss(at: Tensor) -> Tensor:
        with torch.no_grad():
            return function(model(at), present(labels, 10)).sum()

    for place in [(0, 0, 0, 0), (0, 0, 4, 3), (1, 0, 7, 7)]:
        step = torch.zeros_like(images)
        step[place] = 1e-6
        slope = (loss(images + step) - loss(images - step)) / 2e-6
        assert float(slope) == pytest.approx(float(gradient[place]), rel=1e-4, abs=1e-8)


def bim(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, steps: int) -> Tensor:
    """Kurakin et al. 2017, equation 2, with α = ε / steps."""
    attacked = images.clone()
    for _ in range(steps):
        attacked.requires_grad_()
        loss = nn.functional.cross_entropy(model(attacked), labels[:, 0])
        (gradient,) = torch.autograd.grad(loss, attacked)
        moved = attacked.detach() + epsilon / steps * gradient.sign()
        attacked = moved.clamp(images - epsilon, images + epsilon).clamp(0, 1)
    return attacked


def test_fgsm_is_one_step_of_bim() -> None:
    model, (images, labels) = network("cnn-baseline"), as_tensors(*random_images())
    gradient = input_gradient(model, images, labels, "cross-entropy")
    attacked = fgsm_step(images, gradient, 16 / 255)
    torch.testing.assert_close(attacked, bim(model, images, labels, 16 / 255, 1), rtol=0, atol=1e-7)
    assert not torch.allclose(attacked, bim(model, images, labels, 16 / 255, 4), atol=1e-3)


@pytest.fixture(scope="module")
def foolbox():
    with warnings.catch_warnings():
        # foolbox 3.3 imports scipy.ndimage.filters, which scipy has renamed.
        warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
        return pytest.importorskip("foolbox")


def foolbox_fgsm(foolbox, name: str):
    """Its FGSM; for capsules on the margin loss, which it does not know."""

    class MarginAttack(foolbox.attacks.LinfFastGradientAttack):
        def get_loss_fn(self, model, labels):
            targets = nn.functional.one_hot(labels.raw, 10)

            def loss(inputs):
                import eagerpy

                lengths = model(inputs).raw
                missed = targets * (0.9 - lengths).clamp(min=0) ** 2
                false = (1 - targets) * (lengths - 0.1).clamp(min=0) ** 2
                return eagerpy.astensor((missed + 0.5 * false).sum())

            return loss

    if LOSSES[name] == "margin":
        return MarginAttack()
    return foolbox.attacks.LinfFastGradientAttack()


@pytest.mark.parametrize("name", LOSSES)
def test_images_and_accuracy_equal_those_of_foolbox(foolbox, name: str) -> None:
    model, (images, labels) = network(name), random_images()
    with torch.no_grad():
        labels[:, 0] = model(as_tensors(images, labels)[0]).argmax(1).numpy()
    epsilons = [2 / 255, 8 / 255, 32 / 255, 96 / 255]
    inputs, classes = as_tensors(images, labels)
    oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, attacked, success = foolbox_fgsm(foolbox, name)(
        oracle, inputs, classes[:, 0], epsilons=epsilons
    )
    gradient = input_gradient(model, inputs, classes, LOSSES[name])
    assert (gradient != 0).any()
    for epsilon, theirs in zip(epsilons, attacked, strict=True):
        ours = fgsm_step(inputs, gradient, epsilon)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    _, curves = measure_fgsm(model, split_of(images, labels), epsilons, LOSSES[name])
    expected = 100 * (1 - success.float().mean(1))
    assert curves["accuracy_pct"] == pytest.approx(expected.tolist())
    assert expected.min() < 100


class Saturated(nn.Module):
    """Lengths 0.95 and 0.05 for bright images: their margin loss is 0, and so is its gradient."""

    classification_loss = "margin"

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.flatten(1).mean(1)
        return torch.stack([0.95 * brightness, 0.05 * brightness], dim=1)


def test_images_without_a_gradient_are_counted() -> None:
    values = [255, 250, 200, 100, 50, 255, 30]  # 0.95 · brightness is above 0.9 for three of them
    images = np.array(values, np.uint8).repeat(4).reshape(7, 1, 2, 2)
    labels = np.zeros((7, 1), np.uint8)
    for batch_size in (1, 3, 7):
        split = split_of(images, labels, batch_size)
        metrics, _ = measure_fgsm(Saturated(), split, [0.1], "margin")
        assert metrics["zero_gradient_pct"] == pytest.approx(100 * 3 / 7)
        metrics, _ = measure_fgsm(Saturated(), split, [0.1], "cross-entropy")
        assert metrics["zero_gradient_pct"] == 0


def test_an_image_with_one_gradient_counts_as_attackable() -> None:
    images = np.full((2, 1, 2, 2), 100, np.uint8)
    labels = np.zeros((2, 1), np.uint8)
    split = split_of(images, labels)
    metrics, _ = measure_fgsm(Linear([0.0, 0.0, 1e-3, 0.0]), split, [0.1], "cross-entropy")
    assert metrics["zero_gradient_pct"] == 0
    metrics, _ = measure_fgsm(Linear([0.0] * 4), split, [0.1], "cross-entropy")
    assert metrics["zero_gradient_pct"] == 100


def test_the_loss_attacked_changes_the_gradient() -> None:
    model, (images, labels) = network("capsnet-r3-recon"), as_tensors(*random_images())
    margin, entropy = (
        input_gradient(model, images, labels, loss) for loss in ("margin", "cross-entropy")
    )
    assert not torch.equal(margin.sign(), entropy.sign())


def test_own_is_the_loss_a_model_is_trained_on() -> None:
    for model, own in (("cnn-baseline", "cross-entropy"), ("capsnet-r3-recon", "margin")):
        spec = resolve_run(PARAMS, f"digits/{model}/seed-0")
        assert attacked_loss(classification_loss(spec), "own") == own
    assert attacked_loss("margin", "cross-entropy") == "cross-entropy"


def test_an_unknown_loss_is_one_sentence() -> None:
    with pytest.raises(UsageError) as caught:
        attacked_loss("margin", "hinge")
    assert str(caught.value) == (
        "unknown loss 'hinge' to attack; choose one of own, margin, spread, cross-entropy, "
        "sigmoid-cross-entropy, sigmoid-cross-entropy-halved."
    )


def test_a_negative_epsilon_is_one_sentence() -> None:
    split = split_of(*random_images())
    with pytest.raises(UsageError) as caught:
        measure_fgsm(Saturated(), split, [0.1, -0.5, 0], "margin")
    assert str(caught.value) == "ε must not be negative, but -0.5 was given; use 0 or more."
