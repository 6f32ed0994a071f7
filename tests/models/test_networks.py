from pathlib import Path

import pytest
import torch

from capsrepro.config import load_params, resolve_run
from capsrepro.models.convolution import Conv2d, output_size, set_reduced_convolutions
from capsrepro.running.assembly import build_model

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")


def model_of(run: str) -> torch.nn.Module:
    return build_model(resolve_run(PARAMS, run), CPU)


# paper_spec A0.2: the paper prints 6.8M, 8.2M and 35.4M.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("capsnet-r1", 6_804_224),
        ("capsnet-r3", 6_804_224),
        ("capsnet-r1-recon", 8_215_568),
        ("capsnet-r3-recon", 8_215_568),
        ("capsnet-r3-code", 6_804_384),
        ("capsnet-r3-recon-code", 8_215_728),
        ("cnn-baseline", 35_445_522),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in model_of(f"mnist/{name}/seed-0").parameters()) == parameters


def test_shapes_of_the_paper() -> None:
    model = model_of("mnist/capsnet-r3-recon/seed-0")
    images = torch.rand(2, 1, 28, 28)
    features = model.conv1(images)
    assert features.shape == (2, 256, 20, 20)
    assert model.primary(features).shape == (2, 8, 1152)
    capsules = model.class_capsules(images)
    assert capsules.shape == (2, 10, 16)
    assert model(images).shape == (2, 10)
    assert model.decoder(capsules, torch.tensor([[1, 2], [3, 4]])).shape == (2, 2, 1, 28, 28)


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
    set_reduced_convolutions(model, True)
    reduced = model(images)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, exact)
    torch.testing.assert_close(reduced, exact, rtol=0, atol=0.02)
    set_reduced_convolutions(model, False)
    assert torch.equal(model(images), exact)


def test_reduced_precision_is_the_same_without_the_hardware(monkeypatch) -> None:
    convolution = Conv2d(3, 8, 5)
    convolution.reduced = True
    images = torch.rand(2, 3, 12, 12)
    here = convolution(images)
    monkeypatch.setattr("capsrepro.models.convolution.has_bfloat16", lambda device: False)
    # Hardware rounds the sums to bfloat16 as well: eight bits.
    torch.testing.assert_close(convolution(images), here, rtol=2**-8, atol=2**-8)


def test_unfitting_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit into 8x8"):
        output_size(8, 9, 1, "valid")
