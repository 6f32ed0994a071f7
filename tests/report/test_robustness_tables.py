"""Attacks and distortions in tables: which rows, which columns, what stands below.

After a deliberate change: `UPDATE_GOLDEN=1 pytest tests/report/test_robustness_tables.py`, then
read the diff.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from capsrepro.records import Record
from capsrepro.report.attack_results import attack_results
from capsrepro.report.page import all_tables, readme_blocks, write_tables
from capsrepro.report.rendering import SUFFIXES, Format, Table, render
from capsrepro.report.summaries import group_records
from capsrepro.schema.params import Params

GOLDEN = Path(__file__).parent / "golden"
CNN, LONE, ROUTED = "cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon"
SIZES = [0.0, 8 / 255, 0.3]
NUMBERS = {"test_images": 10_000.0, "classes": 10.0}
BIM = {"name": "bim", "method": "bim", "steps": 10, "step_share": "1/10"}
PGD = {"name": "pgd", "method": "pgd", "steps": 20, "step_share": "1/8", "restarts": 3}
TARGETED = {"name": "fgsm-targeted", "goal": "targeted"}
STANDARDISED = {"name": "fgsm-standardised", "epsilon_unit": "standardised-pixels"}
BEFORE_CURVES = 6
"""Columns that say which attack, on which model, what and on what."""

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]


@pytest.fixture
def attack(attacked: Make) -> Make:
    """Make the record of one attack of curves, each a list of one value per ε."""

    def make(
        run: Record,
        told: dict[str, Any],
        curves: dict[str, list[float]],
        numbers: dict[str, float] | None = None,
        **changes: Any,
    ) -> Record:
        sizes = changes.pop("sizes", SIZES)
        return attacked(
            run,
            dict.fromkeys(sizes, 0.0),
            attack=told,
            curves={"epsilon": sizes, **curves},
            metrics={**NUMBERS, **(numbers or {})},
            **changes,
        )

    return make


@pytest.fixture
def records(
    trained: MakeAll, attack: Make, on_disk: Callable[[Sequence[Record]], list[Record]]
) -> list[Record]:
    """A CNN and a capsule network under four attacks and distorted, and a model left alone."""
    cnns, routed = trained(CNN, [0.39, 0.41, 0.40]), trained(ROUTED, [0.25, 0.26, 0.25])
    made = [one for run in (*cnns, *routed) for one in (*attacks_on(run, attack), distorted(run))]
    return on_disk([*cnns, *routed, *trained(LONE, [0.3]), *made])


def attacks_on(run: Record, attack: Make) -> list[Record]:
    """FGSM, BIM, targeted FGSM, and BIM made on the CNN of the next seed."""
    caps, seed = run.model == ROUTED, float(run.seed)
    loss = {"loss": "margin" if caps else "cross-entropy"}
    stepped = [99.5, 90.0 - seed, 12.0 + seed + 20 * caps]
    noise = {"noise_accuracy_pct": [99.5, 99.0, 80.0 + seed]}
    norm = {"gradient_l2_mean": (0.02 if caps else 1.0) + seed / 100}
    zeros = {"zero_gradient_pct": 12.0 + seed if caps else 0.0}
    anything = {"full_range_accuracy_pct": 2.0}
    several = {"accuracy_pct": [99.5, 70.0, 3.0], "fgsm_accuracy_pct": stepped}
    source = {"source": f"mnist/{CNN}/seed-{(run.seed + 1) % 3}", "source_model": CNN}
    transferred = {
        "transfer_accuracy_pct": [99.0, 85.0, 50.0 + seed],
        "white_box_accuracy_pct": [99.0, 70.0, 3.0],
    }
    success = {
        "targeted_success_pct": [10.0, 30.0, 60.0 + seed],
        "wrong_target_success_pct": [0.1, 22.0, 56.0 + seed],
    }
    some = {"test_images": 1000.0}
    return [
        attack(run, {}, {"accuracy_pct": stepped, **noise}, norm | zeros | anything, **loss),
        attack(run, BIM, {**several, **noise}, norm | anything, **loss),
        attack(run, TARGETED, success, norm | {"zero_gradient_pct": 0.0}, **loss),
        attack(
            run, {**BIM, "name": "transfer-cnn", **source}, {**transferred, **noise}, some, **loss
        ),
    ]


def distorted(run: Record) -> Record:
    """The record of distortions of a run."""
    points = [(0, 0, 1, 0, 0), (20, 0, 1, 0, 0), (-20, 0, 1, 0, 0), (0, 6, 1, 0, 0)]
    points += [(0, 0, 0.5, 0, 0), (0, 0, 1, 1.5, 0), (0, 0, 1, 0, 0.1)]
    names = ("rotation_deg", "translation_px", "scale", "affine_share", "noise_sd")
    curves = {name: [float(point[i]) for point in points] for i, name in enumerate(names)}
    highest = 70.0 + run.seed + 9 * (run.model == ROUTED)
    curves["distorted_accuracy_pct"] = [99.0, *(highest - i for i in range(1, len(points)))]
    fields: dict[str, Any] = {
        "kind": "distortions",
        "spec": {**run.spec, "evaluation": {"name": "distortions"}},
        "inputs": dict(run.outputs),
        "outputs": {},
        "metrics": {"test_images": 2000.0},
        "curves": curves,
    }
    return run.model_copy(update=fields).sealed()


def rows_of(tables: Sequence[Table]) -> list[list[dict[str, Any]]]:
    """By table, its rows as programs read them."""
    return [table["rows"] for table in json.loads(render(tables, "json"))["tables"]]


@pytest.mark.parametrize("name", ["mnist-robustness"])
@pytest.mark.parametrize("form", ["md", "csv"])
def test_golden(name: str, form: Format, records: list[Record], params: Params) -> None:
    path = GOLDEN / f"{name}{SUFFIXES[form]}"
    text = render(all_tables(records, [], params)[name], form)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text.encode())
    assert text == path.read_bytes().decode()


def test_a_row_for_each_attack_and_model_and_curve(records: list[Record], params: Params) -> None:
    accuracy, success, _ = rows_of(all_tables(records, [], params)["mnist-robustness"])
    # As params.yaml lists the attacks, and in each of them the models.
    assert [(row["attack"]["name"], row["model"], row["measured"]) for row in accuracy] == [
        ("fgsm", CNN, "accuracy_pct"),
        ("fgsm", ROUTED, "accuracy_pct"),
        ("bim", CNN, "accuracy_pct"),
        ("bim", ROUTED, "accuracy_pct"),
        ("transfer-cnn", CNN, "transfer_accuracy_pct"),
        ("transfer-cnn", ROUTED, "transfer_accuracy_pct"),
    ]
    assert [(row["model"], row["measured"]) for row in success] == [
        (CNN, "targeted_success_pct"),
        (CNN, "wrong_target_success_pct"),
        (ROUTED, "targeted_success_pct"),
        (ROUTED, "wrong_target_success_pct"),
    ]


def test_means_over_seeds_at_every_epsilon(records: list[Record], params: Params) -> None:
    accuracy, success, _ = rows_of(all_tables(records, [], params)["mnist-robustness"])
    fgsm = accuracy[1]
    assert fgsm["epsilon_8/255"]["mean"] == 89.0
    assert (fgsm["epsilon_0.3"]["mean"], fgsm["epsilon_0.3"]["sd"]) == (33.0, 1.0)
    assert fgsm["noise_accuracy_pct"]["mean"] == 81.0, "at the largest ε"
    assert fgsm["zero_gradient_pct"]["mean"] == 13.0
    assert fgsm["full_range_accuracy_pct"]["mean"] == 2.0
    assert (fgsm["test_images"], fgsm["seeds"]) == (10_000, 3)
    assert success[3]["epsilon_0.3"]["mean"] == 57.0
    assert "noise_accuracy_pct" not in success[0], "nobody measured it there"
    assert success[0]["zero_gradient_pct"]["mean"] == 0.0


def test_transferred_images_come_from_another_run_for_each_seed(
    records: list[Record], params: Params
) -> None:
    accuracy, *_ = rows_of(all_tables(records, [], params)["mnist-robustness"])
    row = accuracy[-1]
    assert (row["seeds"], row["test_images"], row["epsilon_0.3"]["mean"]) == (3, 1000, 51.0)
    assert row["attack"]["source_model"] == CNN
    assert "source" not in row["attack"]
    assert row["full_range_accuracy_pct"] is None


def test_gradients_are_compared_with_the_cnn(records: list[Record], params: Params) -> None:
    accuracy, success, _ = rows_of(all_tables(records, [], params)["mnist-robustness"])
    # The CNN's are 1, 1.01 and 1.02, of which 1.01 is the median.
    for row in (accuracy[1], success[2]):
        assert row["gradient_l2_ratio"]["mean"] == pytest.approx(0.03 / 1.01)
    assert accuracy[0]["gradient_l2_ratio"]["mean"] == pytest.approx(1)
    assert accuracy[4]["gradient_l2_ratio"] is accuracy[4]["zero_gradient_pct"] is None


def test_of_two_cnns_the_one_that_went_through_more_is_compared_with(
    params: Params, trained: MakeAll, attack: Make
) -> None:
    once, often, routed = (trained(name, [0.4])[0] for name in (CNN, "cnn-pooled", ROUTED))
    records = [once, often, routed]
    for run, norm in ((once, 1.0), (often, 2.0), (routed, 4.0)):
        curves = {"accuracy_pct": [99.0, 60.0, 30.0]}
        records.append(attack(run, {}, curves, {"gradient_l2_mean": norm}))
        if run is not once:
            records.append(attack(run, BIM, curves, {"gradient_l2_mean": 3 * norm}))
    results = attack_results(group_records(records, params), ["bim", "fgsm"])
    found = {(one.name, one.group.model): one.number("gradient_l2_ratio") for one in results}
    assert found == {
        ("bim", "cnn-pooled"): 1.0,
        ("bim", ROUTED): 2.0,
        ("fgsm", CNN): 0.5,
        ("fgsm", "cnn-pooled"): 1.0,
        ("fgsm", ROUTED): 2.0,
    }
    assert [one.name for one in results] == ["bim"] * 2 + ["fgsm"] * 3
    assert {one.cnn for one in results} == {"cnn-pooled"}


def test_no_comparison_without_a_cnn(params: Params, trained: MakeAll, attack: Make) -> None:
    (run,) = trained(ROUTED, [0.25])
    norm = {"gradient_l2_mean": 0.01}
    records = [run, attack(run, {}, {"accuracy_pct": [99.0, 60.0, 30.0]}, norm)]
    (table,) = all_tables(records, [], params)["mnist-robustness"]
    assert "gradient_l2_ratio" not in [column.key for column in table.columns]
    assert "CNN" not in " ".join(table.notes)


def test_units_have_tables_of_their_own(params: Params, trained: MakeAll, attack: Make) -> None:
    (run,) = trained(ROUTED, [0.25])
    curves = {"accuracy_pct": [99.0, 60.0]}
    records = [
        run,
        attack(run, STANDARDISED, curves, sizes=[0.0, 0.05]),
        attack(run, {}, curves, sizes=[0.0, 16 / 255]),
        attack(run, PGD, curves, sizes=[0.0, 8 / 255]),
    ]
    raw, standardised = all_tables(records, [], params)["mnist-robustness"]
    names = ["mnist-1.0-robustness", "mnist-1.0-robustness-standardised"]
    assert [raw.name, standardised.name] == names
    sizes = [column.title for column in raw.columns if column.key.startswith("epsilon")]
    assert sizes == ["ε 0", "ε 8/255", "ε 16/255"]
    values = [cell.text for cell in raw.rows[0][BEFORE_CURVES : BEFORE_CURVES + 3]]
    assert values == ["99.0 ± –", "–", "60.0 ± –"]
    assert [column.title for column in standardised.columns[6:8]] == ["ε 0", "ε 0.05"]
    assert "standard deviations of its image" in standardised.notes[0]
    assert "black is 0" in raw.notes[0]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({}, "fgsm"),
        (PGD, "pgd (20 steps of 1/8 ε, 3 starts)"),
        (
            {**BIM, "name": "transfer-cnn", "source": "mnist/a/seed-1", "source_model": "a"},
            "transfer-cnn (bim, 10 steps of 1/10 ε, made on a)",
        ),
        ({"clip": "none", "split": "familiar"}, "fgsm (not clipped, familiar images)"),
    ],
)
def test_an_attack_is_described(
    told: dict[str, Any], text: str, params: Params, trained: MakeAll, attack: Make
) -> None:
    (run,) = trained(ROUTED, [0.25])
    records = [run, attack(run, told, {"accuracy_pct": [99.0, 60.0, 30.0]})]
    (table,) = all_tables(records, [], params)["mnist-robustness"]
    assert table.rows[0][0].text == text


def test_what_some_seeds_still_have_from_before_has_a_row_of_its_own(
    params: Params, trained: MakeAll, attacked: Make
) -> None:
    one, *two = trained(ROUTED, [0.25, 0.26, 0.25])
    before = attacked(one, {0.1: 90.0}, loss="cross-entropy")
    after = [attacked(run, {0.1: 60.0}) for run in two]
    (table,) = all_tables([one, *two, before, *after], [], params)["mnist-robustness"]
    assert [(row[3].text, row[5].text, row[6].text) for row in table.rows] == [
        ("cross-entropy", "1", "90.0 ± –"),
        ("margin", "2", "60.0 ± 0.0"),
    ]


def test_failed_checks_stand_below_the_table(records: list[Record], params: Params) -> None:
    accuracy, success, _ = all_tables(records, [], params)["mnist-robustness"]
    warnings = [note for note in accuracy.notes if note.startswith("Gradients look masked")]
    assert warnings == [
        f"Gradients look masked: {ROUTED}, fgsm (margin loss): up to 14.0 % of images have no "
        "gradient at all."
    ]
    assert sum(note.startswith("Small gradients") for note in accuracy.notes) == 2
    assert any(note.startswith("Checked without such a finding") for note in accuracy.notes)
    assert not any("masked" in note for note in success.notes)


def test_short_budgets_superseded_runs_and_versions(
    params: Params, trained: MakeAll, attacked: Make
) -> None:
    (run,) = trained(f"mnist-short/{ROUTED}", [2.0])
    newer = params.protocols["mnist-short"].model_copy(update={"version": "1.1"})
    later = params.model_copy(update={"protocols": {"mnist-short": newer}})
    (after,) = trained(f"mnist-short/{ROUTED}", [2.0], params=later)
    records = [run, after, attacked(run, {0.1: 50.0}), attacked(after, {0.1: 60.0})]
    records += [distorted(run), distorted(after)]
    tables = all_tables(records, [], later)
    for end in ("robustness", "distortions"):
        now, old = (t for t in tables["mnist-short-robustness"] if t.name.endswith(end))
        assert (now.name, old.name) == (f"mnist-short-1.1-{end}", f"mnist-short-1.0-{end}")
        assert any("nothing here is compared" in note for note in now.notes)
        assert not any("superseded" in note for note in now.notes)
        assert any("is superseded: protocol version 1.0" in note for note in old.notes)


def test_distortions_side_by_side(records: list[Record], params: Params) -> None:
    *_, table = all_tables(records, [], params)["mnist-robustness"]
    assert [(row[0].value, row[1].text) for row in table.rows] == [
        ("none", "–"),
        ("rotation_deg", "-20"),
        ("rotation_deg", "20"),
        ("translation_px", "6"),
        ("scale", "0.5"),
        ("affine_share", "1.5"),
        ("noise_sd", "0.1"),
    ]
    found = list(csv.DictReader(io.StringIO(render([table], "csv"))))
    assert (found[0][f"{CNN}.mean"], found[0][f"{CNN}.n"]) == ("99.0", "3")
    assert float(found[1][f"{ROUTED}.mean"]) == 78.0
    assert float(found[6][f"{CNN}.mean"]) == 65.0
    assert not any(LONE in key for key in found[0])
    assert table.notes[1].startswith("On 2,000 images. Each row")


def test_distorted_test_sets_stand_below(records: list[Record], params: Params) -> None:
    def tested(record: Record) -> Record:
        metrics = {**record.metrics, "affnist_accuracy_pct": 79.0 + record.seed}
        return record.model_copy(update={"metrics": metrics}).sealed()

    told = [tested(one) if (one.kind, one.model) == ("train", ROUTED) else one for one in records]
    *_, table = all_tables(told, [], params)["mnist-robustness"]
    name, value, *accuracies = table.rows[-1]
    assert (name.text, value.text) == ("affNIST's test set", "–")
    assert [cell.text for cell in accuracies] == ["–", "80.0 ± 1.0 (n = 3)"]


def test_nothing_of_both_is_an_evaluation_and_none_of_it_where_nothing_was_done(
    records: list[Record], params: Params, trained: MakeAll
) -> None:
    names = set(all_tables(records, [], params))
    assert "mnist-evaluations" not in names
    assert not {name for name in names if name.startswith("mnist-short-")}
    bare = all_tables(trained(ROUTED, [0.25]), [], params)
    assert "mnist-robustness" not in bare


def test_files_in_every_format_and_links_in_the_readme(
    records: list[Record], params: Params, tmp_path: Path
) -> None:
    paths = write_tables(all_tables(records, [], params, ["mnist"]), tmp_path)
    name = "mnist-robustness"
    written = [path.name for path in paths if path.stem == name]
    assert written == [f"{name}{suffix}" for suffix in SUFFIXES.values()]
    block = readme_blocks(all_tables(records, [], params), ["mnist"], {"mnist"})["results"]
    link = "[mnist-robustness](results/tables/mnist-robustness.md)"
    assert f"\n\nUnder attack and on distorted images: {link}." in block
    assert "What else" not in block
    assert f"than they seem there: {ROUTED} (fgsm)." in block
