"""Stop rules as params.yaml has them: what may stand there, and what runs and stages follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from capsrepro.config import load_params, requested_runs, resolve_run
from capsrepro.errors import UsageError

ROOT = Path(__file__).parents[1]
SHIPPED = (ROOT / "params.yaml").read_text()
PARAMS = load_params(ROOT / "params.yaml")
MATCHED = [spec for spec in requested_runs(PARAMS) if spec.reference is not None]


def refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """What is said of the file with another block for matcaps-azimuth, behind the line."""
    document = yaml.safe_load(SHIPPED)
    protocol = document["protocols"]["matcaps-azimuth"]
    protocol["recipe"] = dict(protocol["recipe"])  # that of another protocol too
    change(protocol)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    with pytest.raises(UsageError) as caught:
        load_params(path)
    line, _, said = str(caught.value).removeprefix(f"{path}, line ").partition(": ")
    key = said.split(" ")[0].split(".")[-1]
    assert path.read_text().splitlines()[int(line) - 1].strip().startswith(f"{key}:")
    return said


def stop(**rule: Any) -> Callable[[dict[str, Any]], object]:
    return lambda protocol: protocol["recipe"].update(stop={"split": "familiar", **rule})


@pytest.mark.parametrize("rule", [{}, {"accuracy_of": "cnn-baseline", "accuracy_pct": 99.0}])
def test_a_rule_waits_for_one_accuracy(tmp_path: Path, rule: dict[str, Any]) -> None:
    said = refused(tmp_path, stop(**rule))
    assert said.startswith(
        "protocols.matcaps-azimuth.recipe.stop is wrong "
        "(exactly one of accuracy_pct and accuracy_of must be set)"
    )


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ({"accuracy_pct": 0}, "accuracy_pct"),
        ({"accuracy_of": "cnn-baseline", "every_epochs": 0}, "every_epochs"),
        ({"accuracy_of": "cnn-baseline", "split": "novel"}, "split"),
    ],
)
def test_a_wrong_value(tmp_path: Path, rule: dict[str, Any], key: str) -> None:
    said = refused(tmp_path, stop(**rule))
    assert said.startswith(f"protocols.matcaps-azimuth.recipe.stop.{key} is wrong (")


def test_the_other_model_must_be_one_of_the_protocol_s(tmp_path: Path) -> None:
    said = refused(tmp_path, stop(accuracy_of="capsnet-r3"))
    known = ", ".join(PARAMS.models["matrix-capsules"])
    assert said == (
        "protocols.matcaps-azimuth.recipe.stop.accuracy_of names capsnet-r3, "
        f"which is not defined; known: {known}."
    )


@pytest.mark.parametrize("measured", [{"novel": "novel_test_error_pct"}, {}])
def test_what_is_compared_must_be_measured(tmp_path: Path, measured: dict[str, str]) -> None:
    said = refused(tmp_path, lambda protocol: protocol.update(measured=measured))
    assert said == (
        "protocols.matcaps-azimuth.recipe.stop.split names familiar, "
        f"which is not defined; known: {next(iter(measured), 'test')}."
    )


def test_a_run_is_matched_to_the_one_with_its_seed() -> None:
    run = resolve_run(PARAMS, "matcaps-azimuth/matcaps-em1/seed-7")
    assert run.reference == resolve_run(PARAMS, "matcaps-azimuth/cnn-baseline/seed-7")
    assert run.reference.reference is None
    assert run.reference.protocol.recipe.stop is None
    assert run.document()["recipe"]["stop"] == {
        "split": "familiar",
        "accuracy_of": "cnn-baseline",
        "every_epochs": 10,
    }
    assert "stop" not in run.reference.document()["recipe"]
    # A rule with a number waits for nobody.
    assert resolve_run(PARAMS, "affnist/cnn-baseline/seed-0").reference is None


def test_the_twin_with_held_out_images_is_matched_within_itself() -> None:
    run = resolve_run(PARAMS, "matcaps-azimuth-validate/matcaps-em3/seed-0")
    assert run.reference is not None
    assert run.reference.name == "matcaps-azimuth-validate/cnn-baseline/seed-0"
    assert run.protocol.recipe.stop is not None
    assert run.protocol.recipe.stop.split in run.protocol.measured


@pytest.mark.parametrize(
    ("run", "digest"),
    [
        (
            "affnist/cnn-baseline/seed-0",
            "815dc9ecea6fe1ee98d3d3dec0ef6df3b038b79eb65e0c0669725519b75e1f31",
        ),
        (
            "affnist-clean/capsnet-r3-recon/seed-1",
            "b757a5475afdbd549b698b1d353ea12b623f6c760e8bc999506c87d63305e2cb",
        ),
    ],
)
def test_digests_of_before_are_the_same(run: str, digest: str) -> None:
    assert resolve_run(PARAMS, run).digest == digest


def test_a_stage_of_a_matched_run_depends_on_the_other_record() -> None:
    protocols = {spec.protocol_name for spec in MATCHED}
    assert protocols == {"matcaps-azimuth", "matcaps-elevation"}
    for name in protocols:
        path = ROOT / "pipelines" / name / "dvc.yaml"
        stages = yaml.safe_load(path.read_text())["stages"]
        (other,) = {
            spec.reference.name
            for spec in MATCHED
            if spec.name.endswith("seed-0") and spec.reference and spec.protocol_name == name
        }
        record = f"results/runs/{other.replace('seed-0', 'seed-${item.seed}')}/train.json"
        assert list(stages["baseline"]["outs"][0]) == [record]
        assert record in stages["train"]["deps"]


def test_the_whole_pipeline_pulls_in_every_protocol() -> None:
    runs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["runs"]
    assert runs["deps"] == [f"results/runs/{name}" for name in PARAMS.protocols]
