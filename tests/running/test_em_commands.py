"""`capsrepro votes` and `capsrepro crops`: what they leave, what they refuse, what follows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from capsrepro.files import sha256_of_file
from capsrepro.records import read_record, write_record

# Whole commands: seconds each, left to `make test`.
pytestmark = pytest.mark.slow

MATRIX, CAPSNET, CNN = (
    f"digits/{model}/seed-0" for model in ("matcaps", "capsnet-r3-recon", "cnn-baseline")
)
SMALL = {
    "conv1_channels": 4,
    "conv1_kernel": 3,
    "conv1_stride": 1,
    "primary_types": 2,
    "conv_types": [2],
    "conv_kernels": [3],
    "conv_strides": [1],
}
MODELS = ["matcaps", "capsnet-r3-recon", "cnn-baseline"]


def ask(document: dict[str, Any]) -> None:
    """Digits cropped to 6×6, a small network of matrix capsules, five steps."""
    models, digits = document["models"], document["protocols"]["digits"]
    models["digits"]["matcaps"] = models["matrix-capsules"]["matcaps-small-em3"] | SMALL
    capsnet = models["digits"]["capsnet-r3-recon"]
    models["digits"]["capsnet-r3-recon"] = capsnet | {"primary_stride": 1}
    digits["full_steps"] = 5
    crop = {"op": "crop", "size_px": 6}
    digits["recipe"] = digits["recipe"] | {"steps": 5, "shift_px": 0, "operations": [crop]}
    digits["run_models"], digits["run_seeds"] = MODELS, [0]
    digits["evaluations"] = {
        "votes": {"models": ["matcaps"], "right": 1, "wrong": 1, "windows": [0.5, 60], "bins": 8},
        "crops": {"models": ["matcaps"], "offsets_px": [1]},
    }


@pytest.fixture(scope="module")
def trained_em(prepared_once, tmp_path_factory):
    workplace = prepared_once.copy(tmp_path_factory.mktemp("em") / "project")
    workplace.edit(ask)
    result = workplace.call("run", MATRIX)
    assert result.code == 0, result
    return workplace


@pytest.fixture
def place(trained_em, tmp_path):
    """One trained run of each network is here or can be made."""
    return trained_em.copy(tmp_path / "project")


@pytest.mark.slow
def test_votes_are_a_record_with_pictures_and_figures(place):
    result = place.call("votes", MATRIX)
    assert (result.code, result.err) == (0, "")
    record, run = read_record(place.record("votes", MATRIX)), read_record(place.record(run=MATRIX))
    for name in ("test_error_pct", "test_errors", "test_images"):
        assert record.metrics[name] == run.metrics[name]
    assert record.curves["iteration"] == [1, 2, 3]
    assert record.curves["assignment_entropy_nat"][0] == pytest.approx(np.log(10))
    path = place.record("votes", MATRIX).with_name("votes.npz")
    assert record.outputs == {"votes.npz": sha256_of_file(path)}
    assert path.stat().st_size < 300_000
    with np.load(path) as arrays:
        kept = len(arrays["labels"])
        assert arrays["images"].shape == (kept, 1, 6, 6)
        assert arrays["histograms"].shape == (kept, 3, 10, 2, 9)
        # 2×2 places of 2 types vote for all ten classes together.
        masses = arrays["histograms"].astype(float).sum((2, 4))
        np.testing.assert_allclose(masses, 8, rtol=5e-3)
        assert arrays["mean_histograms"].shape == (2, 3, 2, 9)
    assert "nothing to do" in place.call("votes", MATRIX).out
    drawn = place.call("figures", "hinton2018-fig2", "hinton2018-figb2", "--run", MATRIX)
    assert (drawn.code, drawn.err) == (0, "")


def test_crops_are_a_record_and_a_row_beside_the_run(place):
    result = place.call("crops", MATRIX)
    assert (result.code, result.err) == (0, "")
    record, run = read_record(place.record("crops", MATRIX)), read_record(place.record(run=MATRIX))
    assert record.spec["evaluation"] == {"name": "crops", "offsets_px": [1]}
    assert record.curves["crops"] == [1, 5]
    one, five = record.curves["test_error_pct"]
    assert one == run.metrics["test_error_pct"]
    assert five == record.metrics["test_error_pct"]
    assert record.metrics["central_errors"] == run.metrics["test_errors"]
    assert record.outputs == {}
    assert "nothing to do" in place.call("crops", MATRIX).out


def test_other_errors_than_the_run_has_are_refused(place):
    run = read_record(place.record(run=MATRIX))
    more = run.metrics | {"test_errors": run.metrics["test_errors"] + 1}
    write_record(place.record(run=MATRIX).parent, run.model_copy(update={"metrics": more}))
    for kind in ("votes", "crops"):
        refused = place.call(kind, MATRIX)
        assert refused.is_refusal(1, "errors here where its record has", "explains 0;")
        assert not place.record(kind, MATRIX).exists()


@pytest.mark.parametrize("run", [CAPSNET, CNN])
def test_votes_need_em_routing(run, place):
    assert place.call("run", run).code == 0
    model = run.split("/")[1]
    assert place.call("votes", run).is_refusal(
        1, f"model {model} has no EM routing, so `votes` has nothing to show"
    )


def test_crops_need_activations_that_are_never_negative(place):
    assert place.call("run", CNN).code == 0
    assert place.call("crops", CNN).is_refusal(1, "model cnn-baseline has no class capsules")
    assert place.call("run", CAPSNET).code == 0
    assert place.call("crops", CAPSNET).code == 0


def test_crops_need_a_crop_with_room_around_it(place):
    def beyond(document: dict[str, Any]) -> None:
        document["protocols"]["digits"]["evaluations"]["crops"]["offsets_px"] = [1, 2]

    place.edit(beyond)
    assert place.call("crops", MATRIX).is_refusal(
        1, "no window of 6 pixels lies", "ask for smaller offsets in the `crops`"
    )
    assert not place.record("crops", MATRIX).exists()


def test_a_protocol_without_a_crop_is_refused(place):
    def whole(document: dict[str, Any]) -> None:
        recipe = document["protocols"]["digits"]["recipe"]
        document["protocols"]["digits"]["recipe"] = recipe | {"operations": []}

    place.edit(whole)
    assert place.call("run", MATRIX).code == 0
    assert place.call("crops", MATRIX).is_refusal(1, "they are not cropped")


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("votes", {"windows": []}, "windows"),
        ("votes", {"windows": [0]}, "windows"),
        ("votes", {"right": 0}, "right"),
        ("votes", {"bins": 0}, "bins"),
        ("crops", {"offsets_px": [0]}, "offsets_px"),
        ("crops", {"offsets_px": []}, "offsets_px"),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, change, told, place):
    def spoil(document: dict[str, Any]) -> None:
        document["protocols"]["digits"]["evaluations"][kind] |= change

    place.edit(spoil)
    assert place.call(kind, MATRIX).is_refusal(2, f"digits.evaluations.{kind}.{told}")


def test_asking_for_evaluations_changes_no_run(place):
    def nothing(document: dict[str, Any]) -> None:
        del document["protocols"]["digits"]["evaluations"]

    before = place.call("pending", "--json").out
    place.edit(nothing)
    assert place.call("pending", "--json").out == before
    assert MATRIX not in [owed["run"] for owed in json.loads(before)]
