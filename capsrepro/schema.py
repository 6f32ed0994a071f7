"""What may stand in `params.yaml`: every key with its meaning, unit and where its value comes from.

Only *what* is run stands here; where and how (device, folders, mirror) are command-line options and
environment variables (`capsrepro/project.py`). A named model or protocol fixes every field, so that
its digest says everything; a field that came later has a default, which no digest holds.

Sources: DR17 is Sabour et al. 2017 (arXiv 1710.09829v2), DR17-code its authors' released program,
EM18 is Hinton et al. 2018.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

Reading = Literal["text", "code"]
Precision = Literal["float32", "tf32", "bf16"]


def _as_fraction(value: object) -> Fraction:
    """Accept `8/255`, `0` or `0.1`: ε is written as the papers write it and kept exact."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Fraction):
        raise ValueError("should be a number or a fraction such as 8/255")
    try:
        return Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError("should be a number or a fraction such as 8/255") from error


def _as_text(value: Fraction) -> str:
    """Write shares of a byte as `25/255`, not as `5/51`: that is how they are known."""
    if value.denominator > 1 and 255 % value.denominator == 0:
        return f"{value * 255}/255"
    return str(value)


Ratio = Annotated[
    Fraction, BeforeValidator(_as_fraction), PlainSerializer(_as_text, return_type=str), Field(ge=0)
]


class Entry(BaseModel):
    """A block of `params.yaml`: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InitialValues(Entry):
    """Standard deviations of truncated normal starts; null takes torch's fan-in rule.

    DR17 is silent. DR17-code: conv1 0.05, primary 0.1 (behind its 1/32 scale), transforms 0.1,
    decoder 0.1, all biases 0.1. Our `text` reading has no 1/32 scale, where 0.1 would saturate
    the squash, so it takes fan-in for convolutions and decoder and 0.1 for the transforms.
    """

    conv1_std: float | None = Field(description="Conv1 kernel", gt=0)
    primary_std: float | None = Field(description="PrimaryCaps kernel", gt=0)
    transform_std: float = Field(description="W_ij of the class capsules", gt=0)
    decoder_std: float | None = Field(description="decoder matrices", gt=0)
    bias: float | None = Field(description="constant start of every bias; null is torch's rule")


class CapsNetSpec(Entry):
    """A CapsNet with dynamic routing (DR17 §4, Figs 1-2)."""

    family: Literal["capsnet"]
    stands_for: str = Field(description="the claims' name of this row, e.g. capsnet-r3-recon")
    reading: Reading = Field(description="which resolution of the paper's ambiguities this is")
    conv1_channels: int = Field(gt=0, description="DR17 §4: 256")
    conv1_kernel: int = Field(gt=0, description="pixels; DR17 §4: 9")
    primary_types: int = Field(gt=0, description="DR17 §4: 32")
    primary_dim: int = Field(gt=0, description="DR17 §4: 8")
    primary_kernel: int = Field(gt=0, description="pixels; DR17 §4: 9")
    primary_stride: int = Field(gt=0, description="pixels; DR17 §4: 2")
    padding: Literal["valid", "same"] = Field(description="DR17 §4: valid")
    class_dim: int = Field(gt=0, description="DR17 §4: 16")
    routing_iterations: int = Field(ge=1, description="evaluations of v in Procedure 1")
    routing_gradient: Literal["full", "detached"] = Field(
        description="full: through every iteration, as DR17-code; detached: the last one only"
    )
    primary_scale: Ratio = Field(
        description="factor on the PrimaryCaps convolution before its bias: 1 (text), 1/32 (code)"
    )
    class_bias: bool = Field(description="a bias added to s_j: no (text), yes (code)")
    margin_loss_reduction: Literal["sum", "half-mean"] = Field(
        description="sum over classes (Eq. 4, text); half their mean (code), 1/20 of it at K = 10"
    )
    decoder_widths: tuple[int, ...] = Field(
        description="hidden widths, DR17 Fig. 2: 512, 1024; empty means no decoder and no "
        "reconstruction loss"
    )
    reconstruction_weight: float = Field(
        ge=0, description="factor on the sum of squared differences, DR17 §4.1: 0.0005"
    )
    initial: InitialValues


class BaselineCNNSpec(Entry):
    """A plain CNN: convolutions, fully connected layers, dropout, softmax (DR17 §5)."""

    family: Literal["baseline-cnn"]
    stands_for: str = Field(description="the claims' name of this row")
    reading: Reading
    conv_channels: tuple[int, ...] = Field(min_length=1, description="DR17 §5: 256, 256, 128")
    conv_kernel: int = Field(gt=0, description="pixels; DR17 §5: 5")
    padding: Literal["valid", "same"] = Field(
        description="DR17 is silent; only SAME gives its 35.4M parameters"
    )
    dense_widths: tuple[int, ...] = Field(description="DR17 §5: 328, 192")
    dropout: float = Field(ge=0, lt=1, description="rate; DR17 is silent, ours 0.5: the usual one")


ModelSpec = Annotated[CapsNetSpec | BaselineCNNSpec, Field(discriminator="family")]
FAMILIES = ("capsnet", "baseline-cnn")


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


class Recipe(Augmentation):
    """How a model is trained. DR17 §4 names Adam and a decay; every number is DR17-code's."""

    batch_size: int = Field(gt=0, description="images; Fig. A.2: 128")
    steps: int = Field(gt=0, description="optimiser steps of this protocol")
    optimizer: Literal["adam"]
    learning_rate: float = Field(gt=0, le=1e30, description="at step 0; DR17-code 0.001")
    learning_rate_floor: float = Field(ge=0, description="DR17-code: 1e-6")
    decay_rate: float = Field(gt=0, le=1, description="DR17-code: 0.96 per decay_steps")
    decay_steps: float = Field(gt=0, description="steps, continuous; DR17-code: 2,000")
    adam_betas: tuple[float, float] = Field(description="TensorFlow 1 defaults: 0.9, 0.999")
    adam_epsilon: float = Field(gt=0, description="TensorFlow 1 default: 1e-8")
    precision: Precision = Field(
        description="of the convolutions; routing and losses are always float32"
    )


class FGSMSpec(Entry):
    """Fast gradient sign method on the whole test set."""

    loss: Literal["own", "margin", "cross-entropy"] = Field(
        description="the loss whose gradient is followed; own is the one the model was trained on, "
        "without reconstruction"
    )
    epsilons: tuple[Ratio, ...] = Field(
        min_length=1, description="L-infinity radius in raw pixels, where black is 0 and white is 1"
    )


class Attacks(Entry):
    """The attacks every trained model of a protocol is put through."""

    fgsm: FGSMSpec


class Protocol(Entry):
    """Data set, recipe and grid of runs under one versioned name."""

    version: str = Field(pattern=r"^\d+\.\d+$", description="same major.minor means comparable")
    title: str
    dataset: str = Field(description="a key of `datasets`")
    models: str = Field(description="a key of `models`")
    judged_as: str | None = Field(description="whose claims its results stand beside; null: none")
    full_steps: int = Field(gt=0, description="steps of the full budget")
    recipe: Recipe
    run_models: tuple[str, ...] = Field(description="models that `dvc repro` trains")
    run_seeds: tuple[int, ...] = Field(description="seeds of each; DR17 Table 1 used three")
    attacks: Attacks

    @property
    def budget(self) -> float:
        """Share of the full training budget, 1.0 for the whole of it."""
        return self.recipe.steps / self.full_steps


class Margins(Entry):
    """What a verdict is decided by, fixed before any result is seen."""

    confidence: float = Field(gt=0.5, lt=1, description="of intervals; 0.95")
    equivalence: Literal["two-test-sets"] = Field(
        description="margin: what two test sets of that size would differ by, "
        "z(confidence)·√2·binomial standard error"
    )
    minimum_seeds: int = Field(ge=2, description="fewer can only be inconclusive")
    ordering_alpha: float = Field(gt=0, lt=0.5, description="one-sided, Holm-corrected")


class Params(Entry):
    """The whole of `params.yaml`."""

    margins: Margins
    datasets: dict[str, dict[str, int | float | str]] = Field(
        description="preparation parameters by data set"
    )
    augmentations: dict[str, dict[str, Augmentation]] = Field(
        description="by data set, then by paper and reading; recipes take theirs from here"
    )
    models: dict[str, dict[str, ModelSpec]] = Field(description="named models by image size")
    protocols: dict[str, Protocol]

    @property
    def judged_protocols(self) -> list[str]:
        """Protocols whose results stand beside a paper's claims."""
        return [name for name, protocol in self.protocols.items() if protocol.judged_as]
