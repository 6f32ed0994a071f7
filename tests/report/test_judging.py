"""Which runs are held against which claim, and which of them gives the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from capsrepro.claims import Claim
from capsrepro.records import Record
from capsrepro.report.formatting import explain
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.summaries import group_records
from capsrepro.schema.params import Params

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
MakeClaim = Callable[..., Claim]


def only(claims: Sequence[Claim], records: Sequence[Record], params: Params) -> Judgement:
    return judge(claims, group_records(records, params), params)[0]


def test_nothing_run(params: Params, claim: MakeClaim) -> None:
    def why(**changes: Any) -> tuple[str, str]:
        judgement = only([claim(**changes)], [], params)
        assert judgement.verdict is not None
        return judgement.status, explain(judgement.verdict)

    assert why() == ("not run", "no finished run of capsnet-r3-recon")
    assert why(model="capsnet-r99") == ("not run", "no model stands for capsnet-r99")
    assert why(protocol="svhn") == ("not run", "no protocol is judged as svhn")
    assert why(kind="ordering")[0] == "not run"


def test_what_cannot_be_had_is_not_owed(params: Params, claim: MakeClaim, trained: MakeAll) -> None:
    about = claim(unavailable="images that nobody has any more", protocol="svhn")
    judgement = only([about], [], params)
    assert judgement.verdict is not None
    assert (judgement.status, explain(judgement.verdict)) == (
        "not available",
        "images that nobody has any more",
    )
    # Whoever has them after all is judged.
    found = claim(unavailable="images that nobody has any more")
    runs = trained("capsnet-r3-recon", [0.25, 0.26, 0.24])
    assert only([found], runs, params).status == "reproduced"


def test_every_seed_failed(params: Params, claim: MakeClaim, run_record: Make) -> None:
    record = run_record("mnist/capsnet-r3-recon/seed-0", failure="loss is NaN")
    judgement = only([claim()], [record], params)
    assert judgement.verdict is not None
    assert explain(judgement.verdict) == "every seed of capsnet-r3-recon failed"
    assert judgement.status == "inconclusive"


@pytest.mark.parametrize(
    "changes",
    [
        {"cited_from": "Wan et al. 2013"},
        {"reported_by": "xifengguo"},
        {"unverified": True},
        {"unreliable": True, "note": "A bug."},
    ],
)
def test_context_is_never_judged(
    params: Params, claim: MakeClaim, trained: MakeAll, changes: dict[str, Any]
) -> None:
    judgement = only([claim(**changes)], trained("capsnet-r3-recon", [0.25] * 3), params)
    assert (judgement.status, judgement.verdict) == ("context", None)


def test_readings_stand_side_by_side(params: Params, claim: MakeClaim, trained: MakeAll) -> None:
    records = [
        *trained("mnist-short/capsnet-r3-recon", [0.25, 0.26, 0.24]),
        *trained("capsnet-r3-recon-code", [0.60, 0.61, 0.59]),
        *trained("capsnet-r3-recon", [0.25, 0.26, 0.24]),
    ]
    judgement = only([claim()], records, params)
    assert [
        (one.group.protocol, one.group.model, one.verdict.status) for one in judgement.candidates
    ] == [
        ("mnist", "capsnet-r3-recon", "reproduced"),
        ("mnist", "capsnet-r3-recon-code", "differs (worse)"),
        ("mnist-short", "capsnet-r3-recon", "not comparable"),
    ]
    assert judgement.status == "reproduced"
    without_text = only([claim()], records[:6], params)
    assert without_text.status == "differs (worse)"


def test_a_claim_about_the_code_is_judged_by_the_code(
    params: Params, claim: MakeClaim, trained: MakeAll
) -> None:
    text = trained("capsnet-r3-recon", [0.25, 0.26, 0.24])
    code = trained("capsnet-r3-recon-code", [0.60, 0.61, 0.59])
    judgement = only([claim(reading="code")], text + code, params)
    assert [one.group.reading for one in judgement.candidates] == ["code"]


def test_superseded_runs_come_last(params: Params, claim: MakeClaim, trained: MakeAll) -> None:
    newer = params.protocols["mnist"].model_copy(update={"version": "2.0"})
    later = params.model_copy(update={"protocols": {"mnist": newer}})
    old = trained("capsnet-r3-recon", [0.25, 0.26, 0.24])
    assert only([claim()], old, later).status == "not comparable"
    new = trained("capsnet-r3-recon", [0.6, 0.61, 0.59], params=later)
    assert only([claim()], old + new, later).status == "differs (worse)"
    # Even before the other reading of the paper, which is second where both are current.
    code = trained("capsnet-r3-recon-code", [0.6, 0.61, 0.59], params=later)
    assert only([claim()], old + code, later).status == "differs (worse)"


def test_parameters_from_one_short_run(params: Params, claim: MakeClaim, trained: MakeAll) -> None:
    run = trained("mnist-short/capsnet-r3-recon", [2.0], metrics={"parameters": 8_215_568.0})
    about = claim(metric="parameters", value=8.2e6, verbatim="8.2M", test_size=None)
    assert only([about], run, params).status == "reproduced"


CONDITION = {"attack": "fgsm", "goal": "untargeted", "epsilon": 0.2}


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ({**CONDITION, "epsilon_unit": "raw-pixels"}, "reproduced"),
        (CONDITION, "reproduced"),
        ({**CONDITION, "epsilon_unit": "standardised-pixels"}, "not run"),
        ({**CONDITION, "attack": "bim"}, "not run"),
        ({**CONDITION, "goal": "targeted"}, "not run"),
        ({**CONDITION, "epsilon": 0.25}, "not run"),
        ({**CONDITION, "loss": "cross-entropy"}, "not run"),
        # A single number cannot be held against a whole curve.
        ({"attack": "fgsm"}, "not run"),
    ],
)
def test_conditions(
    params: Params,
    claim: MakeClaim,
    trained: MakeAll,
    attacked: Make,
    condition: dict[str, Any],
    status: str,
) -> None:
    runs = trained("capsnet-r3-recon", [0.25] * 3)
    records = runs + [attacked(r, {0.1: 90.0, 0.2: 80.0 + r.seed / 10}) for r in runs]
    about = claim(metric="accuracy_pct", value=80.1, verbatim=".801", condition=condition)
    judgement = only([about], records, params)
    assert judgement.status == status


def test_no_attack_answers_a_claim_about_the_test_error(
    params: Params, claim: MakeClaim, trained: MakeAll
) -> None:
    judgement = only([claim(condition=CONDITION)], trained("capsnet-r3-recon", [0.25] * 3), params)
    assert judgement.verdict is not None
    assert explain(judgement.verdict) == "not measured under this condition"


def test_a_bound_must_hold_under_every_attack(
    params: Params, claim: MakeClaim, trained: MakeAll, attacked: Make
) -> None:
    bound = claim(
        "bound", metric="accuracy_pct", relation=">=", value=20.0, condition={"goal": "untargeted"}
    )
    runs = trained("capsnet-r3-recon", [0.25] * 3)
    firm = [attacked(run, {0.0: 0.0, 0.1: 90.0, 0.2: 50.0}) for run in runs]
    weak = [attacked(run, {0.1: 90.0, 0.2: 10.0}) for run in runs]
    assert only([bound], runs + firm, params).status == "reproduced"
    assert only([bound], runs + weak, params).status == "differs (worse)"
