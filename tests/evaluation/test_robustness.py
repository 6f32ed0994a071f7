"""What is measured of an attack: closed forms, counts, units, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_cases import (
    LOSSES,
    Linear,
    Pixel,
    Saturated,
    as_tensors,
    attack,
    clean,
    network,
    random_images,
    rising,
    said_images,
    split_of,
)
from torch import Tensor, nn

from capsrepro.data.augmentation import central
from capsrepro.errors import UsageError
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.attacks import input_gradient, one_step, random_start, several_steps
from capsrepro.evaluation.robustness import measure_attack
from capsrepro.models.losses import ATTACKED_LOSSES, cross_entropy, logit_difference, margin_loss
from capsrepro.models.predictions import correct
from capsrepro.schema.augmentation import Crop, Standardise

STANDARDISED = (Standardise(op="standardise"),)
CROPPED = (Crop(op="crop", size_px=6), Standardise(op="standardise"))
FIVE = (0, 4 / 255, 16 / 255, 64 / 255, 160 / 255)


def test_accuracy_of_a_linear_model_falls_where_it_must() -> None:
    # w = (1, -1): the class changes once both pixels have moved by half their difference.
    images = np.array([[102, 51], [153, 51], [204, 51], [255, 0]], np.uint8).reshape(4, 1, 1, 2)
    labels = np.zeros((4, 1), np.uint8)
    epsilons = (0, 0.09, 0.11, 0.19, 0.21, 0.29, 0.31, 0.49, 0.51)
    for method in ("fgsm", "bim", "pgd"):
        several = {} if method == "fgsm" else {"steps": 20, "step_share": 0.125}
        made = attack(method, epsilons=epsilons, **several)
        split = split_of(images, labels)
        metrics, curves = measure_attack(Linear([1.0, -1.0]), split, made, cross_entropy)
        assert curves["accuracy_pct"] == [100, 100, 75, 75, 50, 50, 25, 25, 0], method
        assert curves["epsilon"] == list(epsilons)
        if method != "fgsm":
            assert curves["fgsm_accuracy_pct"] == curves["accuracy_pct"]
        # d(loss)/dx = 2 p(wrong) (-1, 1).
        apart = torch.tensor([51.0, 102.0, 153.0, 255.0]).double() / 255
        norms = 2 * 2**0.5 / (1 + (2 * apart).exp())
        assert metrics == {
            "test_images": 4,
            "classes": 2,
            "clean_accuracy_pct": 100,
            "full_range_accuracy_pct": 0,
            "zero_gradient_pct": 0,
            "zero_gradient_pixels_pct": 0,
            "gradient_l2_mean": pytest.approx(float(norms.mean()), rel=1e-6),
            "gradient_l2_median": pytest.approx(float(norms.median()), rel=1e-6),
        }


def test_where_pixels_may_be_anything_no_epsilon_of_the_grid_counts() -> None:
    images = np.array([[102, 51], [255, 0]], np.uint8).reshape(2, 1, 1, 2)
    split = split_of(images, np.zeros((2, 1), np.uint8))
    made = attack(epsilons=(0, 0.01))
    metrics, curves = measure_attack(Linear([1.0, -1.0]), split, made, cross_entropy)
    assert (curves["accuracy_pct"], metrics["full_range_accuracy_pct"]) == ([100, 100], 0)


def test_random_signs_do_less_than_a_linear_model_s_gradient() -> None:
    images = np.full((400, 1, 1, 2), 128, np.uint8)
    images[:, 0, 0, 0] = 178
    split = split_of(images, np.zeros((400, 1), np.uint8), 64)
    made = attack(epsilons=(0, 0.05, 0.15))
    _, curves = measure_attack(Linear([1.0, -1.0]), split, made, cross_entropy)
    assert curves["accuracy_pct"] == [100, 100, 0]
    # The pixels are 50/255 apart: one pair of signs of four changes the class.
    assert curves["noise_accuracy_pct"][:2] == [100, 100]
    assert curves["noise_accuracy_pct"][2] == pytest.approx(75, abs=4 * 2.2)


@pytest.mark.parametrize("name", LOSSES)
def test_epsilon_zero_is_the_clean_accuracy(name: str) -> None:
    model, (images, labels) = network(name), random_images()
    labels[:15] = said_images(model)[1][:15]
    clean_error = measure_accuracy(model, split_of(images, labels))["test_error_pct"]
    loss = ATTACKED_LOSSES[LOSSES[name]]
    for method in ("fgsm", "bim", "pgd"):
        made = attack(method, epsilons=(0,), steps=1 if method == "fgsm" else 2)
        metrics, curves = measure_attack(model, split_of(images, labels), made, loss)
        assert metrics["clean_accuracy_pct"] == pytest.approx(100 - clean_error)
        for curve in set(curves) - {"epsilon"}:
            assert curves[curve] == [metrics["clean_accuracy_pct"]], curve
    assert clean_error < 50


@pytest.mark.parametrize("method", ["fgsm", "bim", "pgd"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_curve_is_that_of_one_image_at_a_time(name: str, method: str) -> None:
    model, loss = network(name), LOSSES[name]
    images, labels = said_images(model)
    rise, hits, first_hits = rising(model, loss), [0] * len(FIVE), [0] * len(FIVE)
    restarts = 3 if method == "pgd" else 1
    for item, (image, label) in enumerate(zip(*as_tensors(images, labels), strict=True)):
        one = clean(image[None], label[None])._replace(items=torch.tensor([item]))
        for index, size in enumerate(FIVE):
            epsilon, right = torch.tensor(size), True
            for restart in range(restarts):
                if method == "fgsm":
                    made = one_step(one, input_gradient(rise, *one[:2]), epsilon)
                else:
                    start = one.images
                    if method == "pgd":
                        start = random_start(one, epsilon, restart)
                    made = several_steps(rise, one, start, epsilon, 0.25 * epsilon, 2)
                right &= bool(correct(model(made), label[None]))
                first_hits[index] += right and restart == 0
            hits[index] += right
    expected = [100 * count / 24 for count in hits]
    assert expected[0] == 100 > expected[-1]
    several = {} if method == "fgsm" else {"steps": 2, "step_share": 0.25, "restarts": restarts}
    for batch_size in (5, 24):
        # Whatever mode the model comes in, it is attacked without dropout.
        split = split_of(images, labels, batch_size)
        made = attack(method, epsilons=tuple(map(str, FIVE)), **several)
        _, curves = measure_attack(model.train(), split, made, ATTACKED_LOSSES[loss])
        assert curves["accuracy_pct"] == expected
        if method == "pgd":
            firsts = [100 * count / 24 for count in first_hits]
            assert curves["first_start_accuracy_pct"] == firsts
            assert sum(firsts) > sum(expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_targets_are_every_class_with_and_without_the_true_one() -> None:
    model = network("capsnet-r3-recon")
    images, labels = said_images(model)
    inputs, classes = as_tensors(images, labels)
    rise, epsilon = rising(model, "margin"), torch.tensor(64 / 255)
    every = wrong = 0
    for target in range(10):
        aimed = torch.full_like(classes, target)
        gradient = input_gradient(lambda at, to: -rise(at, to), inputs, aimed)
        made = one_step(clean(inputs, aimed), gradient, epsilon)
        hit = model(made).argmax(1) == target
        every += int(hit.sum())
        wrong += int((hit & (classes[:, 0] != target)).sum())
    made = attack(goal="targeted", epsilons=(0, "64/255"))
    metrics, curves = measure_attack(model, split_of(images, labels, 7), made, margin_loss)
    # Without an attack each image is taken for one class of ten, here always the true one.
    assert curves["targeted_success_pct"] == [10, pytest.approx(100 * every / 240)]
    assert curves["wrong_target_success_pct"] == [0, pytest.approx(100 * wrong / 216)]
    assert wrong > 0
    assert curves.keys() == {"epsilon", "targeted_success_pct", "wrong_target_success_pct"}
    assert "full_range_accuracy_pct" not in metrics
    made = attack("bim", goal="targeted", epsilons=("64/255",), steps=4, step_share=0.25)
    _, again = measure_attack(model, split_of(images, labels), made, margin_loss)
    assert again["fgsm_targeted_success_pct"] == [curves["targeted_success_pct"][1]]
    assert again["targeted_success_pct"] != again["fgsm_targeted_success_pct"]


def test_transferred_images_are_made_on_the_source_and_shown_to_the_victim() -> None:
    # The source looks at pixel 0 alone, the victim at pixel 1 as well.
    victim, source = Linear([1.0, 1.0, -2.0]), Linear([1.0, 0.0, 0.0])
    images = np.array([[255, 204, 204]], np.uint8).reshape(1, 1, 1, 3)  # victim: 0.2
    split = split_of(images, np.zeros((1, 1), np.uint8))
    made = attack(epsilons=(0, 0.04, 0.06, 0.19, 0.21), source="other")
    metrics, curves = measure_attack(victim, split, made, cross_entropy, (source, cross_entropy))
    assert curves["white_box_accuracy_pct"] == [100, 100, 0, 0, 0]
    assert curves["transfer_accuracy_pct"] == [100, 100, 100, 100, 0]
    assert metrics == {"test_images": 1, "classes": 2, "clean_accuracy_pct": 100}
    _, same = measure_attack(victim, split, made, cross_entropy, (victim, cross_entropy))
    assert same["transfer_accuracy_pct"] == same["white_box_accuracy_pct"]


def test_transferred_images_follow_the_loss_of_their_source() -> None:
    bright = np.full((6, 1, 2, 2), 255, np.uint8)
    split = split_of(bright, np.zeros((6, 1), np.uint8))
    made = attack(epsilons=(0.5,), source="other")
    # The margin loss of such images has no slope, the difference of the scores has one.
    for loss, right in ((margin_loss, 100), (logit_difference, 0)):
        source = (Saturated(), loss)
        _, curves = measure_attack(Pixel(0.8), split, made, cross_entropy, source)
        assert curves["transfer_accuracy_pct"] == [right]
        assert curves["white_box_accuracy_pct"] == [0]


def test_images_without_a_gradient_are_counted() -> None:
    values = [255, 250, 200, 100, 50, 255, 30]  # 0.95 · brightness is above 0.9 for three of them
    images = np.array(values, np.uint8).repeat(4).reshape(7, 1, 2, 2)
    labels = np.zeros((7, 1), np.uint8)
    for batch_size in (1, 3, 7):
        split = split_of(images, labels, batch_size)
        metrics, curves = measure_attack(Saturated(), split, attack(), margin_loss)
        assert metrics["zero_gradient_pct"] == pytest.approx(100 * 3 / 7)
        assert metrics["zero_gradient_pixels_pct"] == pytest.approx(100 * 3 / 7)
        metrics, _ = measure_attack(Saturated(), split, attack(), logit_difference)
        assert metrics["zero_gradient_pct"] == 0
        # Nothing changes the class of a network that only ever scales.
        assert metrics["full_range_accuracy_pct"] == 100
        assert curves["accuracy_pct"] == [100, 100]


def test_an_image_with_one_gradient_counts_as_attackable() -> None:
    split = split_of(np.full((2, 1, 2, 2), 100, np.uint8), np.zeros((2, 1), np.uint8))
    one, none = Linear([0.0, 0.0, 1e-30, 0.0]), Linear([0.0] * 4)
    metrics, _ = measure_attack(one, split, attack(), cross_entropy)
    assert (metrics["zero_gradient_pct"], metrics["zero_gradient_pixels_pct"]) == (0, 75)
    # The square of so small a gradient is 0 in float32.
    assert metrics["gradient_l2_mean"] == pytest.approx(1e-30, rel=1e-5)
    metrics, _ = measure_attack(none, split, attack(), cross_entropy)
    assert (metrics["zero_gradient_pct"], metrics["zero_gradient_pixels_pct"]) == (100, 100)


def test_the_first_images_alone() -> None:
    model = network("cnn-baseline")
    images, labels = said_images(model)
    _, few = measure_attack(model, split_of(images[:9], labels[:9]), attack(), cross_entropy)
    part = attack(images=9)
    metrics, curves = measure_attack(model, split_of(images, labels), part, cross_entropy)
    assert metrics["test_images"] == 9
    assert curves == few
    metrics, _ = measure_attack(model, split_of(images, labels), attack(images=99), cross_entropy)
    assert metrics["test_images"] == 24


# Units.


@pytest.mark.parametrize("operations", [STANDARDISED, CROPPED, CROPPED[::-1]])
def test_standardised_epsilon_is_in_standard_deviations_of_the_image(operations) -> None:
    images = random_images(40)[0]
    raw = torch.from_numpy(images) / 255
    shown = central(raw, operations)
    labels = (shown[:, 0, 0, 0] <= 0).to(torch.uint8).view(-1, 1).numpy()
    split = split_of(images, labels, 7, operations)
    sizes = (0, 0.1, 0.4, 1.0)
    made = attack(epsilons=sizes, epsilon_unit="standardised-pixels")
    metrics, curves = measure_attack(Pixel(0.0), split, made, cross_entropy)
    away = shown[:, 0, 0, 0].abs()
    expected = [100 * float((away > size).float().mean()) for size in sizes]
    assert curves["accuracy_pct"] == pytest.approx(expected, abs=1e-4)
    assert 10 < expected[3] < expected[2] < 100
    # One pixel of all that are shown has a gradient.
    pixels = shown[0].numel()
    assert metrics["zero_gradient_pixels_pct"] == pytest.approx(100 * (1 - 1 / pixels))


def test_standardised_pixels_stay_between_the_image_s_own_black_and_white() -> None:
    images = random_images(40)[0]
    shown = central(torch.from_numpy(images) / 255, STANDARDISED)
    mean = torch.from_numpy(images / 255).mean((1, 2, 3))
    deviation = torch.from_numpy(images / 255).std((1, 2, 3), correction=0)
    black = -mean / deviation
    labels = np.zeros((40, 1), np.uint8)
    level = float(black.median()) + 0.01  # between two images
    split = split_of(images, labels, 7, STANDARDISED)
    sizes = {"epsilons": (9.0,), "epsilon_unit": "standardised-pixels"}
    _, curves = measure_attack(Pixel(level), split, attack(**sizes), cross_entropy)
    # With any ε, only images whose black is below the level can be brought there.
    assert curves["accuracy_pct"] == [pytest.approx(100 * float((black > level).float().mean()))]
    made = attack(**sizes, clip="none")
    metrics, curves = measure_attack(Pixel(level), split, made, cross_entropy)
    assert curves["accuracy_pct"] == [0]
    assert (shown[:, 0, 0, 0] - 9 < level).all()
    contrast = (1 / deviation).float()
    beyond = shown[:, 0, 0, 0] - contrast > level
    assert metrics["full_range_accuracy_pct"] == pytest.approx(100 * float(beyond.float().mean()))


def test_raw_epsilon_is_of_the_image_before_it_is_cropped_and_standardised() -> None:
    model = network("cnn-baseline")
    images, _ = random_images()
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=77)
    operations = (Standardise(op="standardise"), Crop(op="crop", size_px=8))
    inputs = torch.from_numpy(padded) / 255

    def shown(at: Tensor) -> Tensor:
        mean = at.mean((1, 2, 3), keepdim=True)
        deviation = (at - mean).square().mean((1, 2, 3), keepdim=True).sqrt()
        return ((at - mean) / deviation)[:, :, 1:9, 1:9]

    with torch.no_grad():
        labels = model(shown(inputs)).argmax(1, keepdim=True)
    pixels = inputs.clone().requires_grad_()
    cross_entropy(model(shown(pixels)), nn.functional.one_hot(labels[:, 0], 10)).sum().backward()
    # The frame is not shown, and yet has a gradient: it changes mean and deviation.
    assert (pixels.grad[:, :, 0] != 0).all()
    sizes = (0, 2 / 255, 8 / 255, 24 / 255)
    expected = []
    for size in sizes:
        attacked = (inputs + size * pixels.grad.sign()).clamp(0, 1)
        with torch.no_grad():
            hit = model(shown(attacked)).argmax(1) == labels[:, 0]
        expected.append(100 * float(hit.float().mean()))
    split = split_of(padded, labels.to(torch.uint8).numpy(), 10, operations)
    made = attack(epsilons=tuple(map(str, sizes)))
    _, curves = measure_attack(model, split, made, cross_entropy)
    assert curves["accuracy_pct"] == pytest.approx(expected)
    assert expected[0] == 100 > expected[-1]


# What is refused.


def test_standardised_epsilon_of_raw_images_is_one_sentence() -> None:
    made = attack(epsilon_unit="standardised-pixels")
    with pytest.raises(UsageError) as caught:
        measure_attack(Saturated(), split_of(*random_images()), made, margin_loss)
    assert str(caught.value) == (
        "ε is asked for in standardised pixels, but these images are not standardised; write "
        "`epsilon_unit: raw-pixels` in params.yaml."
    )


def test_a_target_for_two_digits_is_one_sentence() -> None:
    images, labels = random_images()
    both = np.concatenate([labels, (labels + 1) % 10], axis=1)
    with pytest.raises(UsageError, match="needs images of one class each, and these have 2"):
        measure_attack(Saturated(), split_of(images, both), attack(goal="targeted"), margin_loss)


def test_two_digits_are_attacked_together() -> None:
    model, (images, labels) = network("capsnet-r3-recon"), random_images()
    with torch.no_grad():
        both = model(as_tensors(images, labels)[0]).topk(2).indices.to(torch.uint8).numpy()
    made = attack(epsilons=(0, "96/255"))
    _, curves = measure_attack(model, split_of(images, both), made, logit_difference)
    assert curves["accuracy_pct"][0] == 100 > curves["accuracy_pct"][1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epsilons": (-0.1,)}, "greater than or equal to 0"),
        ({"epsilons": (0.1, 0.1)}, "should rise"),
        ({"epsilons": (0.2, 0.1)}, "should rise"),
        ({"epsilons": ()}, "at least 1 item"),
        ({"loss": "hinge"}, "'logit-difference'"),
        ({"method": "deepfool"}, "'fgsm', 'bim' or 'pgd'"),
        ({"steps": 2}, "single step"),
        ({"step_share": 0.5}, "single step"),
        ({"method": "bim", "step_share": 0}, "greater than 0"),
        ({"method": "bim", "restarts": 2}, "only pgd starts at random"),
        ({"method": "pgd", "restarts": 2, "goal": "targeted"}, "start once"),
        ({"source": "cnn", "goal": "targeted"}, "are untargeted"),
        ({"images": 0}, "greater than 0"),
    ],
)
def test_attacks_that_make_no_sense(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attack(**changes)
