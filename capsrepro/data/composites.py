"""MultiMNIST composites (DR17 §6), made on the device from an index and never stored.

Composite `1000·b + k` overlays digit b of a split with its k-th partner, a digit of another class
from the same split. Partner and shifts are whole-number functions of (reading, split, index), so
every machine draws the same pixels. The partners of a digit are distinct: the digits of other
classes, in file order, are cut into 1,000 stretches of equal length, and one of each is drawn.

Shape suffixes: N digits of the split, B of a batch, C channels, H rows, W columns, L the two
digits of a composite; Z is the number of classes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from capsrepro.data.augmentation import windows
from capsrepro.data.counters import mix, mix_counters, named_seed
from capsrepro.data.dataset import Images, Labels
from capsrepro.data.examples import Drawn

PARTNERS = 1_000
CANVAS_PX = 36
MARGIN_PX = 4
"""A digit of 28 pixels lies this far from the canvas' edges before it is shifted."""
BOX_PX = 20
"""MNIST digits were drawn into boxes of 20×20 pixels, then centred by mass."""


class Reading(NamedTuple):
    """How DR17 §6.2 is resolved; `docs/deviations.md` says why there is a choice.

    Attributes:
        shift_px: Largest shift along each axis: 4 (text) or 6 (DR17-code's command).
        placement: `independent`, both digits are shifted; `relative`, the partner alone is, which
            gives the overlap of 80 % that the text states.
        base_shift: `composite`, drawn for each composite; `shared`, one for all 1,000 partners of
            a digit (DR17-code).
    """

    shift_px: int
    placement: Literal["independent", "relative"]
    base_shift: Literal["composite", "shared"]


class Composites:
    """The composites of one split.

    An epoch visits every digit once as the base, each with one partner; after 1,000 epochs every
    composite has been drawn once.

    Args:
        images: Single digits, uint8, shape (N, 1, 28, 28).
        labels: Their classes, uint8, shape (N, 1).
        reading: How pairs are placed.
        split: Name of the split; decides the random numbers.
        device: Where composites are made.

    Raises:
        ValueError: A class has fewer than 1,000 digits of other classes beside it.
    """

    has_targets = True

    def __init__(
        self, images: Images, labels: Labels, reading: Reading, split: str, device: torch.device
    ) -> None:
        self.device = device
        self.reading = reading
        self._seed = named_seed("multimnist/" + "/".join(map(str, (*reading, split))))
        # Every window of the canvas' size around a digit lies within this frame.
        frame = [MARGIN_PX + reading.shift_px] * 4
        self._framed = torch.nn.functional.pad(torch.from_numpy(images).to(device), frame)
        self._labels = torch.from_numpy(labels[:, 0]).to(device).long()
        others = [torch.nonzero(self._labels != label)[:, 0] for label in range(labels.max() + 1)]
        if min(map(len, others)) < PARTNERS:
            raise ValueError(f"{len(labels)} digits do not give each of them {PARTNERS} partners")
        self._other_counts = torch.tensor([len(items) for items in others], device=device)
        self._others_ZN = torch.nn.utils.rnn.pad_sequence(others, batch_first=True)

    @property
    def items(self) -> int:
        """Digits of the split, N; each is the base of 1,000 composites."""
        return len(self._labels)

    def draw(self, items: Tensor, epochs: Tensor) -> Drawn:
        """The composites that have these digits as base, with the partner of the epoch."""
        return self.at(items * PARTNERS + (epochs + mix(items)) % PARTNERS)

    def at(self, index_B: Tensor) -> Drawn:
        """Composites by index.

        Args:
            index_B: int64 in [0, 1000·N), shape (B,).

        Returns:
            Images (B, 1, 36, 36), labels (B, 2), base first, and both single digits as they lie
            in the composite as targets (B, 2, 1, 36, 36).
        """
        base_B = index_B // PARTNERS
        partner_B = self._partner(index_B)
        places = self.offsets(index_B)
        singles = torch.stack(
            [
                self._placed(digit_B, down_B, right_B)
                for digit_B, (down_B, right_B) in zip((base_B, partner_B), places, strict=True)
            ],
            1,
        )
        base, partner = singles.unbind(1)
        # The sum, cut off at 255 without leaving the bytes.
        images = base + torch.minimum(partner, 255 - base)
        labels = torch.stack([self._labels[base_B], self._labels[partner_B]], 1)
        return Drawn(images, labels, singles)

    def offsets(self, index_B: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Shifts in pixels, (down, right) of the base and (down, right) of the partner, int64."""
        largest = self.reading.shift_px
        still = torch.zeros_like(index_B)
        if self.reading.placement == "relative":
            return (still, still), self._shift(1, index_B, largest)
        shared = self.reading.base_shift == "shared"
        base = self._shift(2, index_B // PARTNERS if shared else index_B, largest)
        return base, self._shift(1, index_B, largest)

    def _partner(self, index_B: Tensor) -> Tensor:
        label_B = self._labels[index_B // PARTNERS]
        count_B = self._other_counts[label_B]
        rank_B = index_B % PARTNERS
        first_B = rank_B * count_B // PARTNERS
        length_B = (rank_B + 1) * count_B // PARTNERS - first_B
        chosen_B = first_B + mix_counters(self._seed, 0, index_B) % length_B
        return self._others_ZN[label_B, chosen_B]

    def _shift(self, stream: int, counters: Tensor, largest: int) -> tuple[Tensor, Tensor]:
        choices = 2 * largest + 1
        place = mix_counters(self._seed, stream, counters) % choices**2
        return place // choices - largest, place % choices - largest

    def _placed(self, digits: Tensor, down: Tensor, right: Tensor) -> Tensor:
        """Digits on canvases of their own, uint8, shape (B, 1, 36, 36)."""
        largest = self.reading.shift_px
        return windows(self._framed, digits, largest - down, largest - right, CANVAS_PX, CANVAS_PX)


def box_overlap(composites: Composites, index_B: Tensor) -> Tensor:
    """Share of a digit's 20×20 box that the other digit's box covers.

    Args:
        composites: Those to look at.
        index_B: Which, int64, shape (B,).

    Returns:
        float64 in [0, 1], shape (B,).
    """
    base, partner = composites.offsets(index_B)
    sides = [(BOX_PX - (a - b).abs()).clamp(min=0) for a, b in zip(base, partner, strict=True)]
    return sides[0].double() * sides[1].double() / BOX_PX**2
