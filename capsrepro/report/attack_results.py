"""What attacks found, gathered by attack and model: what their tables and their checks read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from capsrepro.report.measurements import Fact, Measurement
from capsrepro.report.summaries import Group

BySeed = Mapping[int, float]

GRADIENT_RATIO = "gradient_l2_ratio"
"""Among `numbers`: mean norm of the gradient as a multiple of the CNN's, of that its median."""

_NORM = "gradient_l2_mean"


@dataclass(frozen=True)
class Attacked:
    """One attack on one model.

    Attributes:
        group: The runs.
        setting: The parameters of the attack.
        numbers: What was measured once, by metric.
        curves: What was measured at every ε, by metric, ε rising.
        cnn: The CNN whose gradients GRADIENT_RATIO compares with; None when there are none.
    """

    group: Group
    setting: Mapping[str, Fact]
    numbers: Mapping[str, BySeed]
    curves: Mapping[str, Mapping[float, BySeed]]
    cnn: str | None = None

    @property
    def name(self) -> str:
        """Of the attack."""
        return str(self.setting.get("name", self.setting["attack"]))

    @property
    def unit(self) -> str:
        """Of ε."""
        return str(self.setting.get("epsilon_unit", "raw-pixels"))

    def number(self, metric: str) -> float | None:
        """The mean over seeds of what was measured once; None when it was not."""
        found = self.numbers.get(metric)
        return mean(found.values()) if found else None

    def curve(self, metric: str) -> dict[float, float]:
        """The mean over seeds at every ε; empty when it was not measured."""
        return {size: mean(found.values()) for size, found in self.curves.get(metric, {}).items()}


def attack_results(groups: Iterable[Group], order: Sequence[str]) -> list[Attacked]:
    """Every attack on every model, attack by attack; in each the models as they were given.

    Args:
        groups: Of one protocol and version.
        order: Names of attacks as params.yaml lists them; others come last.
    """
    found = [attacked for group in groups for attacked in _attacks_on(group)]
    places = {name: place for place, name in enumerate(order)}
    found.sort(key=lambda one: (places.get(one.name, len(places)), one.name))
    return _beside_a_cnn(found)


def _attacks_on(group: Group) -> list[Attacked]:
    by_setting: dict[tuple[tuple[str, Fact], ...], list[Measurement]] = {}
    for one in group.measurements:
        if "attack" in one.setting:
            by_setting.setdefault(tuple(one.setting.items()), []).append(one)
    return [_gathered(group, dict(setting), found) for setting, found in by_setting.items()]


def _gathered(group: Group, setting: Mapping[str, Fact], found: Sequence[Measurement]) -> Attacked:
    numbers: dict[str, dict[int, float]] = {}
    curves: dict[str, dict[float, dict[int, float]]] = {}
    for one in found:
        if not one.point:
            numbers.setdefault(one.metric, {}).update(one.values)
        elif "epsilon" in one.point:
            at = curves.setdefault(one.metric, {}).setdefault(float(one.point["epsilon"]), {})
            at.update(one.values)
    return Attacked(
        group, setting, numbers, {metric: dict(sorted(at.items())) for metric, at in curves.items()}
    )


def _beside_a_cnn(found: Sequence[Attacked]) -> list[Attacked]:
    """Compare gradients with those of one and the same CNN: the one that went through most."""
    cnns = [
        one
        for one in found
        if is_cnn(one.group.stands_for) and one.group.superseded is None and one.numbers.get(_NORM)
    ]
    if not cnns:
        return list(found)
    ((name, _),) = Counter(one.group.model for one in cnns).most_common(1)
    norms = {
        _compared(one): median(one.numbers[_NORM].values())
        for one in reversed(cnns)
        if one.group.model == name
    }
    return [_beside(one, name, norms.get(_compared(one))) for one in found]


def _beside(one: Attacked, cnn: str, norm: float | None) -> Attacked:
    if not norm or _NORM not in one.numbers:
        return one
    ratios = {seed: own / norm for seed, own in one.numbers[_NORM].items()}
    return replace(one, cnn=cnn, numbers={**one.numbers, GRADIENT_RATIO: ratios})


def is_cnn(stands_for: str) -> bool:
    """Whether a network is a plain CNN, by the claims' name of it."""
    return stands_for.startswith("cnn")


def _compared(one: Attacked) -> tuple[str, str]:
    """In other units the same gradient has another norm."""
    return one.name, one.unit
