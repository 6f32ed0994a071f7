"""How healthy a network of matrix capsules is: looked at after every epoch of its training.

Training of EM routing is known to break down (Gritzman 2019 and others), so what leads there is a
result of its own: variances that vanish, activations that saturate, assignments that freeze, and
gradients that explode or die.

Shape suffixes: see `capsrepro.models.votes`.
"""

from __future__ import annotations

import torch

from capsrepro.data.batches import Batch
from capsrepro.models.capsule_layers import RoutedCapsules
from capsrepro.models.em_routing import Parents
from capsrepro.models.matrix_capsules import MatrixCapsNet

_SATURATED = 0.01
"""An activation nearer than this to 0 or 1 counts as saturated: its slope is below 1/100."""


def measure_stability(model: MatrixCapsNet, batch: Batch) -> dict[str, float]:
    """Variances, activations, assignments and gradients on one batch.

    Neither the model nor its gradients are changed, and nothing is drawn at random.

    Args:
        model: In whichever mode.
        batch: Some training images.

    Returns:
        For each of the layers conv_caps1, …, class_caps: `smallest_variance_<layer>`,
        `saturated_pct_<layer>` (activations within 0.01 of 0 or 1), `active_pct_<layer>` (above
        ½), and by iteration `routing_entropy_nat_<layer>_<iteration>`, the mean over children of
        −Σ R ln R over all parents that see them. And `gradient_norm_<part>` of the loss, for conv1
        and primary too.
    """
    with torch.no_grad():
        health = _routing_health(model, batch)
    parts = {"conv1": model.conv1, "primary": model.primary, **_layers(model)}
    owned = [(name, weight) for name, part in parts.items() for weight in part.parameters()]
    gradients = torch.autograd.grad(model.objective(*batch).loss, [weight for _, weight in owned])
    for name in parts:
        norms = [g.norm() for (owner, _), g in zip(owned, gradients, strict=True) if owner == name]
        health[f"gradient_norm_{name}"] = float(torch.stack(norms).norm())
    return health


def _layers(model: MatrixCapsNet) -> dict[str, RoutedCapsules]:
    *conv_caps, class_caps = model.routed_layers
    named = {f"conv_caps{n}": layer for n, layer in enumerate(conv_caps, start=1)}
    return {**named, "class_caps": class_caps}


def _routing_health(model: MatrixCapsNet, batch: Batch) -> dict[str, float]:
    health: dict[str, float] = {}
    capsules = model.primary_capsules(batch.images)
    for name, layer in _layers(model).items():
        iterations = layer.route(capsules)
        last = iterations[-1]
        near = torch.minimum(last.activations, 1 - last.activations) < _SATURATED
        health[f"smallest_variance_{name}"] = float(last.variances.min())
        health[f"saturated_pct_{name}"] = 100 * float(near.double().mean())
        health[f"active_pct_{name}"] = 100 * float((last.activations > 0.5).double().mean())
        seen = int((layer.fields.seen > 0).sum()) * capsules.activations[:, 0].numel()
        for iteration, parents in enumerate(iterations, start=1):
            entropy = _entropy(parents) / seen
            health[f"routing_entropy_nat_{name}_{iteration}"] = entropy
        capsules = layer.capsules_of(last, len(batch.images))
    return health


def _entropy(parents: Parents) -> float:
    """Σ −R ln R over everything."""
    return float(torch.special.entr(parents.assignments).sum(dtype=torch.float64))
