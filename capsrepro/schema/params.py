"""What may stand in `params.yaml`: every key with its meaning, unit and where its value comes from.

Only *what* is run stands here; where and how (device, folders, mirror) are command-line options and
environment variables (`capsrepro/project.py`). A named model or protocol fixes every field, so that
its digest says everything; a field that came later has a default, which no digest holds.

Sources: DR17 is Sabour et al. 2017 (arXiv 1710.09829v2), DR17-code its authors' released program,
EM18 is Hinton et al. 2018, EM18-OR its authors' answers in the public review and EM18-code their
released program.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capsrepro.schema.attacks import AttackName, AttackSpec
from capsrepro.schema.augmentation import Augmentation
from capsrepro.schema.base import Entry, Precision
from capsrepro.schema.evaluations import Evaluations
from capsrepro.schema.models import ModelSpec


class StopRule(Entry):
    """End of the training at the first epoch whose accuracy is as wanted.

    What is wanted is a number (DR17 §5.2), or what the finished run of another model, with the same
    protocol and seed, has on the same split (EM18 §5.1). That model itself trains all its steps.
    """

    split: Literal["expanded", "validation", "familiar"] = Field(
        description="what the accuracy is measured on: the papers' are test sets, `expanded` and "
        "`familiar`; `validation` is the held-out training images, each shifted once and for all"
    )
    accuracy_pct: float | None = Field(
        None, gt=0, le=100, description="DR17 §5.2: 99.22 and 99.23; null where accuracy_of is not"
    )
    accuracy_of: str | None = Field(
        None, description="a key of the protocol's models; its accuracy ends the others' training"
    )
    every_epochs: int = Field(1, gt=0, description="how often it is measured; and after the last")

    @model_validator(mode="after")
    def _wants_one_accuracy(self) -> Self:
        if (self.accuracy_pct is None) == (self.accuracy_of is None):
            raise ValueError("exactly one of accuracy_pct and accuracy_of must be set")
        return self


class SpreadMargin(Entry):
    """How the margin m of the spread loss rises during training (EM18 §3, Eq. 3).

    linear: from first to last in `steps`, as the paper has it, which does not say how many.
    sigmoid: first + (last − first) · sigmoid(min(10, 4 (step / steps − 1))), as EM18-OR and
    EM18-code have it with 0.2, 0.99 and 200,000, at which it is half-way.
    """

    shape: Literal["linear", "sigmoid"]
    first: float = Field(ge=0, description="0.2; the sigmoid starts a little above it")
    last: float = Field(gt=0, le=1, description="0.9 (text), 0.99 (code)")
    steps: float = Field(gt=0, description="optimiser steps, see above")


class Recipe(Augmentation):
    """How a model is trained.

    DR17 §4 names Adam and a decay; every number of its recipes is DR17-code's. EM18 is silent; the
    numbers of its recipes are from EM18-OR (text) and EM18-code.
    """

    batch_size: int = Field(gt=0, description="images; Fig. A.2: 128")
    steps: int = Field(gt=0, description="optimiser steps of this protocol")
    optimizer: Literal["adam"]
    learning_rate: float = Field(gt=0, le=1e30, description="at step 0; DR17-code 0.001")
    learning_rates: dict[str, Annotated[float, Field(gt=0, le=1e30)]] = Field(
        {}, description="models of the protocol that start from another one"
    )
    learning_rate_floor: float = Field(ge=0, description="DR17-code: 1e-6")
    decay_rate: float = Field(gt=0, le=1, description="DR17-code: 0.96 per decay_steps")
    decay_steps: float = Field(gt=0, description="steps, continuous; DR17-code: 2,000")
    adam_betas: tuple[float, float] = Field(description="TensorFlow 1 defaults: 0.9, 0.999")
    adam_epsilon: float = Field(gt=0, description="TensorFlow 1 default: 1e-8")
    precision: Precision = Field(
        description="of the convolutions; routing and losses are always float32"
    )
    validation_images: int = Field(
        0, ge=0, description="first training images held out; DR17-code --validate: 10,000"
    )
    stop: StopRule | None = Field(None, description="train all steps when null")
    margin: SpreadMargin | None = Field(None, description="of models with the spread loss")
    weight_decay: float = Field(
        0,
        ge=0,
        description="times half the sum of squares of kernels and transforms, added to "
        "the loss; EM18-OR and EM18-code: 2e-7",
    )


class Protocol(Entry):
    """Data set, recipe and grid of runs under one versioned name."""

    version: str = Field(pattern=r"^\d+\.\d+$", description="same major.minor means comparable")
    title: str
    dataset: str = Field(description="a key of `datasets`")
    models: str = Field(description="a key of `models`")
    judged_as: str | None = Field(description="whose claims its results stand beside; null: none")
    full_steps: int = Field(gt=0, description="steps of the full budget")
    recipe: Recipe
    measured: dict[str, str] = Field(
        {}, description="metric of each split to test on; the test error on `test` when left out"
    )
    test_images: int | None = Field(
        None,
        gt=0,
        description="composites of `test` to test on; each digit as base once when "
        "null. DR17 §6: 10 million; DR17-code: 10,000",
    )
    run_models: tuple[str, ...] = Field(description="models that `dvc repro` trains")
    run_seeds: tuple[int, ...] = Field(description="seeds of each; DR17 Table 1 used three")
    attacks: dict[AttackName, AttackSpec] = Field({}, description="by the name of their records")
    evaluations: Evaluations = Field(Evaluations(), description="none when left out")

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

    @property
    def precisions(self) -> list[dict[str, str]]:
        """Unjudged protocols that differ in nothing but their precision: name by precision."""
        alike: list[tuple[Protocol, dict[str, str]]] = []
        for name, protocol in self.protocols.items():
            if protocol.judged_as is not None:
                continue
            recipe = protocol.recipe.model_copy(update={"precision": "float32"})
            plain = protocol.model_copy(update={"title": "", "recipe": recipe})
            found = next((names for other, names in alike if other == plain), None)
            if found is None:
                alike.append((plain, found := {}))
            found.setdefault(protocol.recipe.precision, name)
        return [names for _, names in alike if len(names) > 1]

    @property
    def tabled_protocols(self) -> list[str]:
        """Protocols whose records the tables in git are made of."""
        compared = {name for names in self.precisions for name in names.values()}
        return [name for name, one in self.protocols.items() if one.judged_as or name in compared]
