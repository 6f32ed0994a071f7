"""Accuracy under attack, with the numbers that tell whether the attack was any good.

Hinton et al. 2018 (EM18), §6, and what a sceptic asks for beyond it (Athalye et al. 2018, §3): how
many gradients vanish, how large they are, whether anything survives where pixels may be anything,
whether several steps do more than one, and what random signs of the same size do.

Shape suffixes: B images, C channels, H rows, W columns, L labels per image, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.evaluation.attacked import Loss, Network, attacked_network, clean_images
from capsrepro.evaluation.attacks import (
    Clean,
    Radius,
    Rise,
    input_gradient,
    one_step,
    random_signs,
    random_start,
    several_steps,
)
from capsrepro.models.predictions import correct
from capsrepro.schema.attacks import AttackSpec

_Counts = Counter[str | tuple[str, int]]
"""Images, by metric or by a curve's name and the place of its ε."""


@dataclass
class Gradients:
    """What is kept of gradients with respect to clean images.

    Attributes:
        norms: L2 norms of one or more gradients per image, batch by batch.
        zeros: For each of them, the share of pixels in which it is exactly 0.
    """

    norms: list[Tensor] = field(default_factory=list)
    zeros: list[Tensor] = field(default_factory=list)

    def keep(self, gradient_BCHW: Tensor) -> Tensor:
        """Add those of a batch, and give them back."""
        flat = gradient_BCHW.flatten(1)
        # In float64 on every device: the square of a small float32 is 0.
        self.norms.append(flat.double().norm(dim=1).cpu())
        self.zeros.append((flat == 0).double().mean(1).cpu())
        return gradient_BCHW

    def metrics(self) -> dict[str, float]:
        """In % and in the loss's unit per pixel's; empty where there were none."""
        if not self.norms:
            return {}
        norms, zeros = torch.cat(self.norms), torch.cat(self.zeros)
        return {
            "zero_gradient_pct": 100 * float((zeros == 1).double().mean()),
            "zero_gradient_pixels_pct": 100 * float(zeros.mean()),
            "gradient_l2_mean": float(norms.mean()),
            "gradient_l2_median": float(norms.median()),
        }


def measure_attack(
    model: nn.Module,
    split: EvaluationSplit,
    attack: AttackSpec,
    loss: Loss,
    source: tuple[nn.Module, Loss] | None = None,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Attack the images of a split at every ε; the clean gradient of an image is computed once.

    Args:
        model: The trained model.
        split: Test images, as the model takes them.
        attack: What to do.
        loss: Which loss to follow.
        source: The model whose gradient is followed and by which loss; None: the attacked one.

    Returns:
        Metrics and curves; capsrepro/metrics.py says what each name means.

    Raises:
        UsageError: These images cannot be attacked so, see `clean_images`.
    """
    part = split.first(attack.images or split.items)
    victim = attacked_network(model, part, attack, loss)
    crafted_on = None if source is None else attacked_network(source[0], part, attack, source[1])
    gradients, counts, classes = Gradients(), _Counts(), 0
    device = part.examples.device
    epsilons = [torch.tensor(float(epsilon), device=device) for epsilon in attack.epsilons]
    for clean in clean_images(part, attack):
        with torch.no_grad():
            scores_BK = victim.scores(clean.images)
        classes = scores_BK.shape[1]
        counts["clean_accuracy_pct"] += int(correct(scores_BK, clean.labels).sum())
        if attack.goal == "targeted":
            counts.update(_targeted(victim, clean, attack, epsilons, classes, gradients))
        elif crafted_on is not None:
            counts.update(_transferred(victim, crafted_on, clean, attack, epsilons))
        else:
            counts.update(_untargeted(victim, clean, attack, epsilons, gradients))
    metrics = {"test_images": float(part.items), "classes": float(classes), **gradients.metrics()}
    return _shares(counts, attack, metrics)


def _untargeted(
    victim: Network, clean: Clean, attack: AttackSpec, epsilons: list[Radius], gradients: Gradients
) -> _Counts:
    """How many images stay right at each ε, and where every pixel may be anything."""
    gradient_BCHW = gradients.keep(input_gradient(victim.away, clean.images, clean.labels))
    crafting = _Crafting(attack, victim.away, gradient_BCHW)
    counts = _Counts()
    for place, epsilon in enumerate(epsilons):
        first, worst = crafting.says(victim, clean, epsilon)
        counts["accuracy_pct", place] = int(worst.sum())
        counts["noise_accuracy_pct", place] = _under_noise(victim, clean, epsilon)
        if attack.method != "fgsm":
            stepped = one_step(clean, gradient_BCHW, epsilon)
            counts["fgsm_accuracy_pct", place] = int(victim.says(stepped, clean.labels).sum())
        if attack.restarts > 1:
            counts["first_start_accuracy_pct", place] = int(first.sum())
    _, anything = crafting.says(victim, clean, clean.contrast)
    counts["full_range_accuracy_pct"] = int(anything.sum())
    return counts


def _transferred(
    victim: Network, source: Network, clean: Clean, attack: AttackSpec, epsilons: list[Radius]
) -> _Counts:
    """The same for images made on another network, beside those made on the victim itself."""
    ways = {
        name: _Crafting(attack, rise, input_gradient(rise, clean.images, clean.labels))
        for name, rise in (
            ("transfer_accuracy_pct", source.away),
            ("white_box_accuracy_pct", victim.away),
        )
    }
    counts = _Counts()
    for place, epsilon in enumerate(epsilons):
        for name, crafting in ways.items():
            _, worst = crafting.says(victim, clean, epsilon)
            counts[name, place] = int(worst.sum())
        counts["noise_accuracy_pct", place] = _under_noise(victim, clean, epsilon)
    return counts


def _targeted(
    victim: Network,
    clean: Clean,
    attack: AttackSpec,
    epsilons: list[Radius],
    classes: int,
    gradients: Gradients,
) -> _Counts:
    """How often the images are taken for each class in turn, at each ε."""
    counts = _Counts()
    for target in range(classes):
        aimed = clean._replace(labels=torch.full_like(clean.labels, target))
        gradient_BCHW = gradients.keep(input_gradient(victim.towards, aimed.images, aimed.labels))
        crafting = _Crafting(attack, victim.towards, gradient_BCHW)
        wrong = clean.labels[:, 0] != target
        for place, epsilon in enumerate(epsilons):
            hit, _ = crafting.says(victim, aimed, epsilon)
            counts["targeted_success_pct", place] += int(hit.sum())
            counts["wrong_target_success_pct", place] += int((hit & wrong).sum())
            if attack.method != "fgsm":
                stepped = one_step(aimed, gradient_BCHW, epsilon)
                once = victim.says(stepped, aimed.labels)
                counts["fgsm_targeted_success_pct", place] += int(once.sum())
    return counts


class _Crafting(NamedTuple):
    """One attack on one batch.

    Attributes:
        attack: Its parameters.
        rise: What it raises.
        gradient: Of that at the clean images, shape (B, C, H, W).
    """

    attack: AttackSpec
    rise: Rise
    gradient: Tensor

    def says(self, victim: Network, clean: Clean, epsilon: Radius) -> tuple[Tensor, Tensor]:
        """Whether the victim takes the attacked images for their labels, each of shape (B,).

        Returns:
            After the first start alone, and after every start: only images that are right after
            one are attacked from the next.
        """
        attack = self.attack
        if attack.method == "fgsm" or not epsilon.any():
            said = victim.says(one_step(clean, self.gradient, epsilon), clean.labels)
            return said, said
        step = attack.step_share * epsilon
        said = torch.ones(len(clean.images), dtype=torch.bool, device=clean.images.device)
        first = said
        for restart in range(attack.restarts):
            if not said.any():
                break
            left, radius, stride = clean.only(said), _of(epsilon, said), _of(step, said)
            start = left.images
            if attack.method == "pgd":
                start = random_start(left, radius, restart)
            moved = several_steps(self.rise, left, start, radius, stride, attack.steps)
            after = victim.says(moved, left.labels)
            said = torch.zeros_like(said).masked_scatter(said, after)
            first = said if restart == 0 else first
        return first, said


def _of(radius: Radius, chosen_B: Tensor) -> Radius:
    return radius[chosen_B] if radius.ndim else radius


def _under_noise(victim: Network, clean: Clean, epsilon: Radius) -> int:
    """How many images stay right when every pixel moves by ε at random."""
    return int(victim.says(random_signs(clean, epsilon), clean.labels).sum())


def _shares(
    counts: _Counts, attack: AttackSpec, metrics: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Counts as percentages: of images, or of images times targets."""
    images, classes = metrics["test_images"], metrics["classes"]
    of = {
        "targeted_success_pct": images * classes,
        "fgsm_targeted_success_pct": images * classes,
        "wrong_target_success_pct": images * (classes - 1),
    }
    found = dict(metrics)
    curves: dict[str, list[float]] = {"epsilon": [float(epsilon) for epsilon in attack.epsilons]}
    for key, count in counts.items():
        if isinstance(key, str):
            found[key] = 100 * count / images
        else:  # places come in order
            curves.setdefault(key[0], []).append(100 * count / of.get(key[0], images))
    return found, curves
