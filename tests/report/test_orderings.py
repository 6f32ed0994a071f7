"""Orderings: their test, its correction, and who is compared with whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from capsrepro.claims import Claim
from capsrepro.records import Record
from capsrepro.report.formatting import explain
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.statistics import welch_p
from capsrepro.report.summaries import group_records
from capsrepro.schema.params import Params

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
MakeClaim = Callable[..., Claim]

WELL, BADLY = [0.25, 0.26, 0.24], [0.35, 0.36, 0.34]


def only(claims: Sequence[Claim], records: Sequence[Record], params: Params) -> Judgement:
    return judge(claims, group_records(records, params), params)[0]


@pytest.mark.parametrize(
    ("better", "worse", "status", "reason"),
    [
        (WELL, BADLY, "reproduced", "significant, p < 0.001 (Holm)"),
        (BADLY, WELL, "differs (worse)", "the opposite holds, p < 0.001 (Holm)"),
        (WELL, [0.27, 0.25, 0.26], "inconclusive", "not significant"),
        ([0.25] * 3, [0.35] * 3, "inconclusive", "no spread over seeds on either side"),
        (WELL, BADLY[:2], "inconclusive", "2 of at least 3 seeds"),
        (WELL[:1], BADLY, "inconclusive", "1 of at least 3 seeds"),
    ],
)
def test_orderings(
    params: Params,
    claim: MakeClaim,
    trained: MakeAll,
    better: list[float],
    worse: list[float],
    status: str,
    reason: str,
) -> None:
    records = trained("capsnet-r3-recon", better) + trained("capsnet-r1-recon", worse)
    judgement = only([claim("ordering")], records, params)
    assert judgement.verdict is not None
    assert judgement.status == status
    assert reason in explain(judgement.verdict)
    effect = sum(worse) / len(worse) - sum(better) / len(better)
    assert judgement.verdict.effect_pp == pytest.approx(effect)
    assert judgement.candidates[0].against is not None


def test_a_short_ordering_is_not_judged(params: Params, claim: MakeClaim, trained: MakeAll) -> None:
    records = trained("mnist-short/capsnet-r3-recon", WELL)
    records += trained("mnist-short/capsnet-r1-recon", BADLY)
    judgement = only([claim("ordering")], records, params)
    assert judgement.status == "not comparable"
    assert judgement.verdict is not None
    assert judgement.verdict.effect_pp == pytest.approx(0.1)


def test_runs_of_different_protocols_are_not_compared(
    params: Params, claim: MakeClaim, trained: MakeAll
) -> None:
    records = trained("capsnet-r3-recon", WELL) + trained("mnist-short/capsnet-r1-recon", BADLY)
    assert only([claim("ordering")], records, params).status == "not run"


def test_orderings_of_a_paper_are_corrected_together(
    params: Params, claim: MakeClaim, trained: MakeAll
) -> None:
    better, worse = [0.25, 0.30, 0.28], [0.33, 0.37, 0.31]
    records = trained("capsnet-r3-recon", better) + trained("capsnet-r1-recon", worse)
    records += trained("cnn-baseline", [0.33, 0.27, 0.30])
    ours = claim("ordering")
    p = welch_p(better, worse)
    assert p is not None and 0.025 < p < 0.05
    assert only([ours], records, params).status == "reproduced"
    second = claim("ordering", id="sabour2017/mnist/second", worse="cnn-baseline")
    together = only([ours, second], records, params)
    assert together.status == "inconclusive"
    assert together.verdict is not None
    assert together.verdict.numbers["p_holm"] == pytest.approx(2 * p)
    elsewhere = second.model_copy(update={"id": "hinton2018/mnist/second"})
    assert only([ours, elsewhere], records, params).status == "reproduced"


def test_a_code_reading_meets_its_own_kind_where_there_is_one(
    params: Params, claim: MakeClaim, trained: MakeAll
) -> None:
    names = ("capsnet-r3-recon", "capsnet-r3-recon-code", "capsnet-r1-recon", "cnn-baseline")
    records = [r for name in names for r in trained(name, WELL)]
    records += trained("capsnet-r1-recon-code", BADLY)
    pairs = [
        (one.group.model, one.against.model)
        for one in only([claim("ordering")], records, params).candidates
        if one.against is not None
    ]
    assert pairs == [
        ("capsnet-r3-recon", "capsnet-r1-recon"),
        ("capsnet-r3-recon-code", "capsnet-r1-recon-code"),
    ]
    # There is one baseline for both readings.
    versus = only([claim("ordering", worse="cnn-baseline")], records, params)
    assert [one.against.model for one in versus.candidates if one.against] == ["cnn-baseline"] * 2


@pytest.mark.parametrize(
    ("stated", "status"), [(None, "reproduced"), (20.0, "reproduced"), (40.0, "inconclusive")]
)
def test_an_ordering_may_state_by_how_much(
    params: Params, claim: MakeClaim, trained: MakeAll, stated: float | None, status: str
) -> None:
    records = trained("capsnet-r3-recon", WELL) + trained("capsnet-r1-recon", BADLY)
    about = claim("ordering", minimum_effect_pct=stated)  # 0.25 is 28.6 % fewer than 0.35
    judgement = only([about], records, params)
    assert judgement.status == status
    assert judgement.verdict is not None
    if status == "inconclusive":
        assert "by 28.57 %, less than is claimed" in explain(judgement.verdict)


def test_an_ordering_under_attack_must_hold_at_every_epsilon(
    params: Params, claim: MakeClaim, trained: MakeAll, attacked: Make
) -> None:
    strong = trained("capsnet-r3-recon", WELL)
    weak = trained("capsnet-r1-recon", WELL)
    about = claim("ordering", metric="accuracy_pct", condition={"attack": "fgsm"})

    def curve(run: Record, far: float) -> Record:
        return attacked(run, {0.0: 50.0, 0.1: 90.0 + run.seed / 10, 0.2: far + run.seed / 10})

    records = [*strong, *weak, *(curve(run, 80.0) for run in strong)]
    everywhere = [attacked(r, {0.1: 70.0 + r.seed, 0.2: 40.0 + r.seed}) for r in weak]
    somewhere = [attacked(r, {0.1: 70.0 + r.seed, 0.2: 80.0 + r.seed}) for r in weak]
    assert only([about], records + everywhere, params).status == "reproduced"
    assert only([about], records + somewhere, params).status == "inconclusive"


def test_each_model_is_attacked_on_its_own_loss(
    params: Params, claim: MakeClaim, trained: MakeAll, attacked: Make
) -> None:
    strong, weak = trained("capsnet-r3-recon", WELL), trained("capsnet-r1-recon", WELL)
    about = claim("ordering", metric="accuracy_pct", condition={"attack": "fgsm"})
    far = [attacked(run, {0.1: 90.0 + run.seed / 10}) for run in strong]
    own = {"loss": "cross-entropy", "attack": {"spread_margin": 0.9}}
    near = [attacked(run, {0.1: 70.0 + run.seed / 10}, **own) for run in weak]
    (candidate,) = only([about], [*strong, *weak, *far, *near], params).candidates
    assert candidate.verdict.status == "reproduced"
    assert candidate.verdict.effect_pp == pytest.approx(20)
    # But another attack is no opponent, nor the same one on other images.
    for other in ({"name": "fgsm-raw"}, {"images": 500}, {"clip": "none"}):
        apart = [attacked(run, {0.1: 70.0 + run.seed / 10}, attack=other) for run in weak]
        assert only([about], [*strong, *weak, *far, *apart], params).candidates == ()
