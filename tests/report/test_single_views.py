"""Runs on single views of smallNORB: beside Gritzman's numbers, and beside no paper's claim."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from capsrepro.claims import ValueClaim, load_claims
from capsrepro.config import load_params
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.measurements import Measurement
from capsrepro.report.summaries import group_records
from capsrepro.report.tables import result_tables

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CLAIMS = load_claims()
NAME = "matcaps-smallnorb-monocular"
GROUPS = [group for group in group_records([], PARAMS) if group.protocol == NAME]


def test_every_model_has_one_number_of_gritzman() -> None:
    (judged_as,) = {group.judged_as for group in GROUPS}
    values = [c for c in CLAIMS if isinstance(c, ValueClaim) and c.protocol == judged_as]
    assert {claim.reported_by for claim in values} == {"gritzman2019"}
    numbers = {claim.model: claim.value for claim in values}
    small = "matcaps-small-em"
    assert numbers == {f"{small}1": 86.2, f"{small}2": 95.4, f"{small}3": 93.7}
    assert sorted(group.stands_for for group in GROUPS) == sorted(numbers)


def measured(judged_as: str | None) -> list[Judgement]:
    """Every claim, had these models three seeds each and such a name to be judged by."""
    errors = Measurement("test_error_pct", {}, {}, {0: 5.0, 1: 5.1, 2: 5.2})
    changes = {"seeds": (0, 1, 2), "measurements": (errors,), "judged_as": judged_as}
    return judge(CLAIMS, [replace(group, **changes) for group in GROUPS], PARAMS)


def test_no_claim_is_judged_by_them() -> None:
    assert [one.claim.id for one in measured(GROUPS[0].judged_as) if one.candidates] == []
    # Under the name of the stereo pairs the paper's would be.
    stood = [one.claim.id for one in measured("smallnorb") if one.candidates]
    assert "hinton2018/smallnorb/matcaps-small-em3/test-error" in stood


def test_his_numbers_stand_beside_ours_without_a_verdict() -> None:
    (table,) = result_tables(NAME, GROUPS, judge(CLAIMS, GROUPS, PARAMS), PARAMS)
    published, verdict = (
        {row[0].text: row[place].text for row in table.rows} for place in (-2, -1)
    )
    numbers = {"em1": 86.2, "em2": 95.4, "em3": 93.7}
    assert published == {
        f"matcaps-small-{name}-mean": f"accuracy {value} (gritzman2019, README, table of results)"
        for name, value in numbers.items()
    }
    assert set(verdict.values()) == {"context: measured by gritzman2019"}
