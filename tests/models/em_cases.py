"""Small layers of matrix capsules, and what the loops of `em_procedure_1` make of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import em_procedure_1
import pytest
import torch
from torch import Tensor

from capsrepro.models import capsule_layers
from capsrepro.models.capsule_layers import Capsules, RoutedCapsules
from capsrepro.models.cpu import type_shares
from capsrepro.models.em_routing import EMRouting
from capsrepro.models.receptive_fields import ReceptiveFields

# λ is far above the papers' 0.01, at which every activation is about a half and mistakes in it are
# hard to see; the floor is far above the text's, so that float32 can follow.
TEXT = EMRouting(
    iterations=3,
    activation="procedure-1",
    inverse_temperature=0.4,
    variance_floor=0.05,
    new_share=1.0,
    assignment="sum",
)
CODE = replace(TEXT, activation="released-code", new_share=0.9)
READINGS = {
    "text": TEXT,
    "code": CODE,
    "text-mean": replace(TEXT, assignment="mean"),
    "code-mean": replace(CODE, assignment="mean"),
    "mixing": replace(TEXT, activation="mixing-proportion"),
}
_FORMULAS = {"procedure-1": "text", "released-code": "code", "mixing-proportion": "mixing"}


WAYS = ["compiled", "factored", "written"]
"""What votes are made by; only the first uses compiled loops at all, where they can be."""


@dataclass(frozen=True)
class Case:
    """A square grid of children, a kernel and its stride; the class layer has one place."""

    side: int
    kernel: int
    stride: int
    images: int = 1
    is_class_layer: bool = False
    children: int = 2
    parents: int = 2


CASES = {
    "borders": Case(5, 3, 2),
    "overlaps": Case(4, 3, 1, images=2),
    "last row unseen": Case(6, 3, 2),
    "classes": Case(3, 3, 1, images=2, is_class_layer=True, parents=3),
}


class Inputs(NamedTuple):
    """All that a layer's output depends on.

    Shapes: (B, X, I, R, C), (B, X, I), (K, I, R, J, C), (J,), (J,).
    """

    poses: Tensor
    activations: Tensor
    transforms: Tensor
    beta_a: Tensor
    beta_u: Tensor

    def cast(self, dtype: torch.dtype) -> Inputs:
        """Leaves that gradients can be asked for."""
        return Inputs(*(x.detach().to(dtype).requires_grad_() for x in self))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By the names that the package's layer has for them."""
        return {
            "transforms_KIKJC": self.transforms,
            "beta_a_J": self.beta_a,
            "beta_u_J": self.beta_u,
        }


def inputs_of(case: Case, spread: float = 0.5) -> Inputs:
    """Random float64 numbers that float32 holds exactly.

    `spread` is that of the transforms: the further votes are apart, the more decided routing is,
    and the more it makes of a rounding error.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    kernel = 1 if case.is_class_layer else case.kernel**2
    places, children = case.side**2, case.children
    return Inputs(
        normal(case.images, places, children, 4, 4).double(),
        normal(case.images, places, children).sigmoid().double(),
        (spread * normal(kernel, children, 4, case.parents, 4)).double(),
        (1e-3 * normal(case.parents)).double(),
        normal(case.parents).double(),
    )


def offsets_of(case: Case) -> Tensor | None:
    """Any places at all for the class layer, shape (K, R, C)."""
    if not case.is_class_layer:
        return None
    return torch.randn(case.kernel**2, 4, 4, generator=torch.Generator().manual_seed(7)).double()


def layer_of(case: Case, how: EMRouting, dtype: torch.dtype) -> RoutedCapsules:
    """The package's layer, its parameters still to be filled in."""
    layer = RoutedCapsules(
        ReceptiveFields(case.side, case.kernel, case.stride),
        case.children,
        case.parents,
        "matrix",
        how,
        shared_beta=False,
        shared_transforms=case.is_class_layer,
        offsets_KRC=offsets_of(case),
    )
    return layer.to(dtype)


def ours(
    case: Case, how: EMRouting, inputs: Inputs, *, way: str = "compiled"
) -> tuple[Tensor, Tensor]:
    """Poses_BLJRC and activations_BLJ of the package's layer, routed in one of `WAYS`."""
    layer = layer_of(case, how, inputs.poses.dtype)
    layer.factored = way != "written"
    children = Capsules(inputs.poses, inputs.activations)
    with pytest.MonkeyPatch.context() as patch:
        if way != "compiled":
            for module in (capsule_layers, type_shares):
                patch.setattr(module, "can_compile", lambda _: False)
        poses, activations = torch.func.functional_call(layer, inputs.parameters, (children,))
    return poses, activations


def printed_steps(case: Case, how: EMRouting, inputs: Inputs) -> list[list[em_procedure_1.Step]]:
    """The loops' steps for each image."""
    grid, window = (case.side, case.side), (case.kernel, case.kernel)
    reading = em_procedure_1.Reading(
        _FORMULAS[how.activation],
        how.inverse_temperature,
        how.variance_floor,
        how.new_share,
        how.assignment == "mean",
    )
    transforms = inputs.transforms.expand(case.kernel**2, -1, -1, -1, -1).unflatten(0, window)
    offsets = offsets_of(case)
    if offsets is not None:
        offsets = offsets.unflatten(0, window)
    betas = inputs.beta_a, inputs.beta_u
    steps = []
    for poses_XIRC, activations_XI in zip(inputs.poses, inputs.activations, strict=True):
        layer = em_procedure_1.layer(
            poses_XIRC.unflatten(0, grid), transforms, case.stride, offsets
        )
        here_YXI = activations_XI.unflatten(0, grid)
        steps.append(em_procedure_1.route(layer, here_YXI, *betas, reading, how.iterations))
    return steps


def printed(case: Case, how: EMRouting, inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    """Poses_BLJRC and activations_BLJ after 1, 2, … iterations, by the loops."""
    steps = zip(*printed_steps(case, how, inputs), strict=True)
    return [
        (
            torch.stack([em_procedure_1.stacked(one.poses) for one in images]),
            torch.stack([em_procedure_1.stacked(one.activations) for one in images]),
        )
        for images in steps
    ]


def outcome(parents: tuple[Tensor, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Poses, activations, and the gradients of one arbitrary number made of both."""
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(())
    for values in parents:
        weights = torch.randn(values.shape, generator=generator).to(values.dtype)
        total = total + (weights * values).sum()
    gradients = torch.autograd.grad(
        total, list(inputs), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    results = {"poses": parents[0].detach(), "activations": parents[1].detach()}
    for name, gradient in zip(inputs._fields, gradients, strict=True):
        results[f"by {name}"] = gradient
    return results


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference in units of the largest number of the second; 0 if both are zero."""
    one, other = one.double(), other.double()
    scale = other.abs().max().item()
    return ((one - other).abs().max().item() / scale) if scale else one.abs().max().item()


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """`apart` for each name."""
    return {name: apart(one[name], other[name]) for name in other}
