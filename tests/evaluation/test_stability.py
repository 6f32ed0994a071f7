from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import Batch
from capsrepro.evaluation.stability import measure_stability
from capsrepro.models.matrix_capsules import MatrixCapsNet
from capsrepro.running.assembly import build_model

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
LAYERS = ("conv_caps1", "conv_caps2", "class_caps")
RUN = "matcaps-mnist-short/matcaps-small-em3/seed-0"


def network() -> MatrixCapsNet:
    model = build_model(resolve_run(PARAMS, RUN), torch.device("cpu"))
    assert isinstance(model, MatrixCapsNet)
    return model


def batch(images: int = 4) -> Batch:
    drawn = torch.rand(images, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(images).view(-1, 1) % 10
    return Batch(drawn, labels, drawn.unsqueeze(1))


def test_every_layer_part_and_iteration_is_measured():
    measured = measure_stability(network(), batch())
    assert set(measured) == {
        *(f"smallest_variance_{layer}" for layer in LAYERS),
        *(f"saturated_pct_{layer}" for layer in LAYERS),
        *(f"active_pct_{layer}" for layer in LAYERS),
        *(f"routing_entropy_nat_{layer}_{i}" for layer in LAYERS for i in (1, 2, 3)),
        *(f"gradient_norm_{part}" for part in ("conv1", "primary", *LAYERS)),
    }
    assert all(math.isfinite(value) for value in measured.values())


def test_first_assignments_are_uniform_over_the_parents_that_see_a_child():
    model = network()
    measured = measure_stability(model, batch())
    for name, layer in zip(LAYERS, model.routed_layers, strict=True):
        seen = layer.fields.seen[layer.fields.seen > 0].double()
        expected = float((seen * layer.types).log().mean())
        assert measured[f"routing_entropy_nat_{name}_1"] == pytest.approx(expected, rel=1e-5)


def test_variances_activations_and_gradients_are_those_of_the_network():
    model, images = network(), batch()
    with torch.no_grad():
        model.class_caps.beta_a_J.fill_(1e6)  # saturates the class capsules and nothing else
    measured = measure_stability(model, images)
    assert measured["saturated_pct_class_caps"] == measured["active_pct_class_caps"] == 100
    assert measured["saturated_pct_conv_caps1"] == 0
    with torch.no_grad():
        last = model.conv_caps[0].route(model.primary_capsules(images.images))[-1]  # type: ignore[operator]
    assert measured["smallest_variance_conv_caps1"] == pytest.approx(float(last.variances.min()))
    model.objective(*images).loss.backward()
    squares = sum(
        float(p.grad.square().sum()) for p in model.primary.parameters() if p.grad is not None
    )
    assert measured["gradient_norm_primary"] == pytest.approx(math.sqrt(squares), rel=1e-4)


def test_measuring_leaves_the_network_and_the_random_state_alone():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    measure_stability(model, batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
