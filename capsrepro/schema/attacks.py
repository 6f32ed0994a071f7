"""Attacks on trained networks: the entries below `attacks` of a protocol in `params.yaml`.

EM18 is Hinton et al. 2018, whose §6 names FGSM (Goodfellow et al. 2015) and BIM (Kurakin et al.
2016); PGD is Madry et al. 2018. EM18 does not say the loss, the unit of ε, the steps or the
clipping, so each is a key here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capsrepro.schema.base import Entry, Ratio

AttackName = Annotated[str, Field(pattern=r"^(fgsm|bim|pgd|transfer)(-[a-z0-9]+)*$")]
"""Of a record's file and of a command's argument, where no evaluation is called the same."""


class AttackSpec(Entry):
    """One attack: how test images are changed, within which bounds, and against which networks."""

    models: tuple[str, ...] = Field(description="those of `run_models` that `dvc repro` attacks")
    method: Literal["fgsm", "bim", "pgd"] = Field(
        description="fgsm: one step of the whole ε; bim: several; pgd: several from random starts"
    )
    goal: Literal["untargeted", "targeted"] = Field(
        "untargeted",
        description="targeted: towards every class in turn, the true one included, as EM18 §6",
    )
    loss: Literal["own", "margin", "spread", "cross-entropy", "logit-difference"] = Field(
        description="whose gradient is followed; own is the one the model was trained on, "
        "without reconstruction"
    )
    epsilons: tuple[Ratio, ...] = Field(min_length=1, description="L-infinity radii, rising")
    epsilon_unit: Literal["raw-pixels", "standardised-pixels"] = Field(
        "raw-pixels",
        description="raw: black is 0 and white is 1, before any standardisation; standardised: "
        "standard deviations of the image, which EM18 seems to have used",
    )
    clip: Literal["image-range", "none"] = Field(
        "image-range", description="whether attacked pixels stay between black and white"
    )
    steps: int = Field(1, ge=1, description="of gradient; 1 for fgsm")
    step_share: float = Field(1, gt=0, description="size of a step as a share of ε; 1 for fgsm")
    restarts: int = Field(1, ge=1, description="random starts, of which the worst counts; of pgd")
    images: int | None = Field(None, gt=0, description="first test images; all when null")
    source: str | None = Field(
        None,
        description="black-box: the model of the protocol that the images are made on, in its run "
        "of the next of `run_seeds`; null: the attacked model itself",
    )

    @model_validator(mode="after")
    def _is_one_attack(self) -> Self:
        if self.method == "fgsm" and not self.steps == self.step_share == 1:
            raise ValueError("fgsm is a single step of the whole ε; choose bim for several")
        if self.method != "pgd" and self.restarts != 1:
            raise ValueError("only pgd starts at random, so only it has restarts")
        if self.source is not None and self.goal == "targeted":
            raise ValueError("transferred attacks are untargeted")
        if self.restarts != 1 and self.goal == "targeted":
            raise ValueError("targeted attacks start once, so restarts should be 1")
        if list(self.epsilons) != sorted(set(self.epsilons)):
            raise ValueError("epsilons should rise")
        return self
