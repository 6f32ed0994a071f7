"""What a change of params.yaml makes stale: the entries by which DVC tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from capsrepro.asked import asked_of_protocols, write_asked
from capsrepro.config import load_params, requested_runs
from capsrepro.schema.params import Params

ROOT = Path(__file__).parents[1]
PARAMS = load_params(ROOT / "params.yaml")


def entries(params: Params) -> dict[str, Any]:
    """`protocol.group.name`, as the stages depend on it, with its value."""
    return {
        f"{protocol}.{group}.{name}": value
        for protocol, groups in asked_of_protocols(params).items()
        for group, named in groups.items()
        for name, value in named.items()
    }


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> set[str]:
    """The entries that are not what they were after a change of the document."""
    # Through text without anchors, so that a change stays where it is made.
    document = yaml.safe_load(_plain(yaml.safe_load((ROOT / "params.yaml").read_text())))
    change(document)
    path = tmp_path / "params.yaml"
    path.write_text(_plain(document))
    before, after = entries(PARAMS), entries(load_params(path))
    return {name for name in before | after if before.get(name) != after.get(name)}


def _plain(document: object) -> str:
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    return yaml.dump(document, Dumper=Dumper, sort_keys=False)


def test_a_specification_is_whole_but_for_the_seed() -> None:
    asked = asked_of_protocols(PARAMS)
    for run in requested_runs(PARAMS):
        whole = asked[run.protocol_name]["train"][run.model_name] | {"seed": run.seed}
        assert whole == run.document()


def trained(protocol: str) -> set[str]:
    """The entries that the training of a protocol depends on."""
    return {f"{protocol}.train.{model}" for model in PARAMS.protocols[protocol].run_models}


SHORT = "protocols.mnist-short"
BASELINES = {
    f"{name}.train.cnn-baseline"
    for name, protocol in PARAMS.protocols.items()
    if protocol.models == "mnist" and "cnn-baseline" in protocol.run_models
}


@pytest.mark.parametrize(
    ("place", "value", "stale"),
    [
        (f"{SHORT}.recipe.steps", 3001, trained("mnist-short")),
        (f"{SHORT}.recipe.precision", "float32", trained("mnist-short")),
        (f"{SHORT}.version", "1.1", trained("mnist-short")),
        (f"{SHORT}.full_steps", 300001, trained("mnist-short")),
        (f"{SHORT}.measured", {"test": "test_error_pct"}, trained("mnist-short")),
        ("protocols.multimnist-short.test_images", 7, trained("multimnist-short")),
        ("models.mnist.cnn-baseline.dropout", 0.4, BASELINES),
        (
            f"{SHORT}.recipe.learning_rates",
            {"cnn-baseline": 0.5},
            {"mnist-short.train.cnn-baseline"},
        ),
        (f"{SHORT}.attacks.pgd.steps", 11, {"mnist-short.attacks.pgd"}),
        (f"{SHORT}.attacks.fgsm.epsilons", [0, 1], {"mnist-short.attacks.fgsm"}),
        (f"{SHORT}.evaluations.routing.images", 9, {"mnist-short.evaluations.routing"}),
        # Which stages there are, and how results are shown and judged.
        (f"{SHORT}.run_seeds", [0, 1], set()),
        (f"{SHORT}.attacks.pgd.models", ["cnn-pooled"], set()),
        (f"{SHORT}.title", "another", set()),
        ("margins.confidence", 0.9, set()),
    ],
)
def test_a_change_makes_stale_what_depends_on_it_alone(
    tmp_path: Path, place: str, value: object, stale: set[str]
) -> None:
    def change(document: dict[str, Any]) -> None:
        *folders, key = place.split(".")
        for folder in folders:
            document = document[folder]
        document[key] = value

    assert changed(tmp_path, change) == stale


def test_a_folder_is_brought_up_to_date_and_otherwise_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "asked"
    assert len(write_asked(PARAMS, folder)) == len(PARAMS.protocols)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_asked(PARAMS, folder) == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times

    (folder / "gone.json").write_text("{}")
    (folder / "svhn.json").write_text("{}")
    assert write_asked(PARAMS, folder) == [folder / "svhn.json"]
    assert set(folder.iterdir()) == set(times)
