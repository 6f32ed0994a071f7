"""What a network sees of an image: the entries below `augmentations` in `params.yaml`.

Sources: DR17 is Sabour et al. 2017 (arXiv 1710.09829v2), DR17-code its authors' released program,
EM18 is Hinton et al. 2018, EM18-code its authors' program.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from capsrepro.schema.base import Entry, Ratio


class Crop(Entry):
    """A square window: at a random place in training, the central one in evaluation."""

    op: Literal["crop"]
    size_px: int = Field(gt=0, description="pixels; DR17 §7: 24 for CIFAR-10, 32 for smallNORB")


class Flip(Entry):
    """Left and right exchanged in half of the training images (DR17-code, CIFAR-10)."""

    op: Literal["flip"]


class Brightness(Entry):
    """One number added to all pixels of a training image, uniform in ±max_delta, not clipped."""

    op: Literal["brightness"]
    max_delta: Ratio = Field(
        description="in the pixels' unit at that point: of white before standardisation "
        "(DR17-code, EM18-code: 63/255), of standard deviations after it"
    )


class Contrast(Entry):
    """Distances from each channel's mean times one factor per training image, not clipped."""

    op: Literal["contrast"]
    lower: float = Field(ge=0, description="DR17-code, EM18-code: 0.2")
    upper: float = Field(gt=0, description="DR17-code, EM18-code: 1.8")


class Standardise(Entry):
    """Mean 0 and variance 1 over all pixels and channels of an image, always."""

    op: Literal["standardise"]


Operation = Annotated[Crop | Flip | Brightness | Contrast | Standardise, Field(discriminator="op")]
OPERATIONS = ("crop", "flip", "brightness", "contrast", "standardise")


class Augmentation(Entry):
    """What a network sees of an image."""

    shift_px: int = Field(
        ge=0, description="largest random shift, zero padded; DR17 §5: 2, before all else"
    )
    operations: tuple[Operation, ...] = Field(
        (), description="after the shift, in this order, on pixels of 0 to 1"
    )
