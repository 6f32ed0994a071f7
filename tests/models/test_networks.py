import math
from pathlib import Path

import pytest
import torch

from capsrepro.config import load_params, resolve_run
from capsrepro.models import MODELS
from capsrepro.models.convolution import Conv2d, output_size, set_convolution_precision
from capsrepro.models.losses import margin_loss, present
from capsrepro.running.assembly import build_model

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")


def model_of(run: str) -> torch.nn.Module:
    return build_model(resolve_run(PARAMS, run), CPU)


@pytest.mark.parametrize("name", ["cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon"])
def test_objective_has_gradients_for_every_parameter(name: str) -> None:
    model = model_of(f"digits/{name}/seed-0")
    images, labels = torch.rand(3, 1, 8, 8), torch.tensor([[0], [5], [9]])
    objective = model.objective(images, labels, images.unsqueeze(1))
    objective.loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_seed_decides_the_start() -> None:
    first, again, other = (
        model_of(f"digits/capsnet-r3-recon/seed-{seed}").state_dict() for seed in (0, 0, 1)
    )
    for name, value in first.items():
        assert torch.equal(value, again[name])
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_a_capsule_is_eight_channels_at_one_place() -> None:
    # `view` on NCHW without a permutation would mix places; here capsule (type t, place p) must
    # depend on place p alone.
    primary = model_of("digits/capsnet-r3-recon/seed-0").primary
    features = torch.zeros(1, 64, 6, 6)
    base = primary(features)
    features[0, :, 0, 0] = 1.0
    changed = (primary(features) != base).any(1)[0].view(8, 2, 2)
    assert changed[:, 0, 0].all()
    assert not changed[:, 1, :].any()
    assert not changed[:, 0, 1].any()


def test_code_reading_scales_primary_capsules_before_their_bias() -> None:
    code = model_of("mnist/capsnet-r3-recon-code/seed-0")
    assert code.primary.scale == 1 / 32
    assert torch.equal(code.primary.bias, torch.full((256,), 0.1))
    assert torch.equal(code.bias_KD, torch.full((10, 16), 0.1))
    assert code.conv1.weight.abs().max() <= 0.1  # truncated at two standard deviations of 0.05
    assert 0.08 < code.primary.convolution.weight.std() < 0.1
    for layer in code.decoder.layers[::2]:
        assert 0.08 < layer.weight.std() < 0.1
        assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.1))


def test_decoder_draws_only_the_named_capsule() -> None:
    model = model_of("digits/capsnet-r3-recon/seed-0")
    capsules = torch.rand(1, 10, 16)
    drawn = model.decoder(capsules, torch.tensor([[4]]))
    others = capsules.clone()
    others[:, [0, 1, 2, 3, 5, 6, 7, 8, 9]] = torch.rand(1, 9, 16)
    assert torch.equal(model.decoder(others, torch.tensor([[4]])), drawn)
    assert not torch.equal(model.decoder(capsules, torch.tensor([[5]])), drawn)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(24, 9, 1), (24, 9, 2), (7, 4, 2), (8, 5, 3)]
)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_convolution_sizes(size: int, kernel: int, stride: int, padding: str) -> None:
    convolution = Conv2d(1, 2, kernel, stride=stride, padding=padding)
    expected = output_size(size, kernel, stride, padding)
    assert convolution(torch.zeros(1, 1, size, size)).shape == (1, 2, expected, expected)


def test_same_padding_puts_the_odd_pixel_at_the_end() -> None:
    # TensorFlow pads 24 -> 12 with kernel 9, stride 2 by 3 before and 4 after.
    convolution = Conv2d(1, 1, 9, stride=2, padding="same", bias=False)
    image = torch.zeros(1, 1, 24, 24)
    image[0, 0, 0, 0] = 1.0
    torch.testing.assert_close(convolution(image)[0, 0, 0, 0], convolution.weight[0, 0, 3, 3])


def test_reduced_precision_touches_convolutions_only() -> None:
    model = model_of("digits/capsnet-r3-recon/seed-0")
    images = torch.rand(4, 1, 8, 8)
    exact = model(images)
    set_convolution_precision(model, "bf16")
    reduced = model(images)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, exact)
    torch.testing.assert_close(reduced, exact, rtol=0, atol=0.02)
    set_convolution_precision(model, "float32")
    assert torch.equal(model(images), exact)


def test_reduced_precision_is_the_same_without_the_hardware(monkeypatch) -> None:
    convolution = Conv2d(3, 8, 5)
    convolution.precision = "bf16"
    images = torch.rand(2, 3, 12, 12)
    here = convolution(images)
    monkeypatch.setattr("capsrepro.models.convolution.has_bfloat16", lambda device: False)
    # Hardware rounds the sums to bfloat16 as well: eight bits.
    torch.testing.assert_close(convolution(images), here, rtol=2**-8, atol=2**-8)


def test_unfitting_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit into 8x8"):
        output_size(8, 9, 1, "valid")


# What public implementations got wrong.


def lively(name: str) -> torch.nn.Module:
    """A start far from zero: capsules that nobody trained are about 0.001 long and all alike."""
    model = model_of(f"digits/{name}/seed-0").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 6 if parameter.dim() > 1 else 1
    return model


@pytest.mark.parametrize("name", ["cnn-baseline", "capsnet-r3-recon"])
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    model = lively(name)
    images = torch.rand(5, 1, 8, 8)
    together = model(images)
    torch.testing.assert_close(model(images[:1]), together[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(images.flip(0)).flip(0), together, rtol=1e-4, atol=1e-4)


def test_scores_are_the_lengths_themselves() -> None:
    # A softmax over them could reach neither margin: of ten lengths none would exceed 0.24.
    model = model_of("digits/capsnet-r3-recon/seed-0")
    with torch.no_grad():
        model.transforms_KEID[0] *= 100
    images = torch.rand(2, 1, 8, 8)
    scores = model(images)
    torch.testing.assert_close(scores, model.class_capsules(images).norm(dim=2))
    assert (scores[:, 0] > 0.9).all()
    assert (scores[:, 1:] < 0.5).all()


def test_loss_is_a_mean_over_the_batch() -> None:
    model = lively("capsnet-r3-recon")
    images, labels = torch.rand(3, 1, 8, 8), torch.tensor([[1], [2], [3]])
    once = model.objective(images, labels, images.unsqueeze(1))
    images, labels = images.repeat(4, 1, 1, 1), labels.repeat(4, 1)
    four_times = model.objective(images, labels, images.unsqueeze(1))
    torch.testing.assert_close(four_times.loss, once.loss)
    torch.testing.assert_close(four_times.terms, once.terms)


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 11, 9)])
def test_reconstruction_counts_by_its_sum_whatever_the_image(image_shape) -> None:
    spec = PARAMS.models["digits"]["capsnet-r3-recon"]
    fields = spec.model_dump(exclude={"family", "stands_for", "reading"})
    fields["primary_scale"] = 1.0
    model = MODELS["capsnet"](image_shape=image_shape, classes=10, **fields)
    images = torch.rand(2, *image_shape)
    targets, labels = torch.rand(2, 1, *image_shape), torch.tensor([[7], [8]])
    loss, terms, _ = model.objective(images, labels, targets)
    drawn = model.decoder(model.class_capsules(images), labels)
    per_image = (drawn - targets).square().mean((1, 2, 3, 4)) * math.prod(image_shape)
    torch.testing.assert_close(loss, terms["margin_loss"] + 0.0005 * per_image.mean())


def test_training_draws_the_true_class_and_not_the_predicted_one() -> None:
    model = lively("capsnet-r3-recon")
    images = torch.rand(1, 1, 8, 8)
    capsules = model.class_capsules(images)
    ranking = model(images)[0].argsort(descending=True)
    for label in (ranking[0], ranking[-1]):
        # A target that is what the true class draws leaves no reconstruction loss.
        target = model.decoder(capsules, label.view(1, 1)).detach()
        terms = model.objective(images, label.view(1, 1), target).terms
        assert terms["reconstruction_sse"].item() == pytest.approx(0, abs=1e-9)
        other = model.objective(images, ranking[4].view(1, 1), target).terms
        assert other["reconstruction_sse"].item() > 1e-4


def test_two_digits_are_drawn_each_from_its_own_capsule_by_one_decoder() -> None:
    model = lively("capsnet-r3-recon")
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([[3, 8], [5, 0]])
    capsules = model.class_capsules(images)
    drawn = model.decoder(capsules, labels)
    for place in (0, 1):
        torch.testing.assert_close(
            drawn[:, place : place + 1], model.decoder(capsules, labels[:, place : place + 1])
        )
    # Both reconstruction losses are added, and both classes count as present.
    targets = torch.rand(2, 2, 1, 8, 8)
    both = model.objective(images, labels, targets)
    apart = [
        model.objective(images, labels[:, p : p + 1], targets[:, p : p + 1]).terms for p in (0, 1)
    ]
    torch.testing.assert_close(
        both.terms["reconstruction_sse"], sum(one["reconstruction_sse"] for one in apart)
    )
    expected = margin_loss(model(images), present(labels, 10)).mean()
    torch.testing.assert_close(both.terms["margin_loss"], expected)
    # Which digit is called the first does not matter, as long as its image goes with it.
    swapped = model.objective(images, labels.flip(1), targets.flip(1))
    torch.testing.assert_close(swapped.loss, both.loss)
    crossed = model.objective(images, labels, targets.flip(1))
    assert not torch.allclose(crossed.loss, both.loss)


def test_a_black_image_gives_finite_gradients() -> None:
    model = model_of("digits/capsnet-r3-recon/seed-0")
    for bias in (model.conv1.bias, model.primary.bias):
        torch.nn.init.zeros_(bias)
    images = torch.zeros(2, 1, 8, 8)
    model.objective(images, torch.tensor([[0], [1]]), images.unsqueeze(1)).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_primary_capsules_are_squashed_one_by_one() -> None:
    primary = model_of("digits/capsnet-r3-recon/seed-0").primary
    features = 5 * torch.randn(2, 64, 6, 6)
    squashed = primary(features)
    maps = primary.convolution(features) + primary.bias.view(-1, 1, 1)
    s = maps.view(2, 8, 8, 2, 2)[1, 3, :, 1, 0]  # type 3 at row 1, column 0
    norm = s.norm()
    torch.testing.assert_close(squashed[1, :, 3 * 4 + 2], norm**2 / (1 + norm**2) * s / norm)
    assert squashed.norm(dim=1).max() < 1
