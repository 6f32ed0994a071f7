"""What else was measured: which numbers, of which runs, in which order, and where it is written.

After a deliberate change: `UPDATE_GOLDEN=1 pytest tests/report/test_evaluation_tables.py`, then
read the diff.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from capsrepro.records import Record
from capsrepro.report.page import all_tables, readme_blocks, write_tables
from capsrepro.report.rendering import SUFFIXES, Format, Table, render
from capsrepro.schema.params import Params

GOLDEN = Path(__file__).parent / "golden"
ROUTED, LONE = "capsnet-r3-recon", "capsnet-r1-recon"

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
OVERLAP = {"test_error_pct": 5.2, "label_error_pct": 2.7, "both_wrong_pct": 0.2}
DRAWN = {"segmentation_iou": 0.36336, "segmentation_iou_found": 0.44, "absent_energy_pct": 43.3}


def evaluated(run: Record, kind: str, metrics: dict[str, float], **changes: Any) -> Record:
    """The record of one evaluation of a run's weights."""
    fields: dict[str, Any] = {
        "kind": kind,
        "spec": {**run.spec, "evaluation": {"name": kind}},
        "inputs": dict(run.outputs),
        "outputs": {},
        "metrics": metrics,
        "curves": {},
    }
    return run.model_copy(update={**fields, **changes}).sealed()


@pytest.fixture
def records(trained: MakeAll, on_disk: Callable[[Sequence[Record]], list[Record]]) -> list[Record]:
    """Three models: one with two evaluations of three seeds, one with one of one, one with none."""
    routed = trained(ROUTED, [5.2, 5.3, 5.4])
    (lone,) = trained(LONE, [7.5])
    plain = trained("cnn-baseline", [8.1])
    overlap = [
        evaluated(run, "overlap", {**OVERLAP, "label_error_pct": 2.7 + run.seed / 10})
        for run in routed
    ]
    drawn = [evaluated(run, "reconstruct", DRAWN) for run in routed[:2]]
    return on_disk([*routed, lone, *plain, *overlap, *drawn, evaluated(lone, "overlap", OVERLAP)])


def table_of(records: list[Record], params: Params) -> Table:
    (table,) = all_tables(records, [], params)["mnist-evaluations"]
    return table


def metrics_of(table: Table) -> list[Any]:
    return [row[0].value for row in table.rows]


@pytest.mark.parametrize("form", ["md", "csv"])
def test_golden(form: Format, records: list[Record], params: Params) -> None:
    path = GOLDEN / f"mnist-evaluations{SUFFIXES[form]}"
    text = render([table_of(records, params)], form)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text.encode())
    assert text == path.read_bytes().decode()


def test_means_are_over_the_seeds_that_were_evaluated(
    records: list[Record], params: Params
) -> None:
    text = render([table_of(records, params)], "csv")
    found = {row["metric"]: row for row in csv.DictReader(io.StringIO(text))}
    assert float(found["label_error_pct"][f"{ROUTED}.mean"]) == pytest.approx(2.8)
    assert float(found["label_error_pct"][f"{ROUTED}.sd"]) == pytest.approx(0.1)
    assert found["label_error_pct"][f"{ROUTED}.n"] == "3"
    assert found["segmentation_iou"][f"{ROUTED}.n"] == "2"
    assert found["label_error_pct"][f"{LONE}.mean"] == "2.7"
    assert found["segmentation_iou"][f"{LONE}.mean"] == ""  # that model was not evaluated so
    assert not any("cnn-baseline" in key for key in found["label_error_pct"])


def test_counts_curves_and_what_the_test_had_measured_are_left_out(
    params: Params, trained: MakeAll
) -> None:
    (run,) = trained(ROUTED, [5.2], metrics={"parameters": 8.2e6})
    numbers = {
        "test_error_pct": 5.2,
        "parameters": 8.2e6,
        "label_images": 10_000.0,
        "label_errors": 270.0,
        "label_error_pct": 2.7,
        "of_tomorrow": 1.0,
    }
    curves = {"composites": [10.0, 20.0], "error_pct": [3.0, 4.0]}
    records = [run, evaluated(run, "overlap", numbers, curves=curves)]
    table = table_of(records, params)
    assert metrics_of(table) == ["label_error_pct", "of_tomorrow"]
    assert table.rows[1][0].text == "of_tomorrow"
    # Nor does an evaluation make a column of the results, though it counted its images.
    (results,) = all_tables(records, [], params)["mnist"]
    assert [c.key for c in results.columns if c.key.endswith("_pct")] == ["test_error_pct"]


def test_rows_follow_the_list_of_metrics_whichever_model_comes_first(
    params: Params, trained: MakeAll
) -> None:
    """`the same, lowest class` says nothing unless it stands below what it is the same as."""
    best, lowest = "width_r2_best_dimension", "width_r2_best_dimension_lowest"
    (lone,), (routed,) = trained(LONE, [7.5]), trained(ROUTED, [5.2])
    records = [
        evaluated(lone, "reconstruct", {lowest: 0.1}),
        evaluated(routed, "reconstruct", {lowest: 0.2, best: 0.4, "segmentation_iou": 0.3}),
        evaluated(routed, "overlap", {"crowded_length": 0.8, "both_wrong_pct": 1.4}),
    ]
    table = table_of([lone, routed, *records], params)
    expected = ["both_wrong_pct", "crowded_length", "segmentation_iou", best, lowest]
    assert metrics_of(table) == expected
    assert [row[3].text for row in table.rows] == ["overlap"] * 2 + ["reconstruct"] * 3
    assert [row[2].text for row in table.rows] == ["lower", "–", "higher", "higher", "higher"]


def test_two_evaluations_of_one_metric_have_a_row_each(params: Params, trained: MakeAll) -> None:
    (run,) = trained(ROUTED, [5.2])
    twice = [evaluated(run, kind, {"digit_sse": x}) for kind, x in (("overlap", 1), ("reco", 2))]
    table = table_of([run, *twice], params)
    assert [(row[3].text, row[-1].text) for row in table.rows] == [
        ("overlap", "1 ± – (n = 1)"),
        ("reco", "2 ± – (n = 1)"),
    ]


def test_superseded_runs_have_columns_of_their_own(params: Params, trained: MakeAll) -> None:
    (run,) = trained(ROUTED, [5.2])
    before = run.model_copy(
        update={
            "spec": {**run.spec, "full_steps": 1},
            "outputs": {"weights.safetensors": "9" * 64},
        }
    ).sealed()
    records = [run, before, evaluated(run, "overlap", OVERLAP)]
    records.append(evaluated(before, "overlap", {"label_error_pct": 3.0}))
    table = table_of(records, params)
    heads = [(column.key, column.title) for column in table.columns[4:]]
    assert heads == [
        (ROUTED, f"{ROUTED} ± SD"),
        (f"{ROUTED}-2", f"{ROUTED} (superseded) ± SD"),
    ]
    assert [cell.text[:4] for cell in table.rows[0][4:]] == ["2.70", "3.00"]
    assert any("specification in params.yaml has changed" in note for note in table.notes)


def test_versions_have_tables_of_their_own(params: Params, trained: MakeAll) -> None:
    (run,) = trained(ROUTED, [5.2])
    newer = params.protocols["mnist"].model_copy(update={"version": "1.1"})
    later = params.model_copy(update={"protocols": {"mnist": newer}})
    (after,) = trained(ROUTED, [5.1], params=later)
    records = [run, after, evaluated(run, "overlap", OVERLAP), evaluated(after, "overlap", OVERLAP)]
    tables = all_tables(records, [], later)["mnist-evaluations"]
    assert [table.name for table in tables] == ["mnist-1.1-evaluations", "mnist-1.0-evaluations"]


def test_a_small_budget_is_told(params: Params, trained: MakeAll) -> None:
    (run,) = trained(f"mnist-short/{ROUTED}", [5.2])
    records = [run, evaluated(run, "overlap", OVERLAP)]
    (short,) = all_tables(records, [], params)["mnist-short-evaluations"]
    assert any("nothing here is compared" in note for note in short.notes)


def test_no_table_where_nothing_but_curves_and_attacks_was_measured(
    params: Params, trained: MakeAll, attacked: Make
) -> None:
    (run,) = trained(ROUTED, [5.2])
    curves = {"iteration": [1.0, 2.0], "logit_change": [0.1, 0.01]}
    records = [run, attacked(run, {0.1: 50.0}), evaluated(run, "routing", {}, curves=curves)]
    assert "mnist-evaluations" not in all_tables(records, [], params)


def test_files_of_its_own_in_every_format(
    records: list[Record], params: Params, tmp_path: Path
) -> None:
    paths = write_tables(all_tables(records, [], params, ["mnist"]), tmp_path)
    names = [path.name for path in paths if path.stem == "mnist-evaluations"]
    assert names == [f"mnist-evaluations{suffix}" for suffix in SUFFIXES.values()]
    assert all("label" in path.read_text() for path in paths if path.name in names)
    assert "label_error_pct" not in (tmp_path / "tables" / "mnist.csv").read_text()


def test_readme_only_says_where_it_is(records: list[Record], params: Params) -> None:
    tables = all_tables(records, [], params)
    block = readme_blocks(tables, ["mnist", "mnist-short"], {"mnist"})["results"]
    link = "[mnist-evaluations](results/tables/mnist-evaluations.md)"
    assert f"\n\nWhat else was measured: {link}.\n\nAsked for" in block
    assert "mnist-short-evaluations" not in block
    assert "both labels wrong" not in block
    bare = readme_blocks(all_tables([], [], params), ["mnist"], set())["results"]
    assert "What else" not in bare
