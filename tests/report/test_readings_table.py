"""Which reading comes nearer: who takes part, when it is said, and what the table shows.

After a deliberate change: `UPDATE_GOLDEN=1 pytest tests/report/test_readings.py`, then read the
diff.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from capsrepro.claims import Claim
from capsrepro.errors import UsageError
from capsrepro.records import Record, write_record
from capsrepro.report.page import all_tables
from capsrepro.report.readings_table import of_protocols, readings_table
from capsrepro.report.rendering import SUFFIXES, Cell, Format, Table, render
from capsrepro.report.summaries import group_records
from capsrepro.schema.params import Params

GOLDEN = Path(__file__).parent / "golden" / "readings.md"
TEXT, CODE = "mnist/capsnet-r3-recon", "mnist/capsnet-r3-recon-code"

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
MakeClaim = Callable[..., Claim]
Row = dict[str, Cell]
Compare = Callable[..., dict[str, Row]]


@pytest.fixture
def compare(params: Params, trained: MakeAll, claim: MakeClaim) -> Compare:
    """The rows of one claim by run; keywords change the claim."""

    def by_run(
        errors: dict[str, Sequence[float]], more: Sequence[Record] = (), **changes: Any
    ) -> dict[str, Row]:
        records = [record for run, found in errors.items() for record in trained(run, found)]
        groups = group_records([*records, *more], changes.pop("params", params))
        return _rows(readings_table([claim(**changes)], groups, params))

    return by_run


def _rows(table: Table) -> dict[str, Row]:
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    assert len({row["run"].text for row in rows}) == len(rows)
    return {row["run"].text: row for row in rows}


def _words(rows: dict[str, Row], *runs: str) -> list[str]:
    return [rows[run]["nearer"].text for run in runs or rows]


def _behind(cell: Cell) -> dict[str, Any]:
    assert isinstance(cell.value, dict)
    return cell.value


def test_a_clear_winner_is_named_with_its_lead(compare: Compare) -> None:
    text, code = [0.25, 0.26, 0.25], [0.34, 0.36, 0.35]
    rows = compare({TEXT: text, CODE: code}, verbatim="0.250")
    assert _words(rows, TEXT, CODE) == ["nearer by 0.097 pp", "farther by 0.097 pp"]
    winner, loser = (_behind(rows[run]["nearer"]) for run in (TEXT, CODE))
    # Of the two ends of the rounding, the one between the means.
    mirrored = [abs(value - 0.2505) for value in code]
    signed = [value - 0.2505 for value in text]
    expected = stats.ttest_ind(signed, mirrored, equal_var=False, alternative="less").pvalue
    assert winner["p"] == loser["p"] == pytest.approx(expected)
    assert winner["by_pp"] == -loser["by_pp"] == pytest.approx(0.35 - 0.76 / 3)


def test_the_numbers_beside_the_published_one(compare: Compare) -> None:
    row = compare({TEXT: [0.25, 0.26, 0.25], CODE: [0.2, 0.2, 0.23]})[CODE]
    assert row["claim"].text == "sabour2017/mnist/value"
    assert row["published"].text == "0.25 ± 0.005 (Table 1, row 5; §5)"
    assert (row["budget"].text, row["reading"].text, row["seeds"].text) == ("1", "code", "3")
    assert row["ours"].text == "0.21 ± 0.017"
    interval = stats.t.interval(0.95, 2, 0.21, stats.sem([0.2, 0.2, 0.23]))
    assert row["difference_pp"].text == "−0.040 pp (± 0.043)"
    assert _behind(row["difference_pp"]) == pytest.approx(
        {"mean": -0.04, "half_width": interval[1] - 0.21}
    )


def test_the_nearer_may_lie_on_the_other_side(compare: Compare) -> None:
    rows = compare({TEXT: [0.23, 0.24, 0.24], CODE: [0.34, 0.36, 0.35]})
    assert _words(rows, TEXT, CODE) == ["nearer by 0.087 pp", "farther by 0.087 pp"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ([0.28, 0.30, 0.29], [0.22, 0.20, 0.21]),  # equally far on two sides
        ([0.28, 0.30, 0.29], [0.29, 0.31, 0.30]),  # on one side, within the spread
        ([0.20, 0.25, 0.31], [0.27, 0.35, 0.41]),  # far apart, but so are the seeds
    ],
)
def test_a_tie_is_none_of_both(compare: Compare, text: list[float], code: list[float]) -> None:
    rows = compare({TEXT: text, CODE: code}, verbatim="0.250")
    assert _words(rows, TEXT, CODE) == ["cannot tell", "cannot tell"]
    assert _behind(rows[TEXT]["nearer"])["p"] is None


def test_without_spread_nothing_is_told(compare: Compare) -> None:
    rows = compare({TEXT: [0.25] * 3, CODE: [0.9] * 3})
    assert _words(rows, TEXT, CODE) == ["cannot tell", "cannot tell"]


def test_the_rule_is_that_neither_sum_nor_difference_may_be_zero(compare: Compare) -> None:
    """|x| < |y| just when x − y and x + y differ from 0, in scipy's own Welch intervals."""
    random, found = np.random.default_rng(0), set()
    for _ in range(60):
        x, y = (
            random.normal(random.normal(0, 2), random.uniform(0.2, 1), size=4) for _ in range(2)
        )
        ends = [
            stats.ttest_ind(x, other, equal_var=False).confidence_interval(0.95)
            for other in (y, -y)
        ]
        decided = all(low > 0 or high < 0 for low, high in ends)
        ahead = abs(x.mean()) < abs(y.mean())
        expected = ("nearer" if ahead else "farther") if decided else "cannot tell"
        rows = compare({TEXT: list(50 + x), CODE: list(50 + y)}, value=50.0, verbatim="50.000000")
        assert _words(rows, TEXT)[0].split(" by ")[0] == expected
        found.add(expected)
    assert found == {"nearer", "farther", "cannot tell"}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"verbatim": "0.250 ± 0.005"}, "nearer by 0.006 pp"),
        ({"verbatim": "0.25 ± 0.005"}, "cannot tell"),
        ({"verbatim": "0.250", "source": "figure", "reading_error": 0.004}, "cannot tell"),
        ({"verbatim": "0.25", "source": "figure", "reading_error": 0.0004}, "nearer by 0.006 pp"),
    ],
)
def test_it_must_hold_wherever_the_printed_number_lies(
    compare: Compare, changes: dict[str, Any], word: str
) -> None:
    means = {TEXT: [0.2499, 0.25, 0.2501], CODE: [0.2559, 0.256, 0.2561]}
    assert _words(compare(means, **changes), TEXT) == [word]


def test_a_reading_that_was_not_run(compare: Compare) -> None:
    rows = compare({TEXT: [0.25, 0.26, 0.25]})
    assert _words(rows, TEXT, CODE) == ["cannot tell: nothing to compare it with", "not run"]
    assert [rows[CODE][key].text for key in ("seeds", "ours", "difference_pp")] == ["0", "–", "–"]


def test_one_seed_says_nothing(compare: Compare) -> None:
    rows = compare({TEXT: [0.25, 0.26, 0.25], CODE: [0.9]})
    assert _words(rows, TEXT, CODE) == ["cannot tell: nothing to compare it with", "one seed"]
    assert rows[CODE]["difference_pp"].text == "+0.650 pp"
    assert _behind(rows[CODE]["difference_pp"])["half_width"] is None


def test_too_few_seeds_say_nothing(compare: Compare) -> None:
    rows = compare({TEXT: [0.25, 0.26], CODE: [0.9, 0.91, 0.92]})
    assert rows[TEXT]["nearer"].text == "cannot tell: 2 of at least 3 seeds"
    assert rows[TEXT]["seeds"].text == "2 (missing 2)"


def test_the_mean_of_survivors_is_not_compared(compare: Compare, run_record: Make) -> None:
    failed = run_record(f"{CODE}/seed-3", failure="loss is NaN at step 120")
    rows = compare({TEXT: [0.25, 0.26, 0.25], CODE: [0.9, 0.91, 0.92]}, [failed])
    assert _words(rows, TEXT, CODE) == [
        "cannot tell: nothing to compare it with",
        "cannot tell: 1 of its seeds failed",
    ]
    assert rows[CODE]["seeds"].text == "3 (failed 3)"


def test_every_seed_failed(compare: Compare, run_record: Make) -> None:
    failed = [run_record(f"{CODE}/seed-{seed}", failure="loss is NaN") for seed in (0, 1)]
    rows = compare({TEXT: [0.25, 0.26, 0.25]}, failed)
    assert rows[CODE]["nearer"].text == "cannot tell: every seed failed"
    assert (rows[CODE]["seeds"].text, rows[CODE]["ours"].text) == ("0 (failed 0, 1)", "–")


def test_short_and_full_runs_never_meet(compare: Compare) -> None:
    short_text, short_code = (run.replace("mnist/", "mnist-short/") for run in (TEXT, CODE))
    rows = compare(
        {
            TEXT: [0.35, 0.36, 0.35],
            CODE: [0.44, 0.46, 0.45],
            short_text: [0.25, 0.26, 0.25],
            short_code: [0.9, 0.91, 0.92],
        }
    )
    assert list(rows) == [TEXT, CODE, short_text, short_code]
    # The short runs are nearer than either, and it does not matter.
    assert _words(rows) == [
        "nearer by 0.097 pp",
        "farther by 0.097 pp",
        "not comparable: budget 0.00667 of 1",
        "not comparable: budget 0.00667 of 1",
    ]
    assert [row["budget"].text for row in rows.values()] == ["1", "1", "0.00667", "0.00667"]


@pytest.fixture
def three(params: Params) -> Params:
    """With a third protocol: other data for the same claims, and the code's network alone."""
    other = params.protocols["mnist"].model_copy(
        update={"run_models": ("capsnet-r3-recon-code",), "title": "MNIST, other data"}
    )
    return params.model_copy(update={"protocols": {**params.protocols, "mnist-other": other}})


@pytest.fixture
def compare_three(three: Params, trained: MakeAll, claim: MakeClaim) -> Compare:
    def by_run(errors: dict[str, Sequence[float]]) -> dict[str, Row]:
        records = [r for run, found in errors.items() for r in trained(run, found, params=three)]
        return _rows(readings_table([claim()], group_records(records, three), three))

    return by_run


def test_among_three_the_nearest_must_beat_both(compare_three: Compare) -> None:
    other, far = "mnist-other/capsnet-r3-recon-code", [0.9, 0.91, 0.92]
    rows = compare_three({TEXT: [0.25, 0.26, 0.25], CODE: [0.26, 0.25, 0.26], other: far})
    assert _words(rows, TEXT, CODE, other) == ["cannot tell", "cannot tell", "farther by 0.657 pp"]
    rows = compare_three({TEXT: [0.25, 0.26, 0.25], CODE: [0.36, 0.35, 0.36], other: far})
    assert _words(rows, TEXT, CODE) == ["nearer by 0.103 pp", "farther by 0.103 pp"]


def test_a_pair_nobody_asks_for_fills_a_gap_only(compare_three: Compare) -> None:
    """The code's network on the text's data appears once it was run: its reading has runs."""
    other = "mnist-other/capsnet-r3-recon-code"
    full = [run for run in compare_three({}) if "short" not in run]
    assert full == [TEXT, other]
    full = [run for run in compare_three({CODE: [0.3]}) if "short" not in run]
    assert full == [TEXT, CODE, other]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "ordering"},
        {"kind": "bound"},
        {"cited_from": "Wan et al. 2013"},
        {"reading": "code"},
        {"metric": "parameters"},
        {"metric": "train_loss"},
        {"model": "cnn-baseline"},  # one reading only
        {"protocol": "svhn"},
    ],
)
def test_no_row_without_a_value_and_two_readings(compare: Compare, changes: dict[str, Any]) -> None:
    runs = {TEXT: [0.25], CODE: [0.26], "mnist/cnn-baseline": [0.39]}
    assert not compare(runs, **changes)


def test_superseded_runs_take_no_part(compare: Compare, params: Params) -> None:
    newer = params.protocols["mnist"].model_copy(update={"version": "1.1"})
    later = params.model_copy(update={"protocols": {"mnist": newer}})
    rows = compare({TEXT: [0.25, 0.26, 0.25], CODE: [0.9, 0.9, 0.91]}, params=later)
    assert _words(rows, TEXT) == ["not run"]


def test_a_value_under_attack(compare: Compare, trained: MakeAll, attacked: Make) -> None:
    """Of a curve only the point that the claim names; where it names none, nothing."""
    runs = [*trained(TEXT, [0.25, 0.26, 0.25]), *trained(CODE, [0.25, 0.26, 0.25])]
    evaluations = [
        attacked(run, {0.1: 90.0 + run.seed - 9 * ("code" in run.model), 0.3: 1.0}) for run in runs
    ]
    about = {"metric": "accuracy_pct", "value": 91.0, "verbatim": "91.0"}
    rows = compare({}, runs + evaluations, condition={"attack": "fgsm", "epsilon": 0.1}, **about)
    assert _words(rows, TEXT, CODE) == ["nearer by 9.00 pp", "farther by 9.00 pp"]
    rows = compare({}, runs + evaluations, condition={"attack": "fgsm"}, **about)
    assert _words(rows, TEXT, CODE) == ["not run: not measured"] * 2


@pytest.fixture
def tables(params: Params, trained: MakeAll, claim: MakeClaim, run_record: Make) -> list[Table]:
    """Decided, one missing, one seed, and short ones."""
    records = [
        *trained(TEXT, [0.25, 0.26, 0.25]),
        *trained(CODE, [0.34, 0.36, 0.35]),
        *trained("mnist/capsnet-r1-recon-code", [0.31]),
        run_record("mnist/capsnet-r1-recon/seed-0", failure="loss is NaN at step 120"),
        *trained("mnist-short/capsnet-r3-recon", [2.1, 2.3, 2.2]),
    ]
    one = claim(
        id="sabour2017/mnist/capsnet-r1-recon/test-error",
        model="capsnet-r1-recon",
        value=0.29,
        verbatim="0.29 ± 0.011",
        locator="Table 1, row 3; §5",
    )
    three = claim(id="sabour2017/mnist/capsnet-r3-recon/test-error")
    return all_tables(records, [one, three], params)["readings"]


def test_golden(tables: list[Table]) -> None:
    text = render(tables, "md")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_bytes(text.encode())
    assert text == GOLDEN.read_bytes().decode()


@pytest.mark.parametrize("form", list(SUFFIXES))
def test_every_format_says_it(tables: list[Table], form: Format) -> None:
    text = render(tables, form)
    for word in ("nearer", "farther", "one seed", "not run", "not comparable"):
        assert word in text
    if form == "json":
        (table,) = json.loads(text)["tables"]
        (row,) = [row for row in table["rows"] if row["nearer"]["verdict"] == "nearer"]
        assert row["run"] == {"protocol": "mnist", "model": "capsnet-r3-recon"}
        assert row["published"] == {"verbatim": "0.25 ± 0.005", "value": 0.25}
        assert row["ours"]["mean"] == 0.76 / 3


def test_only_the_values_of_a_protocol(tables: list[Table]) -> None:
    (table,) = tables
    assert of_protocols(table, []) == table
    short = of_protocols(table, ["mnist-short"])
    assert {row[3].text.partition("/")[0] for row in short.rows} == {"mnist-short"}
    both = of_protocols(table, ["mnist", "mnist-short"])
    assert both == table
    with pytest.raises(UsageError, match="under svhn; protocols with some: mnist, mnist-short"):
        of_protocols(table, ["svhn"])


def test_the_command(empty: Any, params: Params, trained: MakeAll) -> None:
    for record in trained("mnist-short/capsnet-r3-recon", [2.1, 2.3, 2.2]):
        write_record(empty.root / "results" / "runs" / record.run, record)
    result = empty.call("report", "--readings", "--write", "mnist-short", "--format", "json")
    assert result.code == 0, result
    (table,) = json.loads(result.out)["tables"]
    assert table["name"] == "readings"
    assert {row["run"]["protocol"] for row in table["rows"]} == {"mnist-short"}
    # The file holds all of them, whatever was shown.
    kept = (empty.root / "results/tables/readings.md").read_text()
    assert "multimnist-code/capsnet-r3-recon-code" in kept
    assert "| farther" not in kept
    assert empty.call("report", "--readings", "svhn").is_refusal(2, "two readings under svhn")
    assert empty.call("report", "--readings", "nope").is_refusal(2, "'nope'")
    assert "Readings of the papers" not in empty.call("report", "mnist-short").out
