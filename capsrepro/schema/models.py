"""Network architectures: the entries below `models` in `params.yaml`.

Sources: DR17 is Sabour et al. 2017 (arXiv 1710.09829v2), DR17-code its authors' released program,
EM18 is Hinton et al. 2018.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from capsrepro.schema.base import Entry, Positive, Ratio, Reading
from capsrepro.schema.matrix_capsules import MatrixCapsulesSpec


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

    classification_loss: ClassVar = "margin"
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
    none_of_the_above: bool = Field(
        False, description="one more parent in the routing softmax, DR17 §7 for CIFAR-10"
    )
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

    classification_loss: ClassVar = "cross-entropy"
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


class PooledInitialValues(Entry):
    """Standard deviations of truncated normal starts; null takes torch's fan-in rule.

    DR17 is silent. DR17-code: convolutions 0.05, fully connected layers 0.1, all biases 0.1.
    """

    conv_std: float | None = Field(description="kernels", gt=0)
    dense_std: float | None = Field(description="matrices of the fully connected layers", gt=0)
    bias: float | None = Field(description="constant start of every bias; null is torch's rule")


class PooledCNNSpec(Entry):
    """A plain CNN with 2×2 max-pooling of stride 2 after every convolution (DR17 §5.2, §6.2)."""

    family: Literal["pooled-cnn"]
    stands_for: str = Field(description="the claims' name of this row")
    reading: Reading
    conv_channels: tuple[Positive, ...] = Field(min_length=1, description="DR17 §6.2: 512, 256")
    conv_kernels: tuple[Positive, ...] = Field(
        description="pixels, one for each convolution; DR17 §6.2: 9, 5"
    )
    padding: Literal["valid", "same"] = Field(
        description="DR17 is silent; only SAME gives the 24.56M parameters of §6.2"
    )
    dense_widths: tuple[Positive, ...] = Field(description="DR17 §6.2: 1024")
    dropout: float = Field(ge=0, lt=1, description="rate before the last layer; 0 is none")
    classification_loss: Literal[
        "cross-entropy", "sigmoid-cross-entropy", "sigmoid-cross-entropy-halved"
    ] = Field(description="DR17 §6.2: sigmoid; see capsrepro/models/losses.py")
    initial: PooledInitialValues

    @model_validator(mode="after")
    def _has_a_kernel_for_each_convolution(self) -> Self:
        if len(self.conv_kernels) != len(self.conv_channels):
            raise ValueError("conv_channels and conv_kernels should be equally long")
        return self


ModelSpec = Annotated[
    CapsNetSpec | BaselineCNNSpec | PooledCNNSpec | MatrixCapsulesSpec,
    Field(discriminator="family"),
]
FAMILIES = ("capsnet", "baseline-cnn", "pooled-cnn", "matrix-capsules")
