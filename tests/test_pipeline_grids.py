"""The stages of every pipeline file, against what params.yaml asks for; DVC is not started."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from capsrepro.config import load_params, requested_runs

ROOT = Path(__file__).parents[1]
PARAMS = load_params(ROOT / "params.yaml")
FILES = sorted((ROOT / "pipelines").rglob("dvc.yaml"))
# DVC writes a lock in time that grows with the square of the stages in its file.
MOST_STAGES = 40


def commands(path: Path) -> Iterator[str]:
    """The command of every stage that DVC makes of the file."""
    for stage in yaml.safe_load(path.read_text())["stages"].values():
        matrix = stage.get("matrix", {})
        for cell in itertools.product(*matrix.values()):
            command = stage["cmd"]
            for key, value in zip(matrix, cell, strict=True):
                command = command.replace(f"${{item.{key}}}", str(value))
            assert "${" not in command, command
            yield command.removeprefix("exec capsrepro ")


EVERY = [command for path in FILES for command in commands(path)]


@pytest.mark.parametrize("path", FILES, ids=[str(path.parent.name) for path in FILES])
def test_no_file_has_more_stages_than_dvc_bears(path: Path) -> None:
    assert 0 < len(list(commands(path))) <= MOST_STAGES
    # DVC reads what `vars` names anew for each file, 0.2 s for params.yaml, whatever is called for.
    assert "vars" not in yaml.safe_load(path.read_text())


def test_every_stage_works_in_the_root() -> None:
    for path in FILES:
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            assert (path.parent / stage["wdir"]).resolve() == ROOT, (path, name)


def test_every_run_is_trained_by_one_stage() -> None:
    trained = [command.removeprefix("run ") for command in EVERY if command.startswith("run ")]
    assert sorted(trained) == sorted(run.name for run in requested_runs(PARAMS))


def test_transferred_attacks_wait_for_every_seed_of_their_source() -> None:
    seen = 0
    for path in FILES:
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            if not name.startswith("transfer"):
                continue
            protocol = stage["cmd"].split()[-1].split("/")[0]
            asked = PARAMS.protocols[protocol]
            runs = f"results/runs/{protocol}/{asked.attacks[name].source}"
            sources = {f"{runs}/seed-{seed}/train.json" for seed in asked.run_seeds}
            assert sources < set(stage["deps"]), (path, name)
            seen += 1
    assert seen == 6


def test_every_evaluation_is_made_by_one_stage() -> None:
    wanted = []
    for run in requested_runs(PARAMS):
        for name, attack in run.protocol.attacks.items():
            if run.model_name in attack.models:
                wanted.append(f"attack {name} {run.name}")
        for kind, asked in run.protocol.evaluations:
            if asked is not None and run.model_name in asked.models:
                wanted.append(f"{kind} {run.name}")
    other = ("run ", "datasets ", "report ")
    assert sorted(c for c in EVERY if not c.startswith(other)) == sorted(wanted)
