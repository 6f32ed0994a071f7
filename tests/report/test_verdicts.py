"""The truth table of the verdicts, and what no numbers may ever bring about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsrepro.claims import BoundClaim, Claim, OrderingClaim, ValueClaim
from capsrepro.records import Record
from capsrepro.report.formatting import explain
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.statistics import summarise, welch_p
from capsrepro.report.summaries import group_records
from capsrepro.report.verdicts import Evidence, bound_verdict, value_verdict
from capsrepro.schema import Margins, Params

MARGINS = Margins(
    confidence=0.95, equivalence="two-test-sets", minimum_seeds=3, ordering_alpha=0.05
)
COMMON: dict[str, Any] = {
    "id": "sabour2017/mnist/a-claim",
    "protocol": "mnist",
    "metric": "test_error_pct",
    "verbatim": "0.25",
    "locator": "Table 1",
    "source": "text",
    "model": "capsnet-r3-recon",
}
# At 0.25 % of 10,000 images the margin is 0.138 pp.
VALUE = ValueClaim(kind="value", value=0.25, test_size=10_000, **COMMON)
ATTACKED = {**COMMON, "metric": "accuracy_pct", "verbatim": "20 %"}
NEVER_BELOW = BoundClaim(kind="bound", relation=">=", value=20.0, **ATTACKED)

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
MakeClaim = Callable[..., Claim]
seeds = st.lists(st.integers(0, 10_000).map(lambda wrong: wrong / 100), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("values", "changes", "status", "reason"),
    [
        ([0.25, 0.26, 0.24], {}, "reproduced", "whole interval within ± 0.138 pp"),
        ([0.25, 0.25, 0.25], {}, "reproduced", "within"),
        ([0.60, 0.61, 0.59], {}, "differs (worse)", "whole interval outside ± 0.138 pp"),
        ([0.05, 0.06, 0.05], {}, "differs (better)", "outside"),
        ([0.20, 0.35, 0.28], {}, "inconclusive", "neither wholly within nor wholly outside"),
        ([0.38, 0.40, 0.39], {}, "inconclusive", "neither"),
        ([0.25, 0.26], {}, "inconclusive", "2 of at least 3 seeds"),
        ([0.25], {}, "inconclusive", "1 of at least 3 seeds"),
        ([0.25, 0.26, 0.24], {"failed": 1}, "inconclusive", "1 of its seeds failed"),
        ([0.25, 0.26, 0.24], {"budget": 1 / 150}, "not comparable", "budget 0.00667 of 1"),
        ([9.0, 9.1, 9.2], {"budget": 0.5}, "not comparable", "budget 0.5 of 1"),
        ([0.25], {"budget": 0.5}, "not comparable", "budget 0.5 of 1"),
        ([0.25, 0.26, 0.24], {"budget": 2.0}, "not comparable", "budget 2 of 1"),
        ([0.25, 0.26, 0.24], {"superseded": "it has changed"}, "not comparable", "it has changed"),
        (
            [0.25, 0.26, 0.24],
            {"test_images": 1_000},
            "not comparable",
            "tested on 1,000 images, the paper on 10,000",
        ),
    ],
)
def test_values(values: list[float], changes: dict[str, Any], status: str, reason: str) -> None:
    evidence = Evidence(**{"values": tuple(values), "test_images": 10_000, **changes})
    verdict = value_verdict(VALUE, evidence, MARGINS)
    assert verdict.status == status
    assert reason in explain(verdict)
    assert verdict.ours == summarise(values, 0.95)
    assert verdict.effect_pp == pytest.approx(sum(values) / len(values) - 0.25)


def test_better_means_more_where_more_is_better() -> None:
    claim = ValueClaim(kind="value", value=80.0, test_size=10_000, **ATTACKED)
    more, less = (
        value_verdict(claim, Evidence((v, v + 0.1, v - 0.1)), MARGINS).status for v in (90.0, 70.0)
    )
    assert (more, less) == ("differs (better)", "differs (worse)")


def test_our_own_test_set_gives_the_margin_when_the_papers_is_unknown() -> None:
    claim = VALUE.model_copy(update={"test_size": None})
    values = (0.25, 0.26, 0.24)
    known = value_verdict(claim, Evidence(values, test_images=10_000), MARGINS)
    unknown = value_verdict(claim, Evidence(values), MARGINS)
    assert known.status == "reproduced"
    assert (unknown.status, explain(unknown)) == (
        "inconclusive",
        "no margin, because the size of the test set is unknown",
    )


@pytest.mark.parametrize("metric", ["test_loss", "never_heard_of"])
def test_no_margin_no_verdict(metric: str) -> None:
    claim = VALUE.model_copy(update={"metric": metric})
    verdict = value_verdict(claim, Evidence((0.25, 0.26, 0.24)), MARGINS)
    assert (verdict.status, verdict.effect_pp) == ("inconclusive", None)
    assert explain(verdict) == "no margin is fixed for this metric"


@pytest.mark.parametrize(
    ("values", "reading_error", "status"),
    [
        ((16.1, 16.2, 16.0), None, "reproduced"),
        # Margin 0.654 pp: a figure that may be off by 1 pp can neither be met …
        ((16.1, 16.2, 16.0), 1.0, "inconclusive"),
        ((16.1, 16.2, 16.0), 0.3, "reproduced"),
        # … nor missed by as little.
        ((17.4, 17.5, 17.3), None, "differs (better)"),
        ((17.4, 17.5, 17.3), 1.0, "inconclusive"),
        ((19.4, 19.5, 19.3), 1.0, "differs (better)"),
    ],
)
def test_a_figure_is_only_as_sharp_as_it_was_read(
    values: tuple[float, ...], reading_error: float | None, status: str
) -> None:
    claim = ValueClaim(
        kind="value", value=16.1, test_size=24_300, reading_error=reading_error, **ATTACKED
    )
    verdict = value_verdict(claim, Evidence(values), MARGINS)
    assert verdict.status == status
    assert ("read off a figure" in explain(verdict)) == (reading_error is not None)


@pytest.mark.parametrize(
    ("verbatim", "value", "ours", "status"),
    [
        ("8.2M", 8.2e6, 8_215_568, "reproduced"),
        ("8.2M", 8.2e6, 8_250_001, "differs (worse)"),
        ("6.8M", 6.8e6, 6_804_224, "reproduced"),
        ("35.4M", 35.4e6, 35_445_522, "reproduced"),
        ("35.4M", 35.4e6, 13_277_970, "differs (worse)"),
        ("11.36M", 11.36e6, 11_361_808, "reproduced"),
        ("24.56M", 24.56e6, 24_535_306, "differs (worse)"),
        ("310K", 310_000, 310_400, "reproduced"),
        ("310K", 310_000, 311_000, "differs (worse)"),
        ("6,804,224", 6_804_224, 6_804_224, "reproduced"),
        ("6,804,224", 6_804_224, 6_804_384, "differs (worse)"),
    ],
)
@pytest.mark.parametrize("budget", [1.0, 1 / 150])
def test_facts(verbatim: str, value: float, ours: float, status: str, budget: float) -> None:
    changes = {"metric": "parameters", "verbatim": verbatim, "value": value, "test_size": None}
    claim = VALUE.model_copy(update=changes)
    assert value_verdict(claim, Evidence((ours,), budget=budget), MARGINS).status == status


def test_facts_on_which_our_runs_disagree() -> None:
    claim = VALUE.model_copy(update={"metric": "parameters", "verbatim": "8.2M", "value": 8.2e6})
    verdict = value_verdict(claim, Evidence((8_200_000, 8_200_001)), MARGINS)
    assert verdict.status == "inconclusive"


@pytest.mark.parametrize(
    ("relation", "values", "changes", "status"),
    [
        (">=", (30.0, 31.0, 32.0), {}, "reproduced"),
        (">=", (10.0, 11.0, 12.0), {}, "differs (worse)"),
        (">=", (20.0, 21.0, 22.0), {}, "inconclusive"),
        ("<", (10.0, 11.0, 12.0), {}, "reproduced"),
        ("<", (30.0, 31.0, 32.0), {}, "differs (better)"),
        ("<", (20.0, 20.0, 20.0), {}, "differs (better)"),
        ("<=", (20.0, 20.0, 20.0), {}, "reproduced"),
        (">", (20.0, 20.0, 20.0), {}, "differs (worse)"),
        ("~", (20.0, 20.1, 19.9), {}, "reproduced"),
        ("~", (25.0, 25.1, 24.9), {}, "differs (better)"),
        ("~", (15.0, 15.1, 14.9), {}, "differs (worse)"),
        ("~", (10.0, 20.0, 30.0), {}, "inconclusive"),
        ("~", (20.0, 20.1, 19.9), {"test_images": None}, "inconclusive"),
        (">=", (30.0, 31.0), {}, "inconclusive"),
        (">=", (30.0, 31.0, 32.0), {"failed": 1}, "inconclusive"),
        (">=", (30.0, 31.0, 32.0), {"budget": 0.5}, "not comparable"),
    ],
)
def test_bounds(
    relation: str, values: tuple[float, ...], changes: dict[str, Any], status: str
) -> None:
    claim = NEVER_BELOW.model_copy(update={"relation": relation})
    evidence = Evidence(**{"values": values, "test_images": 10_000, **changes})
    assert bound_verdict(claim, evidence, MARGINS).status == status


def test_a_bound_on_a_fact_needs_one_run() -> None:
    changes = {"metric": "parameters", "relation": "<=", "value": 100_000.0}
    claim = NEVER_BELOW.model_copy(update=changes)
    fewer, more = (
        bound_verdict(claim, Evidence((n,), budget=0.1), MARGINS).status for n in (68e3, 310e3)
    )
    assert (fewer, more) == ("reproduced", "differs (worse)")


@given(seeds, st.floats(0, 0.999))
def test_a_short_run_is_never_judged(values: list[float], budget: float) -> None:
    evidence = Evidence(tuple(values), budget=budget, test_images=10_000)
    assert value_verdict(VALUE, evidence, MARGINS).status == "not comparable"
    assert bound_verdict(NEVER_BELOW, evidence, MARGINS).status == "not comparable"


@given(st.floats(0, 100))
def test_one_seed_is_never_enough(value: float) -> None:
    evidence = Evidence((value,), test_images=10_000)
    assert value_verdict(VALUE, evidence, MARGINS).status == "inconclusive"
    assert bound_verdict(NEVER_BELOW, evidence, MARGINS).status == "inconclusive"


@given(seeds, st.floats(0.01, 5))
def test_blur_never_makes_a_verdict(values: list[float], blur: float) -> None:
    """Reading a figure less sharply can only turn a verdict into an inconclusive one."""
    evidence = Evidence(tuple(values), test_images=10_000)
    sharp = value_verdict(VALUE, evidence, MARGINS).status
    blurred = VALUE.model_copy(update={"reading_error": blur})
    assert value_verdict(blurred, evidence, MARGINS).status in (sharp, "inconclusive")


# --- which runs are held against which claim ---------------------------------------------------


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


# --- orderings ---------------------------------------------------------------------------------

WELL, BADLY = [0.25, 0.26, 0.24], [0.35, 0.36, 0.34]


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


@given(seeds, seeds)
def test_an_ordering_and_its_opposite_never_both_hold(
    better: list[float], worse: list[float]
) -> None:
    from capsrepro.report.orderings import compare, ordering_verdict

    one = {k: v for k, v in COMMON.items() if k != "model"}
    claimed = OrderingClaim(kind="ordering", better="a", worse="b", **one)
    opposite = OrderingClaim(kind="ordering", better="b", worse="a", **one)
    first, second = Evidence(tuple(better)), Evidence(tuple(worse))
    test, reverse = (
        compare(claimed, first, second, MARGINS),
        compare(opposite, second, first, MARGINS),
    )
    verdict = ordering_verdict(claimed, test, test.p, test.p_reverse, MARGINS).status
    other = ordering_verdict(opposite, reverse, reverse.p, reverse.p_reverse, MARGINS).status
    assert (verdict == "reproduced") == (other == "differs (worse)")
    if min(len(better), len(worse)) < 3:
        assert verdict == "inconclusive"
