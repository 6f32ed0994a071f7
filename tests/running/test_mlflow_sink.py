"""A real SQLite database behind a real MLflow process; slow, as MLflow takes seconds to come."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from capsrepro.project import find_project
from capsrepro.records import read_record
from capsrepro.running.mlflow_sink import Sink

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra `pipeline` is not installed"),
    # MLflow 3 uses what SQLAlchemy 2.1 deprecates; neither is ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MODEL = "digits/capsnet-r3-recon"
# Its handlers stand before MLflow is imported.
MERCY_S = 0.5
RUNS = [f"{MODEL}/seed-{seed}" for seed in (0, 1, 2)]


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """As `Mirror` has it, which here need not be the first to import MLflow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield


def database(workplace, name: str = "mlflow") -> str:
    return f"sqlite:///{workplace.root}/{name}.db"


def read_back(uri: str) -> dict[str, dict[str, Any]]:
    """Every run in a database by its key, without what is another at each publication."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = [
        (experiment.name, run)
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    ]
    runs = {
        run.data.tags["capsrepro.key"]: {
            "experiment": experiment,
            "name": run.info.run_name,
            "parent": run.data.tags.get("mlflow.parentRunId"),
            "status": run.info.status,
            "tags": {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
            "params": run.data.params,
            "curves": {
                name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            },
            "id": run.info.run_id,
        }
        for experiment, run in found
    }
    assert len(runs) == len(found), "two runs carry one key"
    return runs


@pytest.fixture(scope="module")
def mirrored(trained_once, tmp_path_factory):
    """Three processes, each with the records of one seed, open one fresh database at once."""
    workplace = trained_once.copy(tmp_path_factory.mktemp("mirrored") / "project")
    for run in RUNS[1:]:
        assert workplace.call("run", run).code == 0
    processes = []
    for run in RUNS:
        results = workplace.root / "results-of" / run.rpartition("/")[2]
        shutil.copytree(workplace.record(run=run).parent, results / "runs" / run)
        env = {"CAPSREPRO_RESULTS": str(results), "MLFLOW_TRACKING_URI": database(workplace)}
        processes.append(workplace.start("mlflow-sync", **env))
    results = [workplace.finish(process) for process in processes]
    return workplace, results


def test_three_processes_may_open_a_fresh_database_at_once(mirrored):
    workplace, results = mirrored
    for result in results:
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("1 of 1 runs published to sqlite:///")
    runs = read_back(database(workplace))
    assert set(runs) == {MODEL, *RUNS}
    assert {run["experiment"] for run in runs.values()} == {"digits"}
    parent = runs[MODEL]
    assert parent["name"] == "capsnet-r3-recon"
    for name in RUNS:
        assert runs[name]["parent"] == parent["id"]
        assert runs[name]["name"] == name.rpartition("/")[2]
        assert runs[name]["status"] == "FINISHED"


def test_a_run_holds_what_its_records_hold(mirrored):
    workplace, _ = mirrored
    run, record = read_back(database(workplace))[RUNS[0]], read_record(workplace.record())
    attack = read_record(workplace.record("fgsm"))
    assert run["tags"]["spec_digest"] == record.spec_digest
    assert run["tags"]["data_digest"] == record.data.digest
    assert run["tags"]["capsrepro.seals"] == f"{record.seal[:16]},{attack.seal[:16]}"
    assert json.loads(run["params"]["recipe.learning_rate"]) == 0.003
    assert json.loads(run["params"]["model.routing_iterations"]) == 3
    curves = run["curves"]
    assert curves["final.test_error_pct"] == [(40, record.metrics["test_error_pct"])]
    assert [value for _, value in curves["fgsm.accuracy_pct"]] == attack.curves["accuracy_pct"]
    assert [value for _, value in curves["first_losses"]] == record.curves["first_losses"]
    history = [
        json.loads(line)
        for line in workplace.record().with_name("history.jsonl").read_text().splitlines()
    ]
    for name in ("train_loss", "learning_rate", "margin_loss"):
        assert curves[name] == [(epoch["step"], epoch[name]) for epoch in history]


def test_a_live_run_and_a_sync_after_the_loss_of_the_database_are_the_same(mirrored, tmp_path):
    workplace = mirrored[0].copy(tmp_path / "project")
    new = f"{MODEL}/seed-3"
    workplace.env["MLFLOW_TRACKING_URI"] = database(workplace)
    result = workplace.call("run", new)
    assert (result.code, result.err) == (0, "")
    live = read_back(database(workplace))
    assert set(live) == {MODEL, *RUNS, new}
    record = read_record(workplace.record(run=new))
    assert live[new]["curves"]["final.test_error_pct"] == [(40, record.metrics["test_error_pct"])]

    # Another name, because MLflow keeps one engine per address for as long as a process lives.
    workplace.env["MLFLOW_TRACKING_URI"] = database(workplace, "restored")
    for published in (4, 0):
        result = workplace.call("mlflow-sync")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"{published} of 4 runs published to sqlite:///")
    restored = read_back(database(workplace, "restored"))
    for runs in (live, restored):
        ids = {name: run.pop("id") for name, run in runs.items()}
        assert {run.pop("parent") for name, run in runs.items() if name != MODEL} == {ids[MODEL]}
    assert restored == live


def test_the_curves_of_a_run_can_be_watched_while_it_trains(mirrored, tmp_path):
    """A diverging run has no record of its epochs until it ends; what is there came live."""
    workplace = mirrored[0].copy(tmp_path / "project")
    workplace.env["MLFLOW_TRACKING_URI"] = database(workplace)
    new = f"{MODEL}/seed-4"
    with workplace.inside(), Sink(find_project()) as sink:
        sink.start(new, "a digest", [{"step": 1, "train_loss": 0.9}])
        sink.log_epoch({"step": 2, "train_loss": 0.8})
    found = read_back(database(workplace))[new]
    assert found["curves"] == {"train_loss": [(1, 0.9), (2, 0.8)]}
    assert (found["status"], found["name"]) == ("RUNNING", "seed-4")
    assert found["tags"]["spec_digest"] == "a digest"


def test_every_evaluation_leaves_those_before_it_in_place(mirrored, tmp_path):
    workplace = mirrored[0].copy(tmp_path / "project")
    workplace.env["MLFLOW_TRACKING_URI"] = database(workplace)

    def add_an_attack(document):
        attacks = document["protocols"]["digits"]["attacks"]
        attacks["fgsm-again"] = attacks["fgsm"]

    workplace.edit(add_an_attack)
    assert "fgsm-again.accuracy_pct" not in read_back(database(workplace))[RUNS[0]]["curves"]
    assert workplace.call("attack", "fgsm-again", RUNS[0]).code == 0
    curves = read_back(database(workplace))[RUNS[0]]["curves"]
    assert curves["fgsm-again.accuracy_pct"] == curves["fgsm.accuracy_pct"]


def test_signals_to_the_group_and_the_death_of_the_run_lose_nothing(mirrored, tmp_path):
    """Ctrl-C reaches every process of a terminal, `kill -9` only the run."""
    workplace = mirrored[0].copy(tmp_path / "project")
    new = f"{MODEL}/seed-5"
    program = f"""
import os, signal, time
from capsrepro.project import find_project
from capsrepro.running.mlflow_sink import Sink
sink = Sink(find_project())
signal.signal(signal.SIGINT, signal.SIG_IGN)
sink.start({new!r}, "a digest", [{{"step": 1, "train_loss": 0.9}}])
time.sleep({MERCY_S})
os.killpg(0, signal.SIGINT)
sink.log_epoch({{"step": 2, "train_loss": 0.8}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    uri = database(workplace)
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=workplace.root,
        env={**os.environ, **workplace.env, "MLFLOW_TRACKING_URI": uri},
        start_new_session=True,
        capture_output=True,  # read until the last who holds it, the process of MLflow, has ended
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGKILL, b"")
    assert read_back(uri)[new]["curves"] == {"train_loss": [(1, 0.9), (2, 0.8)]}


def test_a_process_that_nothing_was_asked_of_is_not_waited_for(prepared):
    prepared.env["MLFLOW_TRACKING_URI"] = database(prepared)
    with prepared.inside(), Sink(find_project()) as sink:
        process = sink._process
    assert process.returncode == -signal.SIGKILL
    assert not (prepared.root / "mlflow.db").exists()


def test_a_process_that_died_is_one_warning(prepared, capsys):
    prepared.env["MLFLOW_TRACKING_URI"] = database(prepared)
    with prepared.inside(), Sink(find_project()) as sink:
        sink._process.kill()
        sink._process.wait()
        sink.start(RUNS[0], "a digest", [])
        sink.publish(RUNS[0])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow logging ended by itself (exit code -9)")


def test_a_dead_server_is_one_warning_and_the_run_goes_on(prepared):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        prepared.env["MLFLOW_TRACKING_URI"] = uri
        result = prepared.spawn("run", RUNS[0])
        assert result.code == 0
        (line,) = result.err.splitlines()
        assert line.startswith(f"warning: MLflow logging failed (API request to {uri}/")
        assert line.endswith("the run is not affected, `capsrepro mlflow-sync` mends it later.")
        assert read_record(prepared.record()).status == "finished"
        refused = prepared.call("mlflow-sync")
        assert refused.is_refusal(1, f"MLflow at {uri} cannot be used", "MLFLOW_TRACKING_URI")


def test_tracking_switched_off_is_silent(prepared):
    result = prepared.call("run", RUNS[0])
    assert (result.code, result.err) == (0, "")
    assert not (prepared.root / "mlflow.db").exists()
    assert prepared.call("mlflow-sync").is_refusal(1, "MLflow at off", "tracking is off")
