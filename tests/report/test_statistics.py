"""Every statistic agrees with scipy.stats, which the report itself does not import."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsrepro.report.statistics import (
    Summary,
    binomial_standard_error,
    holm,
    reduction_margin,
    summarise,
    two_test_sets_margin,
    welch_interval,
    welch_p,
)

stats = pytest.importorskip("scipy.stats")

SAMPLES = [
    ([0.25, 0.26, 0.25], [0.29, 0.30, 0.28]),
    ([0.35, 0.31, 0.38, 0.40, 0.33], [0.34, 0.36]),
    ([99.1, 12.0], [3.0, 3.0, 3.0]),
    ([0.31, 0.30, 0.29], [0.25, 0.24, 0.26]),
]
# scipy warns where one side has no spread; its p is right all the same.
quiet = pytest.mark.filterwarnings("ignore:Precision loss")
errors = st.lists(st.integers(0, 10_000).map(lambda wrong: wrong / 100), min_size=2, max_size=8)


@pytest.mark.parametrize("values", [sample for pair in SAMPLES for sample in pair])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_summary_is_scipys(values: list[float], confidence: float) -> None:
    summary = summarise(values, confidence)
    assert summary.mean == pytest.approx(np.mean(values), rel=1e-14)
    assert summary.sd == pytest.approx(np.std(values, ddof=1), rel=1e-12, abs=1e-14)
    assert summary.n == len(values)
    assert summary.interval is not None
    if summary.sd:
        expected = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
        assert summary.interval == pytest.approx(expected, rel=1e-12)


def test_one_seed_has_neither_spread_nor_interval() -> None:
    assert summarise([0.25], 0.95) == Summary(0.25, None, 1, None)


def test_equal_seeds_have_no_spread_at_all() -> None:
    # numpy's SD of these is 1.7e-17: a test against it would divide by rounding noise.
    assert summarise([0.1, 0.1, 0.1], 0.95) == Summary(0.1, 0.0, 3, (0.1, 0.1))
    assert welch_p([0.1, 0.1, 0.1], [0.3, 0.3, 0.3]) is None


@quiet
@pytest.mark.parametrize(("smaller", "larger"), SAMPLES)
def test_welch_is_scipys(smaller: list[float], larger: list[float]) -> None:
    expected = stats.ttest_ind(smaller, larger, equal_var=False, alternative="less").pvalue
    assert welch_p(smaller, larger) == pytest.approx(expected, rel=1e-10)


@quiet
@given(errors, errors)
def test_welch_is_scipys_for_any_errors(smaller: list[float], larger: list[float]) -> None:
    p = welch_p(smaller, larger)
    if p is None:
        assert len(set(smaller)) == len(set(larger)) == 1
    else:
        expected = stats.ttest_ind(smaller, larger, equal_var=False, alternative="less").pvalue
        assert p == pytest.approx(expected, rel=1e-6, abs=1e-12)
        reverse = welch_p(larger, smaller)
        assert reverse is not None
        assert p + reverse == pytest.approx(1)


@quiet
@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("values", "others"), SAMPLES)
def test_welchs_interval_is_scipys(
    values: list[float], others: list[float], confidence: float
) -> None:
    test = stats.ttest_ind(values, others, equal_var=False)
    expected = test.confidence_interval(confidence)
    assert welch_interval(values, others, confidence) == pytest.approx(tuple(expected), rel=1e-9)


def test_without_spread_there_is_no_interval() -> None:
    assert welch_interval([0.1, 0.1], [0.3, 0.3], 0.95) is None
    assert welch_interval([0.1, 0.2], [0.3], 0.95) is None


def test_welch_survives_tiny_spreads() -> None:
    # The squares of these variances underflow to 0.
    p = welch_p([1e-90, 2e-90, 3e-90], [2e-90, 3e-90, 4e-90])
    assert p == pytest.approx(welch_p([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]))


@pytest.mark.parametrize(("smaller", "larger"), [([0.1], [0.2, 0.3]), ([0.1, 0.2], [0.3])])
def test_no_test_from_one_seed(smaller: list[float], larger: list[float]) -> None:
    assert welch_p(smaller, larger) is None


def test_holm_by_hand() -> None:
    # Sorted: 0.01·4, then max(0.04, 0.02·3), max(0.06, 0.03·2), max(0.06, 0.04·1).
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_holm_counts_no_tests_that_were_not_made() -> None:
    assert holm([None, 0.02, None, 0.9]) == [None, pytest.approx(0.04), None, pytest.approx(0.9)]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_nothing_and_bonferroni(p_values: list[float]) -> None:
    for p, corrected in zip(p_values, holm(list(p_values)), strict=True):
        assert corrected is not None
        assert p <= corrected <= min(1.0, p * len(p_values)) + 1e-12


def test_binomial_standard_error_is_scipys() -> None:
    expected = stats.binom(10_000, 0.0025).std() / 10_000
    assert binomial_standard_error(0.0025, 10_000) == pytest.approx(expected, rel=1e-12)


def test_margin_of_table_1() -> None:
    # 0.25 % on 10,000 images: the rows of Table 1 are barely farther apart than two test sets.
    expected = stats.norm.ppf(0.975) * np.sqrt(2) * 100 * np.sqrt(0.0025 * 0.9975 / 10_000)
    assert two_test_sets_margin(0.25, 10_000, 0.95) == pytest.approx(expected, rel=1e-12)
    assert round(two_test_sets_margin(0.25, 10_000, 0.95), 3) == 0.138


@given(st.floats(0, 100), st.integers(1, 10**7))
def test_margin_is_the_same_for_error_and_accuracy(error_pct: float, size: int) -> None:
    margin = two_test_sets_margin(error_pct, size, 0.95)
    assert margin >= 0
    assert margin == pytest.approx(two_test_sets_margin(100 - error_pct, size, 0.95), abs=1e-5)


def test_margin_of_a_reduction_of_a_fixed_number_is_that_of_the_error_in_its_unit() -> None:
    for reduction, against in ((45.0, 2.56), (0.0, 20.0), (-30.0, 50.0)):
        error_pct = against * (1 - reduction / 100)
        expected = 100 / against * two_test_sets_margin(error_pct, 24_300, 0.95)
        margin = reduction_margin(reduction, against, 24_300, math.inf, 0.95)
        assert margin == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_margin_of_a_reduction_is_what_pairs_of_test_sets_differ_by(confidence: float) -> None:
    chance, pairs, size = np.random.default_rng(0), 100_000, 16_200
    # 13.5 against 20 % on 16,200 images (EM18, Table 2), counted twice.
    a, b = (chance.binomial(size, p, (2, pairs)) for p in (0.135, 0.2))
    first, second = 100 * (1 - a / b)
    margin = reduction_margin(32.5, 20.0, size, size, confidence)
    assert np.mean(abs(first - second) <= margin) == pytest.approx(confidence, abs=3e-3)


def test_margin_of_a_reduction_at_its_ends() -> None:
    # Nothing left: a is 0, and what b is does not matter.
    assert reduction_margin(100, 20, 1_000, 1_000, 0.95) == 0
    # Nothing gained: two equal errors, each with its own chance.
    one = two_test_sets_margin(20, 1_000, 0.95)
    none = reduction_margin(0, 20, 1_000, 1_000, 0.95)
    assert none == pytest.approx(math.sqrt(2) * one / 0.2, rel=1e-12)
    # Fewer images on either side tell less.
    assert reduction_margin(0, 20, 10, 1_000, 0.95) > none
    assert reduction_margin(0, 20, 1_000, 10, 0.95) > none


def test_the_report_imports_neither_scipy_stats_nor_torch() -> None:
    program = (
        "import sys, capsrepro.report.page; "
        "print([m for m in ('scipy.stats', 'torch', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
