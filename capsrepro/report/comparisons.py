"""What runs measured in terms of others: how much less they err, and whom they were matched to.

A claim about fewer errors, smaller gradients or a better accuracy names in its condition what it
compares with: `against` is another model of the same protocol, and its runs are compared seed by
seed (EM18 §5.1, §6), unless a key such as `against_test_error_pct` gives the number, which is then
that of a published network. What else stands in the condition says under which attack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from capsrepro.claims import Claim, OrderingClaim
from capsrepro.records import MATCHED
from capsrepro.report.measurements import Fact, Measurement
from capsrepro.report.summaries import Group
from capsrepro.schema.params import Params

REDUCTIONS = {
    "novel_error_reduction_pct": "novel_test_error_pct",
    "error_reduction_pct": "test_error_pct",
}
"""Which error each of these metrics is a reduction of: 100 (1 − ours / theirs)."""

RATIOS = {"parameter_ratio": "parameters"}
"""Which number each of these metrics is the factor of: theirs / ours."""

DECADES = {"gradient_orders_of_magnitude_smaller": "gradient_l2_mean"}
"""Which number each of these metrics is the order of magnitude of: log10 (theirs / ours)."""

ADVANTAGES = {"black_box_accuracy_advantage_pp": "transfer_accuracy_pct"}
"""Which accuracy each of these metrics is the advantage in: ours − theirs, in pp."""

COMPARED = {**REDUCTIONS, **RATIOS, **DECADES, **ADVANTAGES}
"""Which metric of both models each of these metrics is calculated from."""

_Conditions = frozenset[tuple[str, Fact]]


def with_comparisons(
    groups: Sequence[Group], claims: Iterable[Claim], params: Params
) -> list[Group]:
    """The same groups with what claims compare, and those superseded whose match has changed.

    Args:
        groups: Of single models.
        claims: All claims: a comparison is made where one of them asks for it.
        params: Says which protocols match their models to one another.
    """
    asked = [claim for claim in claims if claim.judged and claim.metric in COMPARED]
    return [_matched(_compared(group, asked, groups), groups, params) for group in groups]


def conditions_of(measurement: Measurement) -> tuple[_Conditions, _Conditions]:
    """What two models must share to be compared: all that was done to them, and at which point.

    Not the loss that an attack followed: it is mostly the one each network was trained on.
    """
    own = ("loss", "white_box_loss", "spread_margin")
    done = {key: fact for key, fact in measurement.setting.items() if key not in own}
    return frozenset(done.items()), frozenset(measurement.point.items())


def _compared(group: Group, claims: Sequence[Claim], groups: Sequence[Group]) -> Group:
    found: list[Measurement] = []
    for claim in claims:
        if isinstance(claim, OrderingClaim) or not group.stands_trial(claim, claim.model):
            continue
        for measured in _relative(group, claim.metric, claim.condition, groups):
            if measured not in found:
                found.append(measured)
    return replace(group, measurements=(*group.measurements, *found)) if found else group


def _relative(
    group: Group, metric: str, condition: Mapping[str, Fact], groups: Sequence[Group]
) -> Iterator[Measurement]:
    """One of the metrics of `COMPARED`, wherever both models were measured under the condition."""
    compared = COMPARED[metric]
    done = {key: fact for key, fact in condition.items() if not key.startswith("against")}
    against = {key: fact for key, fact in condition.items() if key not in done}
    published = against.get(f"against_{compared}")
    for ours in (point for points in group.matching(compared, done) for point in points):
        if isinstance(published, int | float):
            theirs: Mapping[int, float] = dict.fromkeys(ours.values, float(published))
        else:
            theirs = _opponents(group, ours, against.get("against"), groups)
        values = {
            seed: value
            for seed, own in ours.values.items()
            if seed in theirs and (value := _against(metric, own, theirs[seed])) is not None
        }
        if values:
            yield Measurement(metric, ours.setting, {**against, **ours.point}, values)


def _against(metric: str, ours: float, theirs: float) -> float | None:
    """One seed's value; None where nothing can be that much smaller or larger."""
    if metric in ADVANTAGES:
        return ours - theirs
    if metric in REDUCTIONS:
        return 100 * (1 - ours / theirs) if theirs else None
    if not ours or not theirs:
        return None
    return math.log10(theirs / ours) if metric in DECADES else theirs / ours


def _opponents(
    group: Group, ours: Measurement, against: Fact | None, groups: Sequence[Group]
) -> Mapping[int, float]:
    """Values of the model of that name; those that are superseded stand behind the others."""
    about = (group.protocol, group.version, against)
    asked = (ours.metric, conditions_of(ours))
    return next(
        (
            theirs.values
            for other in groups
            if (other.protocol, other.version, other.stands_for) == about
            for theirs in other.measurements
            if (theirs.metric, conditions_of(theirs)) == asked
        ),
        {},
    )


def _matched(group: Group, groups: Sequence[Group], params: Params) -> Group:
    """Superseded where the accuracies that ended its training are no longer those there are."""
    protocol = params.protocols.get(group.protocol)
    rule = protocol.recipe.stop if protocol else None
    matched = group.values(MATCHED)
    if protocol is None or rule is None or group.superseded is not None or not matched:
        return group
    about = (group.protocol, group.version, rule.accuracy_of, None)
    metric = protocol.measured[rule.split]
    now: dict[int, float] = {}
    for other in groups:
        if (other.protocol, other.version, other.model, other.superseded) == about:
            now = other.values(metric)
    if metric.endswith("_error_pct"):
        now = {seed: 100 - error for seed, error in now.items()}
    if all(now.get(seed) == accuracy for seed, accuracy in matched.items()):
        return group
    reason = f"the accuracy of {rule.accuracy_of}, to which it was trained, is another now"
    return replace(group, superseded=reason)
