"""Models that do not start from the learning rate of their protocol's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from capsrepro.config import RunSpec, load_params, resolve_run
from capsrepro.errors import UsageError
from capsrepro.training.optimisation import learning_rate

ROOT = Path(__file__).parents[1]
SHIPPED = (ROOT / "params.yaml").read_text()
BASELINE = "matcaps-smallnorb/cnn-baseline/seed-0"
CAPSULES = "matcaps-smallnorb/matcaps-em3/seed-0"


def written(folder: Path, rates: dict[str, Any] | None) -> Path:
    """The shipped file with these rates in matcaps-smallnorb; None takes the key out."""
    document = yaml.safe_load(SHIPPED)
    protocol = document["protocols"]["matcaps-smallnorb"]
    protocol["recipe"] = {**protocol["recipe"], "learning_rates": rates}  # not that of others too
    if rates is None:
        del protocol["recipe"]["learning_rates"]
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def resolved(folder: Path, rates: dict[str, Any] | None, run: str) -> RunSpec:
    return resolve_run(load_params(written(folder, rates)), run)


def test_a_model_that_is_named_starts_from_its_own(tmp_path: Path) -> None:
    rates = {"cnn-baseline": 0.0005}
    recipes = [resolved(tmp_path, rates, run).protocol.recipe for run in (BASELINE, CAPSULES)]
    assert [learning_rate(recipe, 0) for recipe in recipes] == [0.0005, 0.003]
    # It falls as that of the others does.
    assert learning_rate(recipes[0], 20_000) == pytest.approx(0.0005 * 0.96)


def test_it_stands_in_the_record_as_if_it_were_the_recipes_own(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, {"cnn-baseline": 0.0005}, BASELINE).document()["recipe"]
    assert recipe["learning_rate"] == 0.0005
    assert "learning_rates" not in recipe


def test_runs_of_other_models_stay_what_they_are(tmp_path: Path) -> None:
    rates = {"cnn-baseline": 0.0005}
    assert resolved(tmp_path, rates, CAPSULES).digest == resolved(tmp_path, None, CAPSULES).digest
    assert resolved(tmp_path, rates, BASELINE).digest != resolved(tmp_path, None, BASELINE).digest


def test_the_run_to_be_matched_has_its_own_too() -> None:
    spec = resolve_run(load_params(ROOT / "params.yaml"), "matcaps-azimuth/matcaps-em3/seed-0")
    assert spec.reference is not None
    recipes = spec.reference.protocol.recipe, spec.protocol.recipe
    assert [recipe.learning_rate for recipe in recipes] == [0.001, 0.003]


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"cnn-basline": 0.001}, "recipe.learning_rates names cnn-basline, which is not defined"),
        ({"cnn-baseline": 0}, "recipe.learning_rates.cnn-baseline is wrong"),
        ({"cnn-baseline": "fast"}, "recipe.learning_rates.cnn-baseline is wrong"),
    ],
)
def test_wrong_ones_are_refused(tmp_path: Path, rates: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=rf"line \d+: protocols.matcaps-smallnorb.{said}"):
        load_params(written(tmp_path, rates))
