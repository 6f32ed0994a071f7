"""Which run a figure shows, what it says when there is none, and pictures that are not whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from figure_files import ROOT, Shelf, examples, figure_params, one_digit, two_digits

from capsrepro.config import load_params
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.records import Record
from capsrepro.report.figures.archive import (
    NothingToDrawError,
    budget,
    find_sources,
    find_trained,
    read_pictures,
)
from capsrepro.report.figures.composites import TWO_DIGITS
from capsrepro.report.figures.entropy import TRAINED
from capsrepro.report.figures.reconstructions import ONE_DIGIT
from capsrepro.report.figures.routing import ROUTED
from capsrepro.schema.evaluations import Evaluations

SHORT = "mnist-short/capsnet-r3-recon/seed-0"


@pytest.fixture
def shelf(tmp_path: Path, run_record: Callable[..., Record]) -> Shelf:
    return Shelf(tmp_path / "results", figure_params(), run_record)


def reconstructed(shelf: Shelf, *runs: str, **changes: object) -> list[Record]:
    return [shelf.evaluate(shelf.train(run), "reconstruct", arrays={}, **changes) for run in runs]


def order(shelf: Shelf, wish=ONE_DIGIT) -> list[str]:
    return [source.record.run for source in find_sources(shelf.open(), wish)]


def test_full_budget_then_three_iterations_then_lowest_seed(shelf: Shelf) -> None:
    runs = [
        f"{protocol}/{model}/seed-{seed}"
        for protocol in ("mnist", "mnist-short")
        for model in ("capsnet-r3-recon", "capsnet-r1-recon")
        for seed in (0, 2, 10)
    ]
    reconstructed(shelf, *reversed(runs))
    assert order(shelf) == runs


def test_the_paper_s_own_data_come_before_a_fuller_budget(shelf: Shelf) -> None:
    reconstructed(shelf, "digits/capsnet-r3-recon/seed-0", SHORT)
    assert order(shelf) == [SHORT, "digits/capsnet-r3-recon/seed-0"]


def test_one_and_two_digits_are_not_confused(shelf: Shelf) -> None:
    composites = "multimnist-short/capsnet-r3-recon/seed-0"
    reconstructed(shelf, SHORT, composites)
    assert order(shelf) == [SHORT]
    assert order(shelf, TWO_DIGITS) == [composites]


def test_a_failed_run_is_not_shown(shelf: Shelf) -> None:
    reconstructed(shelf, SHORT, status="failed")
    with pytest.raises(NothingToDrawError):
        find_sources(shelf.open(), ONE_DIGIT)


def test_an_evaluation_of_other_weights_is_not_shown(shelf: Shelf) -> None:
    reconstructed(shelf, SHORT, inputs={"weights.safetensors": "b" * 64})
    with pytest.raises(NothingToDrawError, match=f"run `capsrepro reconstruct {SHORT}`"):
        find_sources(shelf.open(), ONE_DIGIT)


def test_what_params_no_longer_asks_for_is_shown_only_by_name(shelf: Shelf) -> None:
    reconstructed(shelf, SHORT)
    short = shelf.params.protocols["mnist-short"]
    recipe = short.recipe.model_copy(update={"steps": 4000})
    changed = short.model_copy(update={"recipe": recipe})
    shelf.params = shelf.params.model_copy(
        update={"protocols": {**shelf.params.protocols, "mnist-short": changed}}
    )
    with pytest.raises(NothingToDrawError, match=f"`capsrepro run {SHORT}` and `capsrepro reco"):
        find_sources(shelf.open(), ONE_DIGIT)
    assert find_sources(shelf.open(SHORT), ONE_DIGIT)[0].record.run == SHORT


def test_another_version_is_not_shown(shelf: Shelf) -> None:
    trained = shelf.train(SHORT, protocol_version="0.9")
    shelf.evaluate(trained, "reconstruct", arrays={})
    with pytest.raises(NothingToDrawError):
        find_sources(shelf.open(), ONE_DIGIT)


def test_run_overrides_the_choice(shelf: Shelf) -> None:
    third = "mnist-short/capsnet-r1-recon/seed-2"
    reconstructed(shelf, SHORT, third)
    assert [s.record.run for s in find_sources(shelf.open(third), ONE_DIGIT)] == [third]


def test_a_run_without_the_record_is_said_with_its_command(shelf: Shelf) -> None:
    reconstructed(shelf, SHORT)
    other = "mnist-short/capsnet-r1-recon/seed-2"
    with pytest.raises(NothingToDrawError) as caught:
        find_sources(shelf.open(other), ONE_DIGIT)
    assert str(caught.value) == (
        f"{other} has no current `reconstruct` record; run `capsrepro run {other}` "
        f"and `capsrepro reconstruct {other}`."
    )
    shelf.train(other)
    with pytest.raises(NothingToDrawError, match=f"record; run `capsrepro reconstruct {other}`"):
        find_sources(shelf.open(other), ONE_DIGIT)


def test_a_run_that_can_never_show_it_is_said(shelf: Shelf) -> None:
    reconstructed(shelf, SHORT)
    with pytest.raises(NothingToDrawError) as caught:
        find_sources(shelf.open(SHORT), TWO_DIGITS)
    assert str(caught.value) == (
        f"the protocol of {SHORT} has no `reconstruct` that shows this; name another."
    )


@pytest.mark.parametrize("run", ["nope", "mnist/nope/seed-0", "nope/capsnet-r3/seed-0"])
def test_a_run_that_cannot_be_is_wrong_usage(shelf: Shelf, run: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(run))):
        shelf.open(run)


def test_the_cheapest_command_is_proposed(shelf: Shelf) -> None:
    with pytest.raises(NothingToDrawError) as caught:
        find_sources(shelf.open(), ONE_DIGIT)
    assert str(caught.value) == (
        "no finished run has the `reconstruct` record that this is drawn from; "
        f"run `capsrepro run {SHORT}` and `capsrepro reconstruct {SHORT}`."
    )
    # What is trained already costs least, whatever its budget.
    full = "mnist/capsnet-r1-recon/seed-1"
    shelf.train(full)
    with pytest.raises(NothingToDrawError, match=f"from; run `capsrepro reconstruct {full}`"):
        find_sources(shelf.open(), ONE_DIGIT)


def test_only_protocols_that_ask_for_it_are_proposed(shelf: Shelf) -> None:
    nothing = {
        name: protocol.model_copy(update={"evaluations": Evaluations()})
        for name, protocol in shelf.params.protocols.items()
    }
    shelf.params = shelf.params.model_copy(update={"protocols": nothing})
    with pytest.raises(NothingToDrawError, match=r"no protocol of params\.yaml asks .* `routing`"):
        find_sources(shelf.open(), ROUTED)


def test_what_a_title_says_of_a_run(shelf: Shelf) -> None:
    reconstructed(shelf, SHORT, "mnist/capsnet-r3-recon/seed-0")
    full, short = find_sources(shelf.open(), ONE_DIGIT)
    assert short.told() == f"{SHORT}: test error 0.79 %, trained for 1 % of the full budget"
    assert full.told().endswith("trained for 100 % of the full budget")
    assert budget(shelf.train("multimnist-short/cnn-baseline/seed-0")) == (
        "trained for 0.333 % of the full budget"
    )


def test_what_it_says_of_a_run_that_was_tested_on_two_splits(shelf: Shelf) -> None:
    shelf.params = load_params(ROOT / "params.yaml")
    run = "solids-azimuth/cnn-baseline/seed-0"
    shelf.train(run)
    (source,) = find_trained(shelf.open(), ONE_DIGIT)
    assert source.told() == (
        f"{run}: error, familiar views 0.79 %, error, novel views 0.79 %, "
        "trained for 100 % of the full budget"
    )


def test_data_of_no_paper_come_last_whatever_the_budget(shelf: Shelf) -> None:
    shelf.params = load_params(ROOT / "params.yaml")
    digits = "matcaps-mnist-short/matcaps-small-em2-short/seed-0"
    for run in (digits.replace("matcaps-mnist-short", "solids-azimuth"), digits):
        shelf.train(run)
    first, last = find_trained(shelf.open(), TRAINED)
    assert (first.record.run, last.record.budget.fraction) == (digits, 1)


def test_pictures_come_back_as_they_were_written(shelf: Shelf) -> None:
    shelf.evaluate(shelf.train(SHORT), "reconstruct", arrays=one_digit())
    arrays = read_pictures(find_sources(shelf.open(), ONE_DIGIT)[0])
    assert arrays.keys() == one_digit().keys()
    for name, expected in one_digit().items():
        np.testing.assert_array_equal(arrays[name], expected)


@pytest.mark.fault
def test_missing_pictures_are_one_sentence(shelf: Shelf) -> None:
    shelf.evaluate(shelf.train(SHORT), "reconstruct", arrays=one_digit())
    path = shelf.results / "runs" / SHORT / "reconstruct.npz"
    path.unlink()
    with pytest.raises(CapsreproError) as caught:
        read_pictures(find_sources(shelf.open(), ONE_DIGIT)[0])
    assert str(caught.value) == (
        f"the pictures {path} are missing; run `capsrepro reconstruct {SHORT}`."
    )


@pytest.mark.fault
@pytest.mark.parametrize("damage", ["cut", "flipped", "another", "empty"])
def test_damaged_pictures_are_refused(shelf: Shelf, damage: str) -> None:
    shelf.evaluate(shelf.train(SHORT), "reconstruct", arrays=one_digit())
    path = shelf.results / "runs" / SHORT / "reconstruct.npz"
    content = bytearray(path.read_bytes())
    if damage == "another":
        np.savez_compressed(path, **(two_digits() | examples([[1]], [[1]])))
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"cut": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.raises(CapsreproError) as caught:
        read_pictures(find_sources(shelf.open(), ONE_DIGIT)[0])
    assert str(caught.value) == (
        f"{path} does not hold the pictures that its record speaks of; delete it and "
        f"run `capsrepro reconstruct {SHORT}`."
    )
