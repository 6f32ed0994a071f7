"""Networks of matrix capsules, as they stand below `models` in `params.yaml`.

Sources: EM18 is Hinton et al. 2018; EM18-OR its authors' answers in the public review; EM18-code
their released program.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from capsrepro.schema.base import Entry, Positive, Reading


class EMRoutingSpec(Entry):
    """Choices of EM routing that are the same in all layers (EM18 §4, Procedure 1)."""

    iterations: int = Field(ge=1, description="M-steps; EM18 Table 1: 1, 2, 3 or 5")
    activation: Literal["procedure-1", "released-code", "mixing-proportion"] = Field(
        description="procedure-1 (text); released-code; mixing-proportion: share of the layer's "
        "mass, the ablation of EM18 §5"
    )
    inverse_temperature: float = Field(
        gt=0, description="λ rises to it as 1 − 0.95^(i+1); EM18-OR and EM18-code: 0.01"
    )
    variance_floor: float = Field(
        gt=0, description="added to σ²; EM18-code 5e-4; text, where 0 is meant, ours: 1e-6"
    )
    new_share: float = Field(
        gt=0, le=1, description="of the new mean in the one that is kept: 1 (text), 0.9 (code)"
    )
    assignment: Literal["sum", "mean"] = Field(
        "sum", description="mean: ΣR in units of what a parent gets on average (Gritzman 2019)"
    )


class MatrixInitialValues(Entry):
    """Truncated normal starts (standard deviations) and constants; EM18-code's unless said so.

    EM18-OR: truncated normal, tuned so that half of the capsules are active at the start.
    """

    conv1_std: float = Field(gt=0, description="0.05")
    conv1_bias: float = Field(description="0.1; text: 0")
    pose_std: float = Field(gt=0, description="kernel of the primary poses: 0.5")
    activation_std: float = Field(gt=0, description="kernel of the primary activations: 3")
    conv_caps_std: float = Field(gt=0, description="W_ij of ConvCaps: 0.3")
    class_caps_std: float = Field(gt=0, description="W_ij of the class capsules: 0.01; text: 0.3")
    conv_beta_a: float = Field(description="β_a of ConvCaps: 0.5; text: 0")
    conv_beta_u: float = Field(description="β_u of ConvCaps: 0.5; text: 0")
    class_beta_a: float = Field(description="β_a of the class capsules: 1; text: 0")
    class_beta_u: float = Field(
        description="β_u of the class capsules: 2; text: 4, about −ln σ at the start"
    )


class MatrixCapsulesSpec(Entry):
    """A network of matrix capsules (EM18 §4, Fig. 1)."""

    family: Literal["matrix-capsules"]
    stands_for: str = Field(description="the claims' name of this row, e.g. matcaps-em3")
    reading: Reading
    conv1_channels: Positive = Field(description="A; EM18 Fig. 1: 32")
    conv1_kernel: Positive = Field(description="pixels; EM18 §4: 5")
    conv1_stride: Positive = Field(description="pixels; EM18 §4: 2")
    primary_types: Positive = Field(description="B; EM18 Fig. 1: 32")
    primary_shift: float = Field(
        description="added to the logits of the primary activations: 0 (text), −1 (code)"
    )
    conv_types: tuple[Positive, ...] = Field(description="C and D; EM18 Fig. 1: 32, 32")
    conv_kernels: tuple[Positive, ...] = Field(description="capsules; EM18 §4: K = 3")
    conv_strides: tuple[Positive, ...] = Field(description="capsules; EM18 Fig. 1: 2, 1")
    pose: Literal["matrix", "vector"] = Field(
        description="4×4, or 16 numbers with a 16×16 transform (EM18 Table 1)"
    )
    coordinates: Literal["none", "right-column", "first-two"] = Field(
        description="where Coordinate Addition adds row and column: the first two elements of the "
        "right-hand column (text) or of all sixteen (code; and vectors)"
    )
    coordinate_scale: float = Field(
        gt=0, description="per pixel: 1/100 (code); text has no number, ours 1/32, once per image"
    )
    routing: EMRoutingSpec
    class_temperature_share: float = Field(
        gt=0, description="of the class layer's λ: 1 (text), 1/4 (code)"
    )
    shared_beta: bool = Field(
        description="one β_a and β_u for all types of a layer; EM18-OR and code: one each"
    )
    classification_loss: Literal["spread", "margin", "cross-entropy"] = Field(
        description="EM18 Eq. 3, and the rows of Table 1"
    )
    loss_reduction: Literal["sum", "mean"] = Field(
        description="over the classes: sum (Eq. 3, text), mean (code)"
    )
    initial: MatrixInitialValues

    @model_validator(mode="after")
    def _has_a_kernel_and_a_stride_for_each_layer(self) -> Self:
        if not len(self.conv_types) == len(self.conv_kernels) == len(self.conv_strides):
            raise ValueError("conv_types, conv_kernels and conv_strides should be equally long")
        return self
