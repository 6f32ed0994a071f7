"""What is measured on trained models: `attacks` and `evaluations` of a protocol in `params.yaml`.

DR17 is Sabour et al. 2017 (arXiv 1710.09829v2).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from capsrepro.schema.base import Entry, Ratio


class FGSMSpec(Entry):
    """Fast gradient sign method on the whole test set."""

    loss: Literal["own", "margin", "cross-entropy"] = Field(
        description="the loss whose gradient is followed; own is the one the model was trained on, "
        "without reconstruction"
    )
    epsilons: tuple[Ratio, ...] = Field(
        min_length=1, description="L-infinity radius in raw pixels, where black is 0 and white is 1"
    )


class ReconstructSpec(Entry):
    """What the decoder draws: numbers over the test set, and pictures (DR17 Figs 3, 4, 5)."""

    models: tuple[str, ...] = Field(description="those of `run_models` that `dvc repro` evaluates")
    examples_right: int = Field(ge=1, description="pictures of images classified right")
    examples_wrong: int = Field(ge=0, description="pictures of images classified wrong")
    perturbed_digits: tuple[int, ...] = Field(
        description="classes whose capsule is changed dimension by dimension; DR17 Fig. 4: 6, 6, "
        "5, 4, 3, 2; none where an image has two digits"
    )


class OverlapSpec(Entry):
    """Two digits in one image: error by label and by overlap, crowding (DR17 §6)."""

    models: tuple[str, ...] = Field(description="those of `run_models` that `dvc repro` evaluates")


class RoutingSpec(Entry):
    """What routing still changes at each iteration (DR17 Fig. A.1)."""

    models: tuple[str, ...] = Field(description="those of `run_models` that `dvc repro` evaluates")
    iterations: int = Field(ge=1, description="DR17 Fig. A.1: up to 10")
    images: int = Field(ge=1, description="first test images to look at")


class ScoresSpec(Entry):
    """The class scores of every test image, from which ensembles are made (DR17 §7)."""

    models: tuple[str, ...] = Field(
        description="those of `run_models` that `dvc repro` evaluates; all `run_seeds` of one "
        "model together are an ensemble"
    )


class Evaluations(Entry):
    """What else is measured on the trained models of a protocol."""

    reconstruct: ReconstructSpec | None = Field(None, description="nothing when null")
    overlap: OverlapSpec | None = Field(None, description="nothing when null")
    routing: RoutingSpec | None = Field(None, description="nothing when null")
    scores: ScoresSpec | None = Field(None, description="nothing when null")


class Attacks(Entry):
    """The attacks every trained model of a protocol is put through."""

    fgsm: FGSMSpec | None = Field(None, description="none when null")
