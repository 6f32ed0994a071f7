"""Protocols tested by more than the test error, or until an accuracy was reached.

After a deliberate change: `UPDATE_GOLDEN=1 pytest tests/report/test_tables_measured.py`, then read
the diff.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capsrepro.claims import Claim, load_claims
from capsrepro.config import load_params
from capsrepro.records import Record
from capsrepro.report.page import all_tables
from capsrepro.report.rendering import SUFFIXES, Format, render
from capsrepro.report.statistics import summarise
from capsrepro.schema.params import Params

GOLDEN = Path(__file__).parent / "golden"
EXPANDED, AFFNIST = "expanded_mnist_accuracy_pct", "affnist_accuracy_pct"
ROUTED = "capsnet-r3-recon"

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
MakeClaim = Callable[..., Claim]


@pytest.fixture(scope="module")
def affnist() -> Params:
    """The two affNIST protocols, and one that differs in more than its end."""
    real = load_params(Path(__file__).parents[2] / "params.yaml")
    protocols = {
        name: real.protocols[name].model_copy(
            update={"version": "1.0", "run_models": ("cnn-baseline", ROUTED)}
        )
        for name in ("affnist", "affnist-clean")
    }
    clean = protocols["affnist-clean"]
    hasty = clean.recipe.model_copy(update={"learning_rate": 0.01})
    protocols["affnist-hasty"] = clean.model_copy(update={"recipe": hasty})
    return real.model_copy(update={"protocols": protocols})


@pytest.fixture
def stopped(run_record: Make, affnist: Params) -> Callable[..., list[Record]]:
    """Make the records of runs that were tested on shifted digits and on affNIST."""

    def make(model: str, accuracies: list[tuple[float, float]], **changes: Any) -> list[Record]:
        changes = {"params": affnist, **changes}
        return [
            run_record(
                f"{changes.get('protocol', 'affnist')}/{model}/seed-{seed}",
                {
                    EXPANDED: expanded,
                    "expanded_mnist_errors": 100 * (100 - expanded),
                    "expanded_mnist_images": 10_000.0,
                    AFFNIST: moved,
                    "affnist_errors": 3200 * (100 - moved),
                    "affnist_images": 320_000.0,
                    "train_error_pct": 0.9,
                },
                **changes,
            )
            for seed, (expanded, moved) in enumerate(accuracies)
        ]

    return make


@pytest.fixture
def records(stopped: Callable[..., list[Record]]) -> list[Record]:
    routed = stopped(ROUTED, [(99.23, 79.0), (99.25, 79.02), (99.22, 78.97)])
    return [*stopped("cnn-baseline", [(99.22, 66.5)]), *routed]


def rows(records: list[Record], claims: list[Claim], params: Params, name: str) -> dict[str, Any]:
    table, *_ = json.loads(render(all_tables(records, claims, params)[name], "json"))["tables"]
    return {row["model"]["name"]: row for row in table["rows"]}


def notes(params: Params, name: str) -> str:
    table, *_ = all_tables([], [], params)[name]
    return " ".join(table.notes)


@pytest.mark.parametrize("form", ["md", "csv"])
def test_golden(form: Format, records: list[Record], affnist: Params) -> None:
    path = GOLDEN / f"affnist{SUFFIXES[form]}"
    claims = [
        claim.model_copy(update={"test_size": 10_000}) if claim.metric == EXPANDED else claim
        for claim in load_claims("sabour2017")
    ]
    text = render(all_tables(records, claims, affnist)["affnist"], form)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(text.encode())
    assert text == path.read_bytes().decode()


def test_every_metric_has_its_mean_interval_and_resolution(
    records: list[Record], affnist: Params
) -> None:
    routed = rows(records, [], affnist, "affnist")[ROUTED]
    for metric, values, images in (
        (EXPANDED, [99.23, 99.25, 99.22], 10_000),
        (AFFNIST, [79.0, 79.02, 78.97], 320_000),
    ):
        expected = summarise(values, 0.95)
        assert routed[metric] == {"mean": expected.mean, "sd": expected.sd, "n": 3}
        assert tuple(routed[f"{metric}_interval"].values()) == expected.interval
        share = expected.mean / 100
        assert routed[f"{metric}_resolution_pp"] == {
            "se": pytest.approx(100 * (share * (1 - share) / images) ** 0.5),
            "test_images": images,
        }
    assert "test_error_pct" not in routed
    assert not any(key.startswith("train") for key in routed)


def test_each_published_number_stands_with_its_own_metric(
    records: list[Record], affnist: Params
) -> None:
    found = rows(records, load_claims("sabour2017"), affnist, "affnist")
    published = f"{AFFNIST}_published"
    assert found[ROUTED][published]["verbatim"] == "79 % (sabour2017, §5.2, CapsNet)"
    assert found["cnn-baseline"][published]["verbatim"] == "66 % (sabour2017, §5.2, CNN)"
    assert "99.23 %" in found[ROUTED][f"{EXPANDED}_published"]["verbatim"]
    assert found[ROUTED][f"{AFFNIST}_verdict"] == "reproduced"
    assert found["cnn-baseline"][f"{AFFNIST}_verdict"] == "inconclusive"


def test_what_finished_runs_left_unmeasured_is_not_called_unfinished(
    affnist: Params, run_record: Make
) -> None:
    run = run_record(f"affnist/{ROUTED}/seed-0", {AFFNIST: 79.0}, params=affnist)
    text = render(all_tables([run], load_claims("sabour2017"), affnist)["affnist"], "md")
    line = next(line for line in text.splitlines() if ROUTED in line)
    assert "not run: not measured" in line
    assert "no finished run" not in line


def test_only_what_can_be_held_against_these_runs_stands_beside_them(
    params: Params, trained: MakeAll, claim: MakeClaim
) -> None:
    published = [
        claim(id="sabour2017/mnist/one", verbatim="ONE"),
        claim(id="sabour2017/mnist/two", verbatim="TWO", reading="code"),
        claim(id="sabour2017/mnist/three", verbatim="THREE", condition={"epsilon": 0.1}),
        claim(id="sabour2017/mnist/four", verbatim="FOUR", cited_from="Wan et al. 2013"),
        claim(id="sabour2017/mnist/five", verbatim="FIVE", metric="parameters"),
        claim("bound", id="sabour2017/mnist/six", verbatim="SIX"),
        claim(id="sabour2017/mnist/seven", verbatim="99.7", metric="test_accuracy_pct"),
    ]
    row = rows(trained(ROUTED, [0.25]), published, params, "mnist")[ROUTED]
    assert row["published"]["claim"] == "sabour2017/mnist/one; sabour2017/mnist/seven"
    assert "; accuracy 99.7 (" in row["published"]["verbatim"]


def test_no_resolution_where_seeds_were_tested_on_different_numbers(
    params: Params, run_record: Make
) -> None:
    records = [
        run_record(f"mnist/{ROUTED}/seed-{i}", {"test_error_pct": 0.25, "test_images": images})
        for i, images in enumerate((10_000.0, 9_000.0))
    ]
    assert rows(records, [], params, "mnist")[ROUTED]["resolution_pp"] is None


def test_errors_on_two_kinds_of_views(params: Params, run_record: Make, claim: MakeClaim) -> None:
    familiar, novel = "familiar_test_error_pct", "novel_test_error_pct"
    measured = {"familiar": familiar, "test": novel}
    protocol = params.protocols["mnist"].model_copy(update={"measured": measured})
    views = params.model_copy(update={"protocols": {"mnist": protocol}})
    numbers = {novel: 20.0, "novel_test_images": 16_200.0, familiar: 3.7}
    run = run_record(f"mnist/{ROUTED}/seed-0", numbers, params=views)
    about = claim(metric=novel, value=13.5, verbatim="13.5 %", test_size=16_200)
    row = rows([run], [about], views, "mnist")[ROUTED]
    (table,) = all_tables([run], [about], views)["mnist"]
    keys = [column.key for column in table.columns if column.key.endswith("_error_pct")]
    assert keys == [familiar, novel]  # as params.yaml has them, not as the record has them
    assert row[f"{novel}_resolution_pp"]["test_images"] == 16_200
    assert row[f"{familiar}_resolution_pp"] is None  # the record does not say on how many
    assert row[f"{novel}_published"]["verbatim"].startswith("13.5 %")
    assert row[f"{familiar}_published"] is None


def test_a_validating_run_shows_the_error_it_has(params: Params, run_record: Make) -> None:
    numbers = {"validation_error_pct": 0.42, "validation_images": 10_000.0}
    run = run_record(f"mnist-validate/{ROUTED}/seed-0", numbers)
    row = rows([run], [], params, "mnist-validate")[ROUTED]
    assert row["validation_error_pct"]["mean"] == 0.42
    assert row["resolution_pp"]["test_images"] == 10_000
    assert "test_error_pct" not in row


def test_an_earlier_version_keeps_the_metrics_it_had(
    records: list[Record], affnist: Params
) -> None:
    now = affnist.protocols["affnist"].model_copy(update={"version": "1.1", "measured": {}})
    later = affnist.model_copy(update={"protocols": {"affnist": now}})
    present, earlier = all_tables(records, [], later)["affnist"]
    assert [c.key for c in present.columns if c.key.endswith("_pct")] == ["test_error_pct"]
    assert [c.key for c in earlier.columns if c.key.endswith("_pct")] == [EXPANDED, AFFNIST]
    assert "Training ended" not in " ".join(earlier.notes)  # nobody knows any more


def test_selection_on_test_images_is_told(affnist: Params) -> None:
    text = notes(affnist, "affnist")
    assert "accuracy of 99.22 % or more on the split expanded" in text
    assert "selection on test images. The same without it: affnist-clean." in text
    assert "“accuracy, expanded MNIST” was selected" in text


def test_the_clean_protocol_names_the_other(affnist: Params) -> None:
    text = notes(affnist, "affnist-clean")
    assert "10,000 training images that were held out" in text
    assert "selection on test images: affnist." in text
    assert "was selected" not in text


def test_only_a_protocol_that_differs_in_its_end_alone_is_the_other(affnist: Params) -> None:
    assert "selection on test images: none." in notes(affnist, "affnist-hasty")
    lone = {"affnist": affnist.protocols["affnist"]}
    text = notes(affnist.model_copy(update={"protocols": lone}), "affnist")
    assert "The same without it: none." in text
    # Other images are another protocol, however alike the recipe.
    clean = affnist.protocols["affnist-clean"].model_copy(update={"dataset": "affmnist-generated"})
    others = {**lone, "affnist-clean": clean}
    assert "without it: none." in notes(affnist.model_copy(update={"protocols": others}), "affnist")


def test_a_fixed_number_of_steps_needs_no_such_note(params: Params) -> None:
    assert "Training ended" not in notes(params, "mnist")
