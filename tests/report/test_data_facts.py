"""What manifests say of composites, and what is said when they say nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capsrepro.claims import Claim, load_claims
from capsrepro.config import load_params
from capsrepro.errors import CapsreproError
from capsrepro.report.data_facts import composite_facts, data_groups
from capsrepro.report.formatting import explain
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.summaries import Group
from capsrepro.schema.params import Params

ROOT = Path(__file__).parents[2]
PARAMS = load_params(ROOT / "params.yaml")
CLAIMS = [claim for claim in load_claims("sabour2017") if "/generator/" in claim.id]
NAMES = ("multimnist", "multimnist-relative", "multimnist-code")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with our manifests and no run."""
    shutil.copytree(ROOT / "results/datasets", tmp_path / "datasets")
    return tmp_path


def generators(results: Path, params: Params = PARAMS) -> dict[str, Group]:
    return {
        group.protocol: group
        for group in data_groups(params, results)
        if group.judged_as == "multimnist"
    }


def judged(results: Path, claim: Claim, params: Params = PARAMS) -> Judgement:
    return judge([claim], data_groups(params, results), params)[0]


def test_one_group_for_each_data_set_and_not_each_protocol(results: Path) -> None:
    found = generators(results)
    assert tuple(found) == NAMES
    assert {group.stands_for for group in found.values()} == {"generator"}
    assert [group.reading for group in found.values()] == ["text", "text", "code"]


def test_overlap_is_the_mean_over_all_composites() -> None:
    def notes(composites: int, overlap: float) -> dict[str, Any]:
        return {"notes": {"composites": composites, "mean_box_overlap_pct": overlap}}

    assert composite_facts({"train": notes(3000, 70.0), "test": notes(1000, 90.0)}) == {
        "train_size": 3000,
        "test_size": 1000,
        "overlap_pct": 75.0,
    }
    assert composite_facts({"train": {"count": 3000}}) == {}
    assert composite_facts({"train": {"notes": {"other": 1}}}) == {}


def test_images_that_are_no_composites_have_no_generator(results: Path) -> None:
    assert (results / "datasets/mnist.json").is_file()
    assert "mnist" not in {group.judged_as for group in data_groups(PARAMS, results)}


def test_claims_are_judged_without_any_run(results: Path) -> None:
    overlap, train, test = (judged(results, claim) for claim in CLAIMS)
    for judgement in (train, test):
        assert [one.verdict.status for one in judgement.candidates] == ["reproduced"] * 3
    assert overlap.status == "differs (worse)"
    assert [one.group.protocol for one in overlap.candidates] == list(NAMES)


def test_what_was_measured_decides(results: Path) -> None:
    rounded = CLAIMS[0].model_copy(update={"value": 79.0, "verbatim": "79 %"})
    judgement = judged(results, rounded)
    assert {one.group.protocol: one.verdict.status for one in judgement.candidates} == {
        "multimnist": "differs (worse)",
        "multimnist-relative": "reproduced",
        "multimnist-code": "differs (worse)",
    }


def test_not_prepared(results: Path) -> None:
    (results / "datasets/multimnist.json").unlink()
    # Another reading of the data stands trial alone.
    assert [one.group.protocol for one in judged(results, CLAIMS[0]).candidates] == list(NAMES[1:])
    shutil.rmtree(results / "datasets")
    judgement = judged(results, CLAIMS[0])
    assert judgement.verdict is not None
    why = "data set multimnist is not prepared"
    assert (judgement.status, explain(judgement.verdict)) == ("not run", why)


def test_prepared_otherwise(results: Path) -> None:
    parameters = {**PARAMS.datasets, "multimnist": {"shift_px": 5}}
    other = PARAMS.model_copy(update={"datasets": parameters})
    group = generators(results, other)["multimnist"]
    assert (group.measurements, group.seeds) == ((), ())
    assert group.absent == (
        "data set multimnist was prepared otherwise than params.yaml has it now"
    )
    same = {**PARAMS.datasets, "multimnist": {"shift_px": 4}}
    assert generators(results, PARAMS.model_copy(update={"datasets": same})) == generators(results)


def spoil_note(text: str) -> str:
    manifest = json.loads(text)
    manifest["splits"]["train"]["notes"]["mean_box_overlap_pct"] = 80.0
    return json.dumps(manifest)


@pytest.mark.parametrize(
    "spoil", [spoil_note, lambda text: text[:-9], lambda text: "[]", lambda text: "{}"]
)
def test_a_damaged_manifest_is_named(results: Path, spoil: Callable[[str], str]) -> None:
    path = results / "datasets/multimnist.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(CapsreproError) as caught:
        data_groups(PARAMS, results)
    assert str(caught.value) == (
        f"{path} is no manifest of a prepared data set; restore it with `git checkout`."
    )
