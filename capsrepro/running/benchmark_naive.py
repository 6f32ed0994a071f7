"""The naive reference: the same network as one would first write it.

Votes are written out, every convolution is torch's own in float32, every step is eager, Adam is
torch's default, and memory is handled as torch and the C library do it unasked.

Shape suffixes: see `capsrepro.models.routing`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capsrepro.config import RunSpec
from capsrepro.models.capsnet import CapsNet
from capsrepro.models.capsule_layers import RoutedCapsules
from capsrepro.models.convolution import Conv2d, RectifiedConv2d
from capsrepro.models.routing import dynamic_routing
from capsrepro.running import assembly
from capsrepro.running.benchmark_step import Step, made_up_stream


class _TorchConv2d(Conv2d):
    """torch's convolution, whatever faster way ours has."""

    def _convolve(self, images: Tensor, rectified: bool) -> Tensor:
        if self.pad_same:
            images = self._pad(images)
        result = F.conv2d(images, self.weight, self.bias, self.stride)
        return F.relu(result) if rectified else result


class _TorchRectifiedConv2d(_TorchConv2d):
    """The same, and its ReLU."""

    def forward(self, images: Tensor) -> Tensor:
        return self.rectified(images)


class _WrittenCapsNet(CapsNet):
    """Procedure 1 on written votes."""

    def class_capsules(self, images_BCHW: Tensor) -> Tensor:
        children_BEI = self.primary_capsules(images_BCHW)
        return dynamic_routing(
            torch.einsum("bei,jeid->bijd", children_BEI, self.transforms_KEID),
            self.routing_iterations,
            bias_JD=self.bias_KD,
            gradient=self.routing_gradient,
            none_of_the_above=self.none_of_the_above,
        )


def naive_model(spec: RunSpec, device: torch.device) -> nn.Module:
    """The model of a run, with the same parameters, without any fast path."""
    model = assembly.build_model(spec, device)
    for module in model.modules():
        # Only how it computes changes, so that the start is that of the run.
        if isinstance(module, Conv2d):
            rectifies = isinstance(module, RectifiedConv2d)
            module.__class__ = _TorchRectifiedConv2d if rectifies else _TorchConv2d
            module.to(memory_format=torch.contiguous_format)
        elif isinstance(module, CapsNet):
            module.__class__ = _WrittenCapsNet
        elif isinstance(module, RoutedCapsules):
            module.factored = False
    return model


def make_naive_step(spec: RunSpec, device: torch.device) -> Step:
    """One naive training step after the other, on the same batches as the real one."""
    model = naive_model(spec, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.protocol.recipe.learning_rate)
    stream = made_up_stream(spec, device)
    model.train()
    done = 0

    def step() -> None:
        nonlocal done
        loss = model.objective(*stream.batch(done)).loss  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1

    return step
