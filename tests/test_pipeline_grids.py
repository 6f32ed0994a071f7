"""The stages of every pipeline file, against what params.yaml asks for; DVC is not started."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from capsrepro.asked import asked_of_protocols
from capsrepro.config import load_params, requested_runs

ROOT = Path(__file__).parents[1]
PARAMS = load_params(ROOT / "params.yaml")
FILES = sorted((ROOT / "pipelines").rglob("dvc.yaml"))
# DVC writes a lock in time that grows with the square of the stages in its file.
MOST_STAGES = 40


def stages(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """The command of every stage that DVC makes of the file, with the parameters it depends on."""
    for stage in yaml.safe_load(path.read_text())["stages"].values():
        matrix = stage.get("matrix", {})
        for cell in itertools.product(*matrix.values()):
            text = json.dumps([stage["cmd"], stage.get("params", [])])
            for key, value in zip(matrix, cell, strict=True):
                text = text.replace(f"${{item.{key}}}", str(value))
            assert "${" not in text, text
            command, params = json.loads(text)
            yield command.removeprefix("exec capsrepro "), params


def commands(path: Path) -> list[str]:
    """The command of every stage that DVC makes of the file."""
    return [command for command, _ in stages(path)]


def parameters(command: str) -> list[Any]:
    """What a command depends on, of params.yaml or of what it asks of the protocol."""
    verb, *rest = command.split()
    if verb == "datasets":
        return [f"datasets.{rest[-1]}"]
    if verb in ("asked", "report"):
        return []
    protocol, model, _ = rest[-1].split("/")
    keys = {"run": f"train.{model}", "attack": f"attacks.{rest[0]}"}
    return [{f"pipelines/asked/{protocol}.json": [keys.get(verb, f"evaluations.{verb}")]}]


EVERY = [command for path in FILES for command in commands(path)]


@pytest.mark.parametrize("path", FILES, ids=[str(path.parent.name) for path in FILES])
def test_no_file_has_more_stages_than_dvc_bears(path: Path) -> None:
    assert 0 < len(commands(path)) <= MOST_STAGES
    # DVC reads what `vars` names anew for each file, 0.2 s for params.yaml, whatever is called for.
    assert "vars" not in yaml.safe_load(path.read_text())


def test_every_stage_works_in_the_root() -> None:
    for path in FILES:
        for name, stage in yaml.safe_load(path.read_text())["stages"].items():
            assert (path.parent / stage["wdir"]).resolve() == ROOT, (path, name)


def test_every_stage_depends_on_what_is_asked_of_it_alone() -> None:
    asked = asked_of_protocols(PARAMS)
    for path in FILES:
        for command, params in stages(path):
            assert params == parameters(command), command
            for file, (key,) in [
                pair for one in params if isinstance(one, dict) for pair in one.items()
            ]:
                group, name = key.split(".")  # a dot in a name would be a level more to DVC
                assert name in asked[Path(file).stem][group], command


def test_what_is_asked_is_written_as_params_yaml_has_it() -> None:
    """`capsrepro asked` brings it up to date, and so does `dvc repro`."""
    written = {p.stem: json.loads(p.read_text()) for p in (ROOT / "pipelines/asked").iterdir()}
    assert written == asked_of_protocols(PARAMS)


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
    other = ("run ", "datasets ", "report ", "asked")
    assert sorted(c for c in EVERY if not c.startswith(other)) == sorted(wanted)
