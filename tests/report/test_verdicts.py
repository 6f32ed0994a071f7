"""The truth table of the verdicts, and what no numbers may ever bring about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsrepro.claims import BoundClaim, OrderingClaim, ValueClaim
from capsrepro.report.formatting import explain
from capsrepro.report.orderings import compare, ordering_verdict
from capsrepro.report.statistics import summarise
from capsrepro.report.verdicts import Evidence, bound_verdict, value_verdict
from capsrepro.schema.params import Margins

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
        ((15.8, 15.9, 15.7), None, "reproduced"),
        ((15.8, 15.9, 15.7), 0.5, "inconclusive"),
        ((16.4, 16.5, 16.3), 0.5, "inconclusive"),
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
        # Rounded …
        ("8.2M", 8.2e6, 8_150_000, "reproduced"),
        ("8.2M", 8.2e6, 8_149_999, "differs (worse)"),
        # … or cut off.
        ("8.2M", 8.2e6, 8_299_999, "reproduced"),
        ("8.2M", 8.2e6, 8_300_000, "differs (worse)"),
        ("4.2M", 4.2e6, 4_253_349, "reproduced"),
        ("4.2M", 4.2e6, 1_697_445, "differs (worse)"),
        ("68K", 68_000, 68_618, "reproduced"),
        ("68K", 68_000, 69_000, "differs (worse)"),
        ("68K", 68_000, 67_499, "differs (worse)"),
        ("6.8M", 6.8e6, 6_804_224, "reproduced"),
        ("35.4M", 35.4e6, 35_445_522, "reproduced"),
        ("35.4M", 35.4e6, 13_277_970, "differs (worse)"),
        ("11.36M", 11.36e6, 11_361_808, "reproduced"),
        ("24.56M", 24.56e6, 24_535_306, "differs (worse)"),
        ("310K", 310_000, 310_400, "reproduced"),
        ("310K", 310_000, 311_000, "differs (worse)"),
        ("60M", 60e6, 61_000_000, "differs (worse)"),
        ("15", 15, 14.5, "reproduced"),
        ("15", 15, 15.9, "reproduced"),
        ("15", 15, 13.4, "differs (worse)"),
        ("15", 15, 16.0, "differs (worse)"),
        ("6,804,224", 6_804_224, 6_804_224, "reproduced"),
        ("6,804,224", 6_804_224, 6_804_384, "differs (worse)"),
    ],
)
@pytest.mark.parametrize("budget", [1.0, 1 / 150])
def test_facts(verbatim: str, value: float, ours: float, status: str, budget: float) -> None:
    changes = {"metric": "parameters", "verbatim": verbatim, "value": value, "test_size": None}
    claim = VALUE.model_copy(update=changes)
    assert value_verdict(claim, Evidence((ours,), budget=budget), MARGINS).status == status


@pytest.mark.parametrize(
    ("ours", "status"),
    [
        (304_999, "differs (worse)"),
        (305_000, "reproduced"),
        (316_650, "reproduced"),
        (319_999, "reproduced"),
        (320_000, "differs (worse)"),
    ],
)
def test_zeros_that_only_fill_up_a_figure(ours: int, status: str) -> None:
    changes = {"metric": "parameters", "verbatim": "310K", "value": 310_000, "last_place": 10_000}
    claim = VALUE.model_copy(update=changes)
    assert value_verdict(claim, Evidence((ours,)), MARGINS).status == status


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        (8_215_568, "equal to the printed precision"),
        (8_260_000, "equal when cut off to the printed precision"),
        (8_300_000, "neither rounds nor is cut off to the printed figure"),
    ],
)
def test_facts_say_how_they_were_printed(ours: int, reason: str) -> None:
    claim = VALUE.model_copy(update={"metric": "parameters", "verbatim": "8.2M", "value": 8.2e6})
    assert explain(value_verdict(claim, Evidence((ours,)), MARGINS)) == reason


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


REDUCED = BoundClaim(
    kind="bound",
    relation="~",
    value=30.0,
    **{**COMMON, "metric": "novel_error_reduction_pct", "verbatim": "≈ 30 %"},
)
MATCHED = REDUCED.model_copy(update={"against_pct": 20.0})
FIXED = REDUCED.model_copy(
    update={
        "metric": "error_reduction_pct",
        "condition": {"against": "others", "against_test_error_pct": 20.0},
    }
)


@pytest.mark.parametrize(
    ("claim", "middle", "status", "reason"),
    [
        # 1.96 √2 0.7 √(0.86 / 0.14 n + 0.8 / 0.2 n) on n = 16,200 images is 4.85 pp …
        (MATCHED, 30.0, "reproduced", "whole interval satisfies the bound (± 4.85 pp)"),
        (MATCHED, 34.5, "reproduced", "(± 4.85 pp)"),
        (MATCHED, 34.85, "inconclusive", "interval lies on both sides of the bound (± 4.85 pp)"),
        (MATCHED, 35.2, "differs (better)", "whole interval violates the bound (± 4.85 pp)"),
        (MATCHED, 24.8, "differs (worse)", "(± 4.85 pp)"),
        # … and without the second term, which a number that does not vary has not, 3.78 pp.
        (FIXED, 33.4, "reproduced", "(± 3.78 pp)"),
        (FIXED, 34.2, "differs (better)", "(± 3.78 pp)"),
        (REDUCED, 30.0, "inconclusive", "no margin is fixed for this metric"),
    ],
)
def test_fewer_errors(claim: BoundClaim, middle: float, status: str, reason: str) -> None:
    evidence = Evidence((middle - 0.1, middle, middle + 0.1), test_images=16_200)
    verdict = bound_verdict(claim, evidence, MARGINS)
    assert verdict.status == status
    assert reason in explain(verdict)
    unknown = Evidence(evidence.values)
    assert bound_verdict(claim, unknown, MARGINS).status == "inconclusive"


DECADES = REDUCED.model_copy(
    update={"metric": "gradient_orders_of_magnitude_smaller", "value": 2.0}
)
ADVANTAGE = REDUCED.model_copy(update={"metric": "black_box_accuracy_advantage_pp", "value": 0.0})


@pytest.mark.parametrize(
    ("claim", "middle", "status", "reason"),
    [
        (DECADES, 2.0, "reproduced", "whole interval satisfies the bound (± 0.5 decades)"),
        (DECADES, 1.8, "reproduced", "(± 0.5 decades)"),
        (DECADES, 2.5, "inconclusive", "interval lies on both sides of the bound (± 0.5 decades)"),
        # No direction is better, and no other number than the claimed one is right.
        (DECADES, 1.0, "differs (worse)", "whole interval violates the bound (± 0.5 decades)"),
        (DECADES, 16.0, "differs (worse)", "(± 0.5 decades)"),
        # 1.96 √2 √2 √(0.5 · 0.5 / 24,300): two accuracies, each on two test sets.
        (ADVANTAGE, 0.0, "reproduced", "(± 1.26 pp)"),
        (ADVANTAGE, 0.9, "reproduced", "(± 1.26 pp)"),
        (ADVANTAGE, 1.2, "inconclusive", "(± 1.26 pp)"),
        (ADVANTAGE, 2.0, "differs (better)", "(± 1.26 pp)"),
        (ADVANTAGE, -2.0, "differs (worse)", "(± 1.26 pp)"),
    ],
)
def test_smaller_gradients_and_the_black_box(
    claim: BoundClaim, middle: float, status: str, reason: str
) -> None:
    evidence = Evidence((middle - 0.1, middle, middle + 0.1), test_images=24_300)
    verdict = bound_verdict(claim, evidence, MARGINS)
    assert verdict.status == status
    assert reason in explain(verdict)
    assert verdict.effect_pp == (None if claim is DECADES else pytest.approx(middle))
    # A number of decades needs no test set to be counted on.
    unknown = bound_verdict(claim, Evidence(evidence.values), MARGINS)
    assert unknown.status == (status if claim is DECADES else "inconclusive")


def test_a_number_of_decades_may_be_a_value_too() -> None:
    claim = ValueClaim(kind="value", **DECADES.model_dump(exclude={"kind", "relation"}))
    verdict = value_verdict(claim, Evidence((1.9, 2.0, 2.1)), MARGINS)
    assert explain(verdict) == "whole interval within ± 0.5 decades"


def test_a_value_may_be_a_reduction_too() -> None:
    fields = REDUCED.model_dump(exclude={"kind", "relation"}) | {"against_pct": 20.0}
    claim = ValueClaim(kind="value", test_size=16_200, **fields)
    verdict = value_verdict(claim, Evidence((29.9, 30.0, 30.1)), MARGINS)
    assert explain(verdict) == "whole interval within ± 4.85 pp"


@given(seeds, st.floats(0.01, 5))
def test_blur_never_makes_a_verdict(values: list[float], blur: float) -> None:
    """Reading a figure less sharply can only turn a verdict into an inconclusive one."""
    evidence = Evidence(tuple(values), test_images=10_000)
    sharp = value_verdict(VALUE, evidence, MARGINS).status
    blurred = VALUE.model_copy(update={"reading_error": blur})
    assert value_verdict(blurred, evidence, MARGINS).status in (sharp, "inconclusive")


@given(seeds, seeds)
def test_an_ordering_and_its_opposite_never_both_hold(
    better: list[float], worse: list[float]
) -> None:
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
