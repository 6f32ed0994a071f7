"""What a benchmark measures: jobs of worker processes, in groups that take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from capsrepro.benchmarks import Axis, What
from capsrepro.config import RunSpec, resolve_run
from capsrepro.data import DATASETS
from capsrepro.errors import UsageError
from capsrepro.schema.base import Precision
from capsrepro.schema.params import Params

# Model: images of a step, the protocol's where it is None. On a CPU the paper's CNN, with 12 GFLOP
# an image, would take many seconds a step, and the reference of EM routing has no room for more
# than eight images.
DEFAULT_MODELS: dict[str, dict[str, int | None]] = {
    "cuda": {
        "mnist/capsnet-r3-recon": None,
        "mnist/cnn-baseline": None,
        "multimnist/capsnet-r3-recon": None,
        "matcaps-smallnorb/matcaps-em3": None,
        "matcaps-mnist-short/matcaps-small-em3": None,
    },
    "cpu": {
        "mnist/capsnet-r3-recon": None,
        "mnist/cnn-baseline": 16,
        "multimnist/capsnet-r3-recon": None,
        "matcaps-smallnorb/matcaps-em3": 8,
        "matcaps-mnist-short/matcaps-small-em3": 8,
    },
}

_CAPSNET, _MATCAPS = "mnist/capsnet-r3-recon", "matcaps-mnist-short/matcaps-small-em3"

# By kind of device: (model, images of a step where they are not varied, what is varied, to what).
SCALING: dict[str, tuple[tuple[str, int, Axis, tuple[int, ...]], ...]] = {
    "cuda": (
        (_CAPSNET, 128, "batch_size", (64, 128, 256, 512, 1024)),
        (_CAPSNET, 128, "primary_types", (8, 16, 32, 64)),
        (_CAPSNET, 128, "routing_iterations", (1, 2, 3, 5, 10)),
        (_CAPSNET, 128, "classes", (5, 10, 20, 40)),
        (_MATCAPS, 64, "batch_size", (32, 64, 128, 256)),
        (_MATCAPS, 64, "routing_iterations", (1, 2, 3, 5)),
    ),
    "cpu": (
        (_CAPSNET, 16, "batch_size", (8, 16, 32, 64)),
        (_CAPSNET, 16, "primary_types", (8, 16, 32, 64)),
        (_CAPSNET, 16, "routing_iterations", (1, 2, 3, 5, 10)),
        (_CAPSNET, 16, "classes", (5, 10, 20, 40)),
        (_MATCAPS, 8, "batch_size", (4, 8, 16, 32)),
        (_MATCAPS, 8, "routing_iterations", (1, 2, 3, 5)),
    ),
}


@dataclass(frozen=True)
class Job:
    """What one worker process measures.

    Attributes:
        model: PROTOCOL/MODEL.
        what: See `capsrepro.benchmarks.What`.
        precisions: One; a floor is measured in several.
        batch_size: Images of a step.
        together: Processes that make such steps on the device at a time.
        axis: What is varied, where scaling is measured.
        values: To what, one step each.
    """

    model: str
    what: What
    precisions: tuple[Precision, ...]
    batch_size: int
    together: int = 1
    axis: Axis | None = None
    values: tuple[int, ...] = ()

    def points(self) -> list[Point]:
        """The steps it makes, each of which takes turns with all others."""
        if self.axis is None:
            return [Point(precision, self.batch_size, None) for precision in self.precisions]
        varied = self.axis == "batch_size"
        return [
            Point(precision, value if varied else self.batch_size, value)
            for precision in self.precisions
            for value in self.values
        ]


class Point(NamedTuple):
    """One kind of step of a job: its precision, images, and value of what is varied."""

    precision: Precision
    batch_size: int
    value: int | None


def named_model(params: Params, model: str) -> RunSpec:
    """The specification behind PROTOCOL/MODEL.

    Raises:
        UsageError: The name has another form, or its protocol or model is unknown.
    """
    if model.count("/") != 1:
        raise UsageError(
            f"{model!r} is no model of a protocol; write PROTOCOL/MODEL, "
            "for example mnist/capsnet-r3-recon."
        )
    return resolve_run(params, f"{model}/seed-0")


def model_jobs(
    params: Params,
    models: Mapping[str, int | None],
    precisions: Sequence[Precision],
    packs: Sequence[int] = (),
) -> list[list[Job]]:
    """One group a model: its step in every precision, the naive one, and the floors.

    And the step in the last precision by each of `packs` processes at a time.
    """
    groups = []
    for model, images in models.items():
        batch_size = images or named_model(params, model).protocol.recipe.batch_size
        # Shares of the float32 floor are asked of every precision.
        floors = tuple(dict.fromkeys(("float32", *precisions)))
        groups.append(
            [
                *(Job(model, "step", (precision,), batch_size) for precision in precisions),
                *(Job(model, "step", (precisions[-1],), batch_size, together=n) for n in packs),
                Job(model, "naive", ("float32",), batch_size),
                Job(model, "floor", floors, batch_size),
            ]
        )
    return groups


def scaling_jobs(kind: str, precision: Precision) -> list[list[Job]]:
    """One group an axis: a process that makes a step at every point of it."""
    return [
        [Job(model, "step", (precision,), batch_size, axis=axis, values=values)]
        for model, batch_size, axis, values in SCALING[kind]
    ]


def spec_of(params: Params, job: Job, point: Point) -> RunSpec:
    """The run that a job takes the steps of a point from."""
    spec = named_model(params, job.model)
    recipe = spec.protocol.recipe.model_copy(
        update={"precision": point.precision, "batch_size": point.batch_size}
    )
    changes: dict[str, Any] = {"recipe": recipe}
    model: Any = spec.model
    if job.axis == "primary_types":
        model = model.model_copy(update={"primary_types": point.value})
    elif job.axis == "routing_iterations" and model.family == "matrix-capsules":
        routing = model.routing.model_copy(update={"iterations": point.value})
        model = model.model_copy(update={"routing": routing})
    elif job.axis == "routing_iterations":
        model = model.model_copy(update={"routing_iterations": point.value})
    elif job.axis == "classes":
        changes["dataset"] = _with_classes(spec.protocol.dataset, point.value or 1)
    return replace(spec, protocol=spec.protocol.model_copy(update=changes), model=model)


def _with_classes(name: str, classes: int) -> str:
    """A data set that differs in its number of classes alone, known to this process alone."""
    other = f"{name} with {classes} classes"
    DATASETS[other] = replace(DATASETS[name], name=other, classes=tuple(map(str, range(classes))))
    return other
