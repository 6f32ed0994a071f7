"""Networks and images as an attack sees them, in raw or in standardised pixels.

Raw: pixels of the whole image, black 0 and white 1; what the data set's preparation does to them
(central crop, standardisation) lies behind the attack, which looks through it. Standardised: pixels
of what the network is shown, in standard deviations of the image they come from; that image's own
black and white are its range.

Shape suffixes: B images, C channels, H rows, W columns, L labels per image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capsrepro.data.augmentation import black_and_white, central
from capsrepro.data.batches import EvaluationSplit
from capsrepro.errors import UsageError
from capsrepro.evaluation.attacks import Clean
from capsrepro.models.losses import present
from capsrepro.models.predictions import correct
from capsrepro.schema.attacks import AttackSpec
from capsrepro.schema.augmentation import Operation, Standardise

Loss = Callable[[Tensor, Tensor], Tensor]
"""From scores_BK and present_BK to one value per image, shape (B,)."""


@dataclass(frozen=True)
class Network:
    """A trained network as an attack sees it.

    Attributes:
        model: Returns class scores_BK; in evaluation mode.
        loss: What is followed.
        operations: What still happens to an image behind the attack.
    """

    model: nn.Module
    loss: Loss
    operations: Sequence[Operation]

    def scores(self, images_BCHW: Tensor) -> Tensor:
        """Class scores, shape (B, K)."""
        scores_BK: Tensor = self.model(central(images_BCHW, self.operations))
        return scores_BK

    def says(self, images_BCHW: Tensor, labels_BL: Tensor) -> Tensor:
        """Whether each image is taken for exactly these classes, shape (B,)."""
        with torch.no_grad():
            return correct(self.scores(images_BCHW), labels_BL)

    def away(self, images_BCHW: Tensor, labels_BL: Tensor) -> Tensor:
        """The loss, shape (B,): whoever raises it leads away from these classes."""
        scores_BK = self.scores(images_BCHW)
        return self.loss(scores_BK, present(labels_BL, scores_BK.shape[1]))

    def towards(self, images_BCHW: Tensor, labels_BL: Tensor) -> Tensor:
        """Minus the loss, shape (B,): whoever raises it leads towards these classes."""
        return -self.away(images_BCHW, labels_BL)


def attacked_network(
    model: nn.Module, split: EvaluationSplit, attack: AttackSpec, loss: Loss
) -> Network:
    """A model of this split as this attack sees it, in evaluation mode.

    Its parameters are frozen, or their gradients would be computed at every step of an attack.
    """
    raw = attack.epsilon_unit == "raw-pixels"
    return Network(model.eval().requires_grad_(False), loss, split.operations if raw else ())


def clean_images(split: EvaluationSplit, attack: AttackSpec) -> Iterator[Clean]:
    """The images to attack, in the attack's unit and with its range.

    Raises:
        UsageError: They are to be in standardised pixels, but their protocol does not standardise,
            or they show several digits and a target is to be chosen for each.
    """
    raw = attack.epsilon_unit == "raw-pixels"
    if not raw and not any(isinstance(one, Standardise) for one in split.operations):
        raise UsageError(
            "ε is asked for in standardised pixels, but these images are not standardised; "
            "write `epsilon_unit: raw-pixels` in params.yaml."
        )
    done = 0
    for batch in split.raw():
        if attack.goal == "targeted" and batch.labels.shape[1] > 1:
            raise UsageError(
                "a targeted attack needs images of one class each, and these have "
                f"{batch.labels.shape[1]}; choose `goal: untargeted` in params.yaml."
            )
        operations = () if raw else split.operations
        black, white = black_and_white(batch.images, operations)
        items = torch.arange(done, done + len(batch.images), device=batch.images.device)
        done += len(items)
        shown = central(batch.images, operations)
        beyond = torch.inf if attack.clip == "none" else 0.0
        yield Clean(shown, batch.labels, items, black - beyond, white + beyond, white - black)
