"""What runs measured in terms of others: how much less they err, and whom they were matched to.

A claim about fewer errors or parameters names in its condition what they are fewer than: `against`
is another model of the same protocol, and its runs are compared seed by seed (EM18 §5.1), unless a
key such as `against_test_error_pct` gives the number, which is then that of a published network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

_COMPARED = {**REDUCTIONS, **RATIOS}


def with_comparisons(
    groups: Sequence[Group], claims: Iterable[Claim], params: Params
) -> list[Group]:
    """The same groups with what claims compare, and those superseded whose match has changed.

    Args:
        groups: Of single models.
        claims: All claims: a comparison is made where one of them asks for it.
        params: Says which protocols match their models to one another.
    """
    asked = [claim for claim in claims if claim.judged and claim.metric in _COMPARED]
    return [_matched(_compared(group, asked, groups), groups, params) for group in groups]


def _compared(group: Group, claims: Sequence[Claim], groups: Sequence[Group]) -> Group:
    found: list[Measurement] = []
    for claim in claims:
        if isinstance(claim, OrderingClaim) or not group.stands_trial(claim, claim.model):
            continue
        metric, condition = claim.metric, claim.condition
        values = _relative(group, metric, condition, groups)
        measured = Measurement(metric, {}, dict(condition), values)
        if values and measured not in found:
            found.append(measured)
    return replace(group, measurements=(*group.measurements, *found)) if found else group


def _relative(
    group: Group, metric: str, condition: Mapping[str, Fact], groups: Sequence[Group]
) -> dict[int, float]:
    """By seed: one of `REDUCTIONS` or `RATIOS`."""
    compared = _COMPARED[metric]
    ours = group.values(compared)
    published = condition.get(f"against_{compared}")
    if isinstance(published, int | float):
        theirs = dict.fromkeys(ours, float(published))
    else:
        theirs = _opponents(group, compared, condition.get("against"), groups)
    pairs = {seed: (ours[seed], theirs[seed]) for seed in ours if theirs.get(seed)}
    if metric in RATIOS:
        return {seed: their / our for seed, (our, their) in pairs.items()}
    return {seed: 100 * (1 - our / their) for seed, (our, their) in pairs.items()}


def _opponents(
    group: Group, metric: str, against: Fact | None, groups: Sequence[Group]
) -> dict[int, float]:
    """Values of the model of that name; those that are superseded stand behind the others."""
    about = (group.protocol, group.version, against)
    same = [other for other in groups if (other.protocol, other.version, other.stands_for) == about]
    return next((values for other in same if (values := other.values(metric))), {})


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
