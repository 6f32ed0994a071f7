"""What runs and their evaluations measured, and under which conditions.

What an evaluation's record must hold to be found again: of an attack, its parameters in
`spec["attack"]` (name, method, loss, epsilon_unit, goal, …), and `curves`, of which those named in
METRICS are measured and the others (epsilon, iteration) say at which points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from capsrepro.metrics import METRICS
from capsrepro.records import Record

Fact = str | float

DURING_TRAINING: Mapping[str, Fact] = {"phase": "training"}
"""Setting of what was measured while a network was trained, see `histories.py`."""
_AT_THE_END: Mapping[str, Fact] = {"phase": "end"}
"""All other measurements are of a network whose training is over."""


@dataclass(frozen=True)
class Measurement:
    """One metric under one condition.

    Attributes:
        metric: A key of METRICS, or any other name a record holds.
        setting: What was done, e.g. {attack: fgsm, loss: own}; empty for the test after training.
        point: Where on a curve, e.g. {epsilon: 0.1}.
        values: By seed, in the metric's unit.
    """

    metric: str
    setting: Mapping[str, Fact]
    point: Mapping[str, Fact]
    values: Mapping[int, float]

    def meets(self, condition: Mapping[str, Fact]) -> bool:
        """Whether everything that `condition` asks for holds here.

        What was measured during training answers a condition that names a moment of it, no other.
        """
        if self.setting == DURING_TRAINING and not names_moment(condition):
            return False
        facts = {**_AT_THE_END, **self.setting, **self.point}
        return all(key in facts and _same(facts[key], value) for key, value in condition.items())


def names_moment(condition: Mapping[str, Fact]) -> bool:
    """Whether a condition is about a step, an epoch, a span of epochs or the start of training."""
    moments = {"step", "epoch", "epoch_from", "epoch_to"}
    return not moments.isdisjoint(condition) or condition.get("phase") == "start"


def measurements(
    runs: list[Record], evaluations: Mapping[str, list[Record]]
) -> tuple[Measurement, ...]:
    """All that finished runs of one group, and the evaluations made from them, measured.

    Args:
        runs: The training records, one per seed.
        evaluations: Finished evaluation records by the name of their run, see `made_from`.
    """
    by_seed: dict[tuple[Any, ...], dict[int, float]] = {}
    for run in sorted(runs, key=lambda record: record.seed):
        for metric, setting, point, value in _observed(run, evaluations.get(run.run, [])):
            key = (metric, tuple(setting.items()), tuple(point.items()))
            by_seed.setdefault(key, {})[run.seed] = value
    return tuple(
        Measurement(metric, dict(setting), dict(point), values)
        for (metric, setting, point), values in by_seed.items()
    )


def _observed(
    run: Record, evaluations: list[Record]
) -> Iterator[tuple[str, dict[str, Fact], dict[str, Fact], float]]:
    """Metric, setting, point and value of all that one run left."""
    for metric, value in with_accuracy(run.metrics).items():
        yield metric, {}, {}, value
    for evaluation in sorted(evaluations, key=lambda record: record.kind):
        setting = _setting(evaluation)
        for metric, value in evaluation.metrics.items():
            yield metric, setting, {}, value
        for metric, point, value in _points(evaluation.curves):
            yield metric, setting, point, value


def with_accuracy(metrics: Mapping[str, float]) -> dict[str, float]:
    """Some papers print the accuracy where our records hold the error."""
    error = metrics.get("test_error_pct")
    return dict(metrics) if error is None else {"test_accuracy_pct": 100 - error, **metrics}


def kept_files(
    runs: Iterable[Record], evaluations: Mapping[str, list[Record]], kind: str, name: str
) -> dict[int, str]:
    """SHA-256 of the file that evaluations of one kind left of each run, by seed in order."""
    return {
        run.seed: evaluation.outputs[name]
        for run in sorted(runs, key=lambda record: record.seed)
        for evaluation in evaluations.get(run.run, [])
        if evaluation.kind == kind and name in evaluation.outputs
    }


def made_from(evaluation: Record, run: Record) -> bool:
    """Whether the evaluated weights are those this run left: it may have been trained again."""
    return all(run.outputs.get(name, sha) == sha for name, sha in evaluation.inputs.items())


def _setting(evaluation: Record) -> dict[str, Fact]:
    """What was done to the network: of an attack, all its parameters but the ε of its curves.

    The run that transferred images were made on is another one for each seed, its model is not.
    """
    told = evaluation.spec.get("attack")
    if not isinstance(told, dict):
        return {"evaluation": evaluation.kind}
    scalars = {
        key: value
        for key, value in told.items()
        if isinstance(value, str | int | float) and key != "source"
    }
    return {"attack": scalars.pop("method", evaluation.kind), **scalars}


def loss_of(setting: Mapping[str, Fact]) -> str:
    """The loss an attack followed."""
    return str(setting.get("loss", "unnamed"))


def _points(
    curves: Mapping[str, list[float]],
) -> Iterator[tuple[str, dict[str, Fact], float]]:
    """Each measured value of the curves with the point it was measured at."""
    measured = [name for name in curves if name in METRICS]
    for i in range(min(map(len, curves.values()), default=0)):
        point: dict[str, Fact] = {n: curves[n][i] for n in curves if n not in METRICS}
        for name in measured:
            yield name, point, curves[name][i]


def _same(fact: Fact, wanted: Fact) -> bool:
    if isinstance(fact, str) or isinstance(wanted, str):
        return fact == wanted
    return math.isclose(fact, wanted, rel_tol=1e-6, abs_tol=1e-12)
