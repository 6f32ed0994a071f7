"""What is measured on trained models: the `evaluations` of a protocol in `params.yaml`.

DR17 is Sabour et al. 2017 (arXiv 1710.09829v2), EM18 is Hinton et al. 2018 and EM18-code its
authors' program.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from capsrepro.schema.base import Entry, Positive


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


class VotesSpec(Entry):
    """How far votes lie from the class capsules at each iteration of EM routing (EM18 Fig. 2)."""

    models: tuple[str, ...] = Field(description="those of `run_models` that `dvc repro` evaluates")
    right: int = Field(ge=1, description="pictures of each class classified right")
    wrong: int = Field(ge=1, description="pictures of each class classified wrong")
    windows: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        min_length=1, description="distances up to which histograms go; EM18 Figs 2, B.2: 0.05, 60"
    )
    bins: int = Field(ge=1, description="of each histogram; EM18 does not say how many")


class CropsSpec(Entry):
    """Several crops of every test image, classified together (EM18 §5)."""

    models: tuple[str, ...] = Field(description="those of `run_models` that `dvc repro` evaluates")
    offsets_px: tuple[Positive, ...] = Field(
        min_length=1,
        description="crops besides the central one, four for each: pixels along both diagonals; "
        "EM18 does not say, EM18-code 1, 2, 3",
    )


class DistortionsSpec(Entry):
    """The error on rotated, moved, scaled, affinely mapped and noisy test images; no paper's own.

    Every list is a curve of its own, along which all else stays as it is.
    """

    models: tuple[str, ...] = Field(description="those of `run_models` that `dvc repro` evaluates")
    images: int | None = Field(None, gt=0, description="first test images; all when null")
    rotations_deg: tuple[float, ...] = Field(description="counterclockwise about the centre")
    translations_px: tuple[float, ...] = Field(
        description="length of the shift, towards one of eight directions drawn for each image"
    )
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="1 is as it is")
    affine_shares: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        description="of affNIST's ranges of rotation, shear and scales, drawn for each image"
    )
    noise_sds: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        description="of Gaussian noise on raw pixels, then cut to black and white"
    )


class Evaluations(Entry):
    """What else is measured on the trained models of a protocol."""

    reconstruct: ReconstructSpec | None = Field(None, description="nothing when null")
    overlap: OverlapSpec | None = Field(None, description="nothing when null")
    routing: RoutingSpec | None = Field(None, description="nothing when null")
    scores: ScoresSpec | None = Field(None, description="nothing when null")
    votes: VotesSpec | None = Field(None, description="nothing when null")
    crops: CropsSpec | None = Field(None, description="nothing when null")
    distortions: DistortionsSpec | None = Field(None, description="nothing when null")
