"""Whether precisions agree: the rule at its edges, who takes part, and what the table shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from capsrepro.config import load_params
from capsrepro.errors import UsageError
from capsrepro.records import Cost, Record, write_record
from capsrepro.report.page import all_tables, readme_blocks
from capsrepro.report.precisions import of_precisions, precision_table
from capsrepro.report.rendering import SUFFIXES, Cell, Table, render
from capsrepro.report.statistics import two_test_sets_margin, welch_interval
from capsrepro.report.summaries import group_records
from capsrepro.schema.params import Params

ROOT = Path(__file__).parents[2]
FLOAT32, TF32, BF16 = (f"mnist-precision-{name}" for name in ("float32", "tf32", "bf16"))
ERRORS = [0.80, 0.84, 0.79, 0.83, 0.81]

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
Compare = Callable[..., dict[str, dict[str, Cell]]]


@pytest.fixture(scope="module")
def real() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def made(real: Params, trained: MakeAll) -> Callable[..., list[Record]]:
    """Records of capsnet-r3-recon by protocol; keywords change all of them."""

    def make(errors: dict[str, Sequence[float]], **changes: Any) -> list[Record]:
        return [
            record
            for protocol, found in errors.items()
            for record in trained(f"{protocol}/capsnet-r3-recon", found, params=real, **changes)
        ]

    return make


@pytest.fixture
def compare(real: Params, made: MakeAll) -> Compare:
    def by_protocol(
        errors: dict[str, Sequence[float]], more: Sequence[Record] = ()
    ) -> dict[str, dict[str, Cell]]:
        table = precision_table(group_records([*made(errors), *more], real), real)
        assert table is not None
        return rows_of(table)

    return by_protocol


def rows_of(table: Table) -> dict[str, dict[str, Cell]]:
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    return {row["run"].text.partition("/")[0]: row for row in rows}


def behind(cell: Cell) -> dict[str, Any]:
    assert isinstance(cell.value, dict)
    return cell.value


def test_protocols_differ_in_precision_alone(real: Params) -> None:
    assert real.precisions == [{"float32": FLOAT32, "tf32": TF32, "bf16": BF16}]
    short, compared = real.protocols["mnist-short"], real.protocols[BF16]
    assert compared.recipe == short.recipe
    assert (compared.budget, compared.judged_as) == (short.budget, None)
    for name in (FLOAT32, TF32):
        changed = {"precision": real.protocols[name].recipe.precision}
        assert real.protocols[name].recipe == short.recipe.model_copy(update=changed)


def test_another_recipe_or_grid_is_not_compared(real: Params) -> None:
    protocol = real.protocols[BF16]
    longer = protocol.recipe.model_copy(update={"steps": 3001})
    for changes in ({"recipe": longer}, {"run_seeds": (0,)}, {"version": "1.1"}):
        protocols = {**real.protocols, BF16: protocol.model_copy(update=changes)}
        changed = real.model_copy(update={"protocols": protocols})
        assert changed.precisions == [{"float32": FLOAT32, "tf32": TF32}]


def test_equal_errors_agree(compare: Compare) -> None:
    rows = compare({FLOAT32: ERRORS, TF32: ERRORS[::-1], BF16: [e + 0.1 for e in ERRORS]})
    assert list(rows) == [FLOAT32, TF32, BF16]
    margin = two_test_sets_margin(0.814, 10_000, 0.95)
    told = f"agree: whole interval within ± {margin:.3f} pp"
    assert [row["agreement"].text for row in rows.values()] == ["–", told, told]
    interval = welch_interval([e + 0.1 for e in ERRORS], ERRORS, 0.95)
    assert interval is not None
    found = behind(rows[BF16]["difference_pp"])
    assert found["mean"] == pytest.approx(0.1)
    assert (found["low"], found["high"]) == pytest.approx(interval)
    assert rows[BF16]["difference_pp"].text == "+0.100 pp (+0.070 to +0.130)"
    assert behind(rows[BF16]["agreement"])["margin_pp"] == margin


@pytest.mark.parametrize("sign", [1, -1])
def test_the_whole_interval_decides(compare: Compare, sign: int) -> None:
    margin = two_test_sets_margin(5.0, 10_000, 0.95)
    theirs = [4.9, 5.0, 5.1, 5.0, 5.0]
    interval = welch_interval(theirs, theirs, 0.95)
    assert interval is not None
    half = interval[1]
    for distance, word in (
        (margin - half - 1e-6, "agree"),
        (margin - half + 1e-6, "inconclusive"),
        (margin + half - 1e-6, "inconclusive"),
        (margin + half + 1e-6, "differ"),
    ):
        rows = compare({FLOAT32: theirs, BF16: [e + sign * distance for e in theirs]})
        assert behind(rows[BF16]["agreement"])["verdict"] == word


@pytest.mark.parametrize(
    ("errors", "why"),
    [
        ({FLOAT32: ERRORS}, "not measured in both precisions"),
        ({BF16: ERRORS}, "not measured in both precisions"),
        ({FLOAT32: ERRORS, BF16: ERRORS[:2]}, "2 of at least 3 seeds"),
        ({FLOAT32: ERRORS[:2], BF16: ERRORS}, "2 of at least 3 seeds"),
        ({FLOAT32: [0.8] * 5, BF16: [0.8] * 5}, "no spread over the seeds"),
    ],
)
def test_what_is_not_enough_is_inconclusive(
    compare: Compare, errors: dict[str, Sequence[float]], why: str
) -> None:
    assert compare(errors)[BF16]["agreement"].text == f"inconclusive: {why}"


def test_a_failed_seed_bars_the_comparison(
    compare: Compare, run_record: Make, real: Params
) -> None:
    failed = run_record(f"{BF16}/capsnet-r3-recon/seed-4", params=real, failure="not finite")
    rows = compare({FLOAT32: ERRORS, BF16: ERRORS[:4]}, [failed])
    assert rows[BF16]["agreement"].text == "inconclusive: 1 of its seeds failed"
    assert rows[BF16]["seeds"].text == "4 (failed 4)"


@pytest.mark.parametrize(
    ("images", "why"),
    [
        ({BF16: 5_000.0}, "not tested on the same number of images"),
        ({FLOAT32: 0.0, BF16: 0.0}, "no margin, because the size of the test set is unknown"),
    ],
)
def test_without_one_test_size_there_is_no_margin(
    real: Params, made: MakeAll, images: dict[str, float], why: str
) -> None:
    records = []
    for record in made({FLOAT32: ERRORS, BF16: ERRORS}):
        metrics = dict(record.metrics)
        size = images.get(record.protocol, metrics.pop("test_images"))
        records.append(record.model_copy(update={"metrics": metrics | {"test_images": size}}))
        if not size:
            del records[-1].metrics["test_images"]
    table = precision_table(group_records(records, real), real)
    assert table is not None
    assert rows_of(table)[BF16]["agreement"].text == f"inconclusive: {why}"


def test_speed_and_device_stand_beside_the_error(real: Params, made: MakeAll) -> None:
    records = []
    for record in made({FLOAT32: ERRORS}):
        speed = Cost(
            wall_time_s=1,
            images_per_s=290 + record.seed,
            peak_memory_mib=1,
            energy_j=None,
            sessions=1,
        )
        device = "GPU one" if record.seed < 3 else "GPU two"
        where = record.environment.model_copy(update={"device": device})
        records.append(record.model_copy(update={"cost": speed, "environment": where}))
    table = precision_table(group_records(records, real), real)
    assert table is not None
    row = rows_of(table)[FLOAT32]
    assert (row["precision"].text, row["seeds"].text) == ("float32", "5")
    assert row["test_error_pct"].text == "0.81 ± 0.021"
    assert row["interval"].text == "0.788 to 0.840"
    assert row["images_per_s"].text == "292 ± 1.581"
    assert row["device"].text == "GPU one, GPU two"


def test_superseded_runs_take_no_part(real: Params, made: MakeAll) -> None:
    records = made({FLOAT32: ERRORS, BF16: ERRORS})
    for name in (FLOAT32, TF32, BF16):
        newer = real.protocols[name].model_copy(update={"version": "1.1"})
        real = real.model_copy(update={"protocols": {**real.protocols, name: newer}})
    assert precision_table(group_records(records, real), real) is None


def test_there_is_no_table_before_there_are_records(real: Params) -> None:
    tables = all_tables([], [], real)
    assert "precision" not in tables
    assert "precision" not in readme_blocks(tables, ["mnist"], set())["results"]


def test_the_page_links_it(real: Params, made: MakeAll) -> None:
    tables = all_tables(made({FLOAT32: ERRORS, BF16: ERRORS}), [], real)
    block = readme_blocks(tables, ["mnist"], set())["results"]
    assert "What else was measured: [precision](results/tables/precision.md)." in block


def test_the_command(empty: Any, made: MakeAll) -> None:
    assert empty.call("report", "--precisions").is_refusal(2, "no record compares precisions;")
    for record in made({FLOAT32: ERRORS, BF16: ERRORS}):
        write_record(empty.root / "results" / "runs" / record.run, record)
    result = empty.call("report", "--precisions", BF16, "--write", "--format", "json")
    assert result.code == 0, result
    (table,) = json.loads(result.out)["tables"]
    assert [row["precision"] for row in table["rows"]] == ["float32", "tf32", "bf16"]
    assert table["rows"][2]["agreement"]["verdict"] == "agree"
    for suffix in SUFFIXES.values():
        assert "agree" in (empty.root / f"results/tables/precision{suffix}").read_text()
    index = json.loads((empty.root / "results/index.json").read_text())
    assert f"{BF16}/capsnet-r3-recon/seed-4/train" in index
    refused = empty.call("report", "--precisions", "mnist")
    assert refused.is_refusal(2, "no record compares precisions under mnist;")


def test_only_the_protocols_asked_for(real: Params, made: MakeAll) -> None:
    table = precision_table(group_records(made({BF16: ERRORS}), real), real)
    assert table is not None
    assert of_precisions(table, []) == of_precisions(table, [TF32, "mnist"]) == table
    with pytest.raises(UsageError, match="under svhn;"):
        of_precisions(table, ["svhn"])
    assert "missing 0, 1, 2, 3, 4" in render([table], "md")
