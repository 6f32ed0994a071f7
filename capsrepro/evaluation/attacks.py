"""How adversarial images are made: FGSM, BIM, PGD, and the random signs they are compared with.

A few lines of our own, because libraries attack the cross-entropy of logits, and for capsules the
loss attacked changes the answer.

Sources: FGSM is Goodfellow et al. 2015, §4; BIM is Kurakin et al. 2017, §2.2; PGD is Madry et al.
2018, §2.1. Hinton et al. 2018 (EM18), §6, names the first two.

Shape suffixes: B images, C channels, H rows, W columns, L labels per image. Images, ε and steps are
in one unit, whichever the images are in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from capsrepro.data.counters import mix_counters, named_seed, uniform

_STARTS_SEED = named_seed("random starts of attacks")
_SIGNS_SEED = named_seed("random signs beside attacks")

Rise = Callable[[Tensor, Tensor], Tensor]
"""What an attack raises: from images_BCHW and labels_BL to one value per image, shape (B,)."""

Radius = Tensor
"""ε or a step: of shape () for all images, or (B, 1, 1, 1)."""


class Clean(NamedTuple):
    """The images that an attack starts from.

    Attributes:
        images: Shape (B, C, H, W).
        labels: int64, shape (B, L): the true classes, or those to be taken for.
        items: int64, shape (B,): which images of the split they are.
        lowest: Least value of a pixel, shape (B, 1, 1, 1).
        highest: Largest value of a pixel, likewise.
        contrast: From black to white, likewise; more than that changes nothing in range.
    """

    images: Tensor
    labels: Tensor
    items: Tensor
    lowest: Tensor
    highest: Tensor
    contrast: Tensor

    def only(self, chosen_B: Tensor) -> Clean:
        """Some of the images; `chosen_B` is boolean."""
        return Clean(*(part[chosen_B] for part in self))

    def within_range(self, images_BCHW: Tensor) -> Tensor:
        """The images with every pixel between the least and the largest value."""
        return images_BCHW.clamp(self.lowest, self.highest)


def input_gradient(rise: Rise, images_BCHW: Tensor, labels_BL: Tensor) -> Tensor:
    """Gradient of each image's own value with respect to its own pixels, shape (B, C, H, W).

    The values are summed over the batch, so that a small batch share cannot round small gradients
    to zero.
    """
    pixels = images_BCHW.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rise(pixels, labels_BL).sum(), pixels)
    return gradient


def one_step(clean: Clean, gradient_BCHW: Tensor, epsilon: Radius) -> Tensor:
    """FGSM: x + ε·sign(∇), kept in range; a pixel with zero gradient stays as it is."""
    return clean.within_range(clean.images + epsilon * gradient_BCHW.sign())


def several_steps(
    rise: Rise, clean: Clean, start_BCHW: Tensor, epsilon: Radius, step: Radius, steps: int
) -> Tensor:
    """BIM, and PGD where the start is random: x ← x + step·sign(∇), kept within ε and in range.

    Args:
        rise: What to raise.
        clean: The images that the attack must stay near to.
        start_BCHW: Where it starts, within ε of them.
        epsilon: Largest change of a pixel.
        step: Of a pixel, each time.
        steps: How often.
    """
    attacked = start_BCHW
    for _ in range(steps):
        gradient_BCHW = input_gradient(rise, attacked, clean.labels)
        change = (attacked + step * gradient_BCHW.sign()) - clean.images
        attacked = clean.within_range(clean.images + change.clamp(-epsilon, epsilon))
    return attacked


def random_start(clean: Clean, epsilon: Radius, restart: int) -> Tensor:
    """Every pixel uniformly within ε; a function of the image's place and the restart alone."""
    share = 2 * uniform(_numbers(clean, _STARTS_SEED, restart)) - 1
    return clean.within_range(clean.images + epsilon * share)


def random_signs(clean: Clean, epsilon: Radius) -> Tensor:
    """Every pixel moved up or down by ε, at random: as large as FGSM, without a gradient.

    The signs are a function of the image's place alone, the same for every ε.
    """
    signs = 1 - 2 * (_numbers(clean, _SIGNS_SEED, 0) >> 62).float()
    return clean.within_range(clean.images + epsilon * signs)


def _numbers(clean: Clean, seed: int, draw: int) -> Tensor:
    """One number in [0, 2^63) for every pixel."""
    pixels = clean.images[0].numel()
    places = torch.arange(pixels, device=clean.items.device)
    counters = clean.items.unsqueeze(1) * pixels + places
    return mix_counters(seed, draw, counters).view_as(clean.images)
