"""Parameters and shapes of every network of Sabour et al. 2017 in params.yaml.

The big ones are built on torch's meta device, which knows shapes and keeps no numbers.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from capsrepro.config import load_params
from capsrepro.data import DATASETS
from capsrepro.data.augmentation import seen_shape
from capsrepro.models import MODELS

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")

# What a network sees of each data set, crops taken: (channels, height, width), classes, labels.
SEEN: dict[str, tuple[tuple[int, int, int], int, int]] = {
    "digits": ((1, 8, 8), 10, 1),
    "mnist": ((1, 28, 28), 10, 1),
    "multimnist": ((1, 36, 36), 10, 2),
    "affnist": ((1, 40, 40), 10, 1),
    "cifar10": ((3, 24, 24), 10, 1),
    "smallnorb": ((2, 32, 32), 5, 1),
    "svhn": ((3, 32, 32), 10, 1),
    "matrix-capsules": ((2, 32, 32), 5, 1),
}

# Parameters of the whole network, of its decoder, and the number of primary capsules. Those that
# paper_spec A0.2 has stand there with their derivation; the biases of the code are one number per
# dimension of a class capsule: 160, or 80 for five classes.
CAPSNETS = {
    "digits/capsnet-r1-recon": (148_608, 70_080, 32),
    "digits/capsnet-r3-recon": (148_608, 70_080, 32),
    "mnist/capsnet-r1": (6_804_224, 0, 1152),
    "mnist/capsnet-r3": (6_804_224, 0, 1152),
    "mnist/capsnet-r1-recon": (8_215_568, 1_411_344, 1152),
    "mnist/capsnet-r3-recon": (8_215_568, 1_411_344, 1152),
    "mnist/capsnet-r10-recon": (8_215_568, 1_411_344, 1152),
    "mnist/capsnet-r1-code": (6_804_224 + 160, 0, 1152),
    "mnist/capsnet-r3-code": (6_804_224 + 160, 0, 1152),
    "mnist/capsnet-r1-recon-code": (8_215_568 + 160, 1_411_344, 1152),
    "mnist/capsnet-r3-recon-code": (8_215_568 + 160, 1_411_344, 1152),
    "multimnist/capsnet-r1-recon": (11_361_808, 1_936_144, 3200),
    "multimnist/capsnet-r3-recon": (11_361_808, 1_936_144, 3200),
    "multimnist/capsnet-r1-recon-code": (11_361_808 + 160, 1_936_144, 3200),
    "multimnist/capsnet-r3-recon-code": (11_361_808 + 160, 1_936_144, 3200),
    "affnist/capsnet-r3": (11_227_904, 0, 4608),
    "affnist/capsnet-r3-recon": (13_475_648, 2_247_744, 4608),
    "cifar10/capsnet-r1-recon": (11_990_528 + 2_378_944, 2_378_944, 1024),
    "cifar10/capsnet-r3-recon": (11_990_528 + 2_378_944, 2_378_944, 1024),
    "cifar10/capsnet-r1-code": (22_476_288 + 160, 0, 9216),
    "cifar10/capsnet-r3-code": (22_476_288 + 160, 0, 9216),
    "smallnorb/capsnet-r3": (6_661_120, 0, 2048),
    "smallnorb/capsnet-r3-recon": (6_661_120 + 2_665_984, 2_665_984, 2048),
    "smallnorb/capsnet-r3-code": (6_661_120 + 80, 0, 2048),
    "svhn/capsnet-r3": (1_004_896, 0, 1024),
}

CNNS = {
    "digits/cnn-baseline": 80_442,
    "mnist/cnn-baseline": 35_445_522,
    "mnist/cnn-pooled": 832 + 51_264 + 3_212_288 + 10_250,  # layer by layer, by hand
    "multimnist/cnn-baseline": 24_563_978,
    "multimnist/cnn-baseline-code": 24_535_306,
    "affnist/cnn-baseline": 13_325_066,
    "smallnorb/cnn-baseline": 4_253_349,
    "matrix-capsules/cnn-baseline": 4_253_349,
}

# 316,650 and 68,618 are those of paper_spec B0. With vectors a transform has 256 numbers for 16:
# 15 · 16 · (9 · 32 · 32 · 2 + 32 · 5) more; with 256 channels 224 · (2 · 25 + 1 + 32 · 17) more.
MATCAPS = {
    **dict.fromkeys(
        [
            *("matcaps-em1", "matcaps-em2", "matcaps-em3", "matcaps-em5", "matcaps-em3-nocoord"),
            *("matcaps-em3-margin", "matcaps-em3-crossentropy", "matcaps-em3-mixing"),
            *("matcaps-em1-code", "matcaps-em2-code", "matcaps-em3-code"),
        ],
        316_650,
    ),
    **dict.fromkeys(["matcaps-small-em3", "matcaps-small-em3-code"], 68_618),
    **dict.fromkeys(["matcaps-small-em2-short", "matcaps-small-em3-short"], 68_618),
    **{f"matcaps-small-em{iterations}-mean": 68_618 for iterations in (1, 2, 3)},
    **dict.fromkeys(["matcaps-em3-vector", "matcaps-em3-vector-nocoord"], 316_650 + 4_462_080),
    "matcaps-em3-conv256": 316_650 + 133_280,
}


def spec_of(name: str) -> Any:
    group, model = name.split("/")
    return PARAMS.models[group][model]


def network(name: str, **changes: Any) -> Any:
    """The network without its numbers, its keys handed over as `assembly.build_model` does."""
    spec = spec_of(name)
    image_shape, classes, _ = SEEN[name.split("/")[0]]
    fields = spec.model_dump(exclude={"family", "stands_for", "reading"})
    if "primary_scale" in fields:
        fields["primary_scale"] = float(Fraction(fields["primary_scale"]))
    with torch.device("meta"):
        return MODELS[spec.family](image_shape=image_shape, classes=classes, **fields | changes)


def size(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def test_no_network_is_left_out() -> None:
    named = {f"{group}/{name}" for group, models in PARAMS.models.items() for name in models}
    assert named == {*CAPSNETS, *CNNS, *(f"matrix-capsules/{name}" for name in MATCAPS)}


@pytest.mark.parametrize("name", CAPSNETS)
def test_capsnet(name: str) -> None:
    model, spec = network(name), spec_of(name)
    image_shape, classes, labels = SEEN[name.split("/")[0]]
    parameters, decoder_parameters, capsules = CAPSNETS[name]
    assert (size(model), size(model.decoder)) == (parameters, decoder_parameters)
    images = torch.empty(3, *image_shape, device="meta")
    primary = model.primary(model.conv1(images))
    assert primary.shape == (3, spec.primary_dim, capsules)
    class_capsules = model.class_capsules(images)
    assert class_capsules.shape == (3, classes, spec.class_dim)
    assert model(images).shape == (3, classes)
    if model.decoder is not None:
        labels_BL = torch.empty(3, labels, dtype=torch.int64, device="meta")
        assert model.decoder(class_capsules, labels_BL).shape == (3, labels, *image_shape)


@pytest.mark.parametrize("name", CNNS)
def test_cnn(name: str) -> None:
    model = network(name)
    image_shape, classes, _ = SEEN[name.split("/")[0]]
    assert size(model) == CNNS[name]
    assert model(torch.empty(3, *image_shape, device="meta")).shape == (3, classes)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mnist/cnn-baseline", 13_277_970),
        ("multimnist/cnn-baseline", 9_883_914),
        ("smallnorb/cnn-baseline", 1_697_445),
    ],
)
def test_without_padding_the_baselines_are_far_from_what_was_printed(
    name: str, parameters: int
) -> None:
    model = network(name, padding="valid")
    assert size(model) == parameters
    image_shape, classes, _ = SEEN[name.split("/")[0]]
    assert model(torch.empty(3, *image_shape, device="meta")).shape == (3, classes)


@pytest.mark.parametrize("name", MATCAPS)
def test_matrix_capsules(name: str) -> None:
    spec = spec_of(f"matrix-capsules/{name}")
    fields = spec.model_dump(exclude={"family", "stands_for", "reading"})
    model = MODELS[spec.family](image_shape=(2, 32, 32), classes=5, **fields)
    assert size(model) == MATCAPS[name]
    assert model(torch.rand(1, 2, 32, 32)).shape == (1, 5)
    assert model.classification_loss == spec.classification_loss
    assert f"-em{spec.routing.iterations}" in name
    variant = "-mean" if spec.routing.assignment == "mean" else ""
    if spec.routing.inverse_temperature == 0.05:
        variant = "-short"
    assert name == spec.stands_for + ("-code" if spec.reading == "code" else variant)
    assert (spec.pose == "vector") == ("-vector" in name)
    assert (spec.coordinates == "none") == ("-nocoord" in name)
    assert (spec.routing.activation == "mixing-proportion") == ("-mixing" in name)


def test_one_view_takes_as_many_weights_fewer_as_the_first_kernel_has() -> None:
    protocol = PARAMS.protocols["matcaps-smallnorb-monocular"]
    shape = seen_shape(DATASETS[protocol.dataset].image_shape, protocol.recipe.operations)
    for iterations, name in enumerate(protocol.run_models, start=1):
        spec = PARAMS.models[protocol.models][name]
        # A = 64, B = 8, C = D = 16: 25·64 + 64 of conv1, 64·8·17 of the primary capsules, 16 for
        # each transform and two β for each type above them.
        transforms = 9 * 8 * 16 + 9 * 16 * 16 + 16 * 5
        parameters = 25 * 64 + 64 + 64 * 8 * 17 + 16 * transforms + 2 * (16 + 16 + 5)
        fields = spec.model_dump(exclude={"family", "stands_for", "reading"})
        model = MODELS[spec.family](image_shape=shape, classes=5, **fields)
        assert size(model) == parameters == 67_018 == 68_618 - 25 * 64
        assert model(torch.rand(1, 1, 32, 32)).shape == (1, 5)
        routing = spec.routing
        assert (routing.iterations, routing.assignment) == (iterations, "mean")


def test_affnist_networks_are_of_similar_size() -> None:
    cnn, capsnet = CNNS["affnist/cnn-baseline"], CAPSNETS["affnist/capsnet-r3-recon"][0]
    assert cnn == pytest.approx(capsnet, rel=0.02)


@pytest.mark.parametrize("name", [*CAPSNETS, *CNNS])
def test_a_network_knows_its_loss(name: str) -> None:
    assert network(name).classification_loss == spec_of(name).classification_loss


@pytest.mark.parametrize("name", CAPSNETS)
def test_readings(name: str) -> None:
    """The code's PrimaryCaps is one round of routing by a uniform softmax over its own types."""
    spec = spec_of(name)
    code = spec.reading == "code"
    assert name.endswith("-code") == code
    outputs = spec.primary_types + spec.none_of_the_above
    assert spec.primary_scale == (Fraction(1, outputs) if code else 1)
    assert spec.class_bias == code
    assert spec.margin_loss_reduction == ("half-mean" if code else "sum")
    assert spec.none_of_the_above == name.startswith("cifar10/")
    assert spec.padding == ("same" if code and name.startswith("cifar10/") else "valid")
    assert spec.decoder_widths == (() if "-recon" not in name else spec.decoder_widths)
    assert f"-r{spec.routing_iterations}" in name
    assert spec.routing_gradient == "full"


@pytest.mark.parametrize(
    ("name", "loss", "dropout"),
    [
        ("multimnist/cnn-baseline", "sigmoid-cross-entropy", 0),
        ("multimnist/cnn-baseline-code", "sigmoid-cross-entropy-halved", 0),
        ("affnist/cnn-baseline", "cross-entropy", 0.5),
        ("smallnorb/cnn-baseline", "cross-entropy", 0.5),
    ],
)
def test_pooled_baselines(name: str, loss: str, dropout: float) -> None:
    model = network(name)
    assert model.classification_loss == loss
    assert [layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)] == [
        dropout
    ]


def test_no_decoder_is_asked_for_standardised_pixels() -> None:
    # It ends in a sigmoid and could never draw a pixel below 0 or above 1.
    for protocol in PARAMS.protocols.values():
        operations = {operation.op for operation in protocol.recipe.operations}
        if operations & {"standardise", "brightness", "contrast"}:
            for name in protocol.run_models:
                spec = PARAMS.models[protocol.models][name]
                assert not getattr(spec, "decoder_widths", ()), (protocol.title, name)


def test_decoder_is_as_large_as_the_image() -> None:
    assert network("cifar10/capsnet-r3-recon").decoder.layers[-2].out_features == 24 * 24 * 3
    assert math.prod(SEEN["smallnorb"][0]) == 2048
