"""How adversarial images are made, against closed forms and against foolbox."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from attack_cases import (
    LOSSES,
    Linear,
    as_tensors,
    clean,
    network,
    random_images,
    rising,
    said_images,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from capsrepro.evaluation.attacks import (
    Clean,
    input_gradient,
    one_step,
    random_signs,
    random_start,
    several_steps,
)
from capsrepro.models.losses import CLASSIFICATION_LOSSES, cross_entropy, margin_loss, present


def test_a_linear_model_is_attacked_along_its_weights() -> None:
    images = torch.tensor([[0.5, 0.5, 0.5, 0.05], [0.5, 0.95, 0.5, 0.5]]).view(2, 1, 2, 2)
    labels = torch.tensor([[0], [1]])
    rise = rising(Linear([3.0, 1.0, 0.0, 2.0]), "cross-entropy")
    gradient = input_gradient(rise, images, labels)
    # d(loss)/dx = ±2·p(wrong class)·w.
    wrong = (1 + (2 * (images.flatten(1) @ torch.tensor([3.0, 1.0, 0.0, 2.0]))).exp()) ** -1
    wrong[1] = 1 - wrong[1]
    weights = torch.tensor([[-3.0, -1.0, 0.0, -2.0], [3.0, 1.0, 0.0, 2.0]])
    torch.testing.assert_close(gradient.flatten(1), 2 * wrong[:, None] * weights)
    # A pixel without a gradient stays; one at the edge of the range stops there.
    expected = torch.tensor([[0.4, 0.4, 0.5, 0.0], [0.6, 1.0, 0.5, 0.6]])
    start = clean(images, labels)
    attacked = one_step(start, gradient, torch.tensor(0.1)).flatten(1)
    torch.testing.assert_close(attacked, expected)
    # The gradient of a linear model points the same way everywhere: many steps end at the same.
    step = torch.tensor(0.03)
    attacked = several_steps(rise, start, images, torch.tensor(0.1), step, 5).flatten(1)
    torch.testing.assert_close(attacked, expected)
    attacked = several_steps(rise, start, images, torch.tensor(0.1), step, 2).flatten(1)
    torch.testing.assert_close(attacked[1], torch.tensor([0.56, 1.0, 0.5, 0.56]))


def within(attacked: Tensor, start: Clean, epsilon: Tensor) -> None:
    assert (attacked >= start.lowest).all()
    assert (attacked <= start.highest).all()
    assert ((attacked - start.images).abs() <= epsilon + 1e-6 * (1 + epsilon)).all()


@given(
    st.integers(0, 2**31),
    st.floats(0, 2, width=32),
    st.floats(0.125, 3, width=32),
    st.integers(1, 4),
    st.floats(-2, 0, width=32),
    st.floats(0.5, 2, width=32),
)
def test_attacks_stay_within_epsilon_and_the_range_of_pixels(
    seed: int, size: float, share: float, steps: int, black: float, contrast: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    range_ = torch.full((3, 1, 1, 1), contrast)
    images = black + range_ * torch.randint(0, 256, (3, 1, 4, 4), generator=generator) / 255
    lowest, highest = black + 0 * range_, images.amax().clamp(min=black + contrast) + 0 * range_
    start = Clean(
        images, torch.zeros(3, 1).long(), torch.arange(3) + seed % 97, lowest, highest, range_
    )
    slope = torch.randn(1, 4, 4, generator=generator)
    slope[0, 0] = 0

    def rise(at: Tensor, _: Tensor) -> Tensor:
        return (slope * at.sin()).flatten(1).sum(1)

    gradient = input_gradient(rise, images, start.labels)
    per_image = torch.tensor([size, size / 2, 0.0]).view(3, 1, 1, 1)
    for epsilon in (torch.tensor(size), per_image):
        stepped = one_step(start, gradient, epsilon)
        within(stepped, start, epsilon)
        assert ((stepped - images) * gradient >= 0).all()
        assert torch.equal(stepped[:, 0, 0], images[:, 0, 0])
        first = random_start(start, epsilon, 0)
        within(first, start, epsilon)
        within(random_signs(start, epsilon), start, epsilon)
        within(several_steps(rise, start, first, epsilon, share * epsilon, steps), start, epsilon)


def test_random_numbers_belong_to_the_image_and_the_restart() -> None:
    images, labels = as_tensors(*random_images(40))
    images = images * 0 + 0.5
    start, epsilon = clean(images, labels), torch.tensor(0.25)
    share = (random_start(start, epsilon, 0) - 0.5) / 0.25
    # Uniform in ±1: mean 0, mean square 1/3; 2,560 pixels.
    assert abs(share.mean()) < 4 * (1 / 3 / 2560) ** 0.5
    assert float(share.square().mean()) == pytest.approx(1 / 3, abs=0.03)
    signs = (random_signs(start, epsilon) - 0.5) / 0.25
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 * 2560**-0.5
    assert torch.equal(random_signs(start, epsilon / 2) - 0.5, 0.125 * signs)
    some = torch.arange(40) % 3 == 1
    part = start.only(some)
    assert torch.equal(random_start(part, epsilon, 0), random_start(start, epsilon, 0)[some])
    assert torch.equal(random_signs(part, epsilon), random_signs(start, epsilon)[some])
    again = random_start(start, epsilon, 1)
    assert (again != random_start(start, epsilon, 0)).float().mean() > 0.99


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_float64_differences(name: str) -> None:
    model = network(name).double()
    images, labels = (part[:2] for part in as_tensors(*random_images()))
    images = images.double()
    gradient = input_gradient(rising(model, LOSSES[name]), images, labels)
    function = {"cross-entropy": cross_entropy, "margin": margin_loss}[LOSSES[name]]

    def loss(at: Tensor) -> Tensor:
        with torch.no_grad():
            return function(model(at), present(labels, 10)).sum()

    for place in [(0, 0, 0, 0), (0, 0, 4, 3), (1, 0, 7, 7)]:
        step = torch.zeros_like(images)
        step[place] = 1e-6
        slope = (loss(images + step) - loss(images - step)) / 2e-6
        assert float(slope) == pytest.approx(float(gradient[place]), rel=1e-4, abs=1e-8)


def test_the_loss_attacked_changes_the_gradient() -> None:
    model, (images, labels) = network("capsnet-r3-recon"), as_tensors(*random_images())
    margin, entropy, difference = (
        input_gradient(rising(model, loss), images, labels).sign()
        for loss in ("margin", "cross-entropy", "logit-difference")
    )
    assert not torch.equal(margin, entropy)
    assert not torch.equal(difference, entropy)
    assert not torch.equal(difference, margin)


# foolbox as an oracle.


@pytest.fixture(scope="module")
def foolbox() -> Any:
    with warnings.catch_warnings():
        # foolbox 3.3 imports scipy.ndimage.filters, which scipy has renamed.
        warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
        return pytest.importorskip("foolbox")


def on_loss(base: Any, name: str, start: Tensor | None = None, **options: Any) -> Any:
    """An attack of foolbox that follows one of our losses, from a start of ours if there is one."""
    import eagerpy

    class Own(base):
        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            goals = nn.functional.one_hot(labels.raw.long(), 10).float()

            def loss(inputs: Any) -> Any:
                return eagerpy.astensor(CLASSIFICATION_LOSSES[name](model(inputs).raw, goals).sum())

            return loss

        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            assert start is not None
            return eagerpy.astensor(start)

    return Own(**options)


@pytest.mark.parametrize("epsilon", [2 / 255, 8 / 255, 32 / 255, 96 / 255])
@pytest.mark.parametrize("name", LOSSES)
def test_images_equal_those_of_foolbox(foolbox: Any, name: str, epsilon: float) -> None:
    model, loss = network(name), LOSSES[name]
    images, labels = as_tensors(*said_images(model))
    rise, start = rising(model, loss), clean(images, labels)
    oracle, size = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), torch.tensor(epsilon)
    gradient = input_gradient(rise, images, labels)
    assert (gradient != 0).any()
    first, attacks = random_start(start, size, 0), foolbox.attacks
    cases = [
        (on_loss(attacks.LinfFastGradientAttack, loss), one_step(start, gradient, size)),
        (
            on_loss(attacks.LinfBasicIterativeAttack, loss, rel_stepsize=0.1, steps=10),
            several_steps(rise, start, images, size, 0.1 * size, 10),
        ),
        (
            on_loss(attacks.LinfPGD, loss, first, rel_stepsize=0.25, steps=6),
            several_steps(rise, start, first, size, 0.25 * size, 6),
        ),
    ]
    for attack, ours in cases:
        theirs = attack.run(
            oracle, images, foolbox.Misclassification(labels[:, 0]), epsilon=epsilon
        )
        assert (ours != images).any()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.allclose(cases[0][1], cases[1][1], atol=1e-3)


def test_targeted_steps_equal_those_of_foolbox(foolbox: Any) -> None:
    model, size = network("cnn-baseline"), torch.tensor(24 / 255)
    images, labels = as_tensors(*said_images(model))
    targets = (labels + 3) % 10
    rise = rising(model, "cross-entropy")

    def towards(at: Tensor, wanted: Tensor) -> Tensor:
        return -rise(at, wanted)

    start = clean(images, targets)
    ours = several_steps(towards, start, images, size, 0.1 * size, 10)
    oracle = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=0.1, steps=10)
    goal = foolbox.criteria.TargetedMisclassification(targets[:, 0])
    theirs = attack.run(oracle, images, goal, epsilon=float(size))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
