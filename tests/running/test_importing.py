from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bundle_files import ARRAYS, FGSM, HISTORY, RUN, TRAIN, add_seed, files_of, repack, retrain

from capsrepro.files import sha256_of_file
from capsrepro.records import Failure, read_record, write_record
from capsrepro.running import control

# Whole commands: seconds each, left to `make test`.
pytestmark = pytest.mark.slow

MANIFEST = "results/datasets/digits.json"
CARRIED = [MANIFEST, f"results/{ARRAYS}", f"results/{HISTORY}"] + [
    f"results/runs/{RUN}/{kind}.json" for kind in ("fgsm", "reconstruct", "train")
]


def bring(workplace, path, *arguments):
    """What a successful import says of itself."""
    result = workplace.call("import", str(path), *arguments, "--json")
    assert (result.code, result.err) == (0, ""), result
    return json.loads(result.out)


def states(told):
    return {run["run"]: run["state"] for run in told["runs"]}


def refused(workplace, path, code, *words, arguments=()):
    """One sentence, and nothing is changed."""
    before = files_of(workplace)
    result = workplace.call("import", str(path), *arguments)
    assert result.out == ""
    assert files_of(workplace) == before
    return result.is_refusal(code, *words)


def carry(workplace, path, *arguments):
    result = workplace.call("export", str(path), *arguments)
    assert result.code == 0, result
    return path


def test_an_imported_run_is_as_if_it_had_been_trained_here(evaluated, empty, light):
    (told,) = bring(empty, light)["runs"]
    record = read_record(evaluated.record())
    assert told == {
        "run": RUN,
        "records": ["train", "fgsm", "reconstruct"],
        "state": "imported",
        "current": True,
        "reason": None,
        "metrics": record.metrics,
        "failure": None,
    }
    there, here = files_of(evaluated), files_of(empty)
    assert sorted(set(here) - {"params.yaml", "results/index.json"}) == sorted(CARRIED)
    assert {name: here[name] for name in CARRIED} == {name: there[name] for name in CARRIED}
    for form in ("md", "json"):
        shown = empty.call("report", "digits", "--format", form)
        assert str(record.metrics["test_error_pct"]) in shown.out
        assert shown == evaluated.call("report", "digits", "--format", form)
    assert RUN not in empty.call("pending").out
    assert empty.call("run", RUN).out.startswith(f"{RUN}: nothing to do, its record is current")


def test_it_says_what_it_brought(evaluated, empty, light):
    error = read_record(evaluated.record()).metrics["test_error_pct"]
    assert empty.call("import", str(light)).out.splitlines() == [
        f"{RUN}: test error {error:.2f} %; train, fgsm, reconstruct imported; current",
        "data set digits: there was no manifest here, so the data behind the runs could not be "
        "compared; the bundle's is now results/datasets/digits.json",
        f"1 of 1 runs brought in from {light}",
    ]
    assert empty.call("import", str(light)).out.splitlines() == [
        f"{RUN}: test error {error:.2f} %; train, fgsm, reconstruct was here; current",
        f"0 of 1 runs brought in from {light}",
    ]


def test_the_second_time_nothing_is_written(empty, light):
    bring(empty, light)
    paths = [p for p in empty.root.rglob("*") if p.is_file() and "lock" not in p.name]
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert states(bring(empty, light)) == {RUN: "was here"}
    assert {path: path.stat().st_mtime_ns for path in paths} == before


def test_weights_come_when_they_were_carried(evaluated, prepared, light, heavy):
    """An imported run can be attacked, and the numbers are the same."""
    bring(prepared, light)
    assert not list(prepared.root.rglob("weights*"))
    assert states(bring(prepared, heavy)) == {RUN: "completed"}
    here, there = files_of(prepared), files_of(evaluated)
    for name in ("weights.safetensors", "weights.safetensors.sha256"):
        assert here[f"checkpoints/{RUN}/{name}"] == there[f"checkpoints/{RUN}/{name}"]
    prepared.record("fgsm").unlink()
    assert prepared.call("attack", "fgsm", RUN).code == 0
    again, carried = read_record(prepared.record("fgsm")), read_record(evaluated.record("fgsm"))
    assert (again.curves, again.metrics) == (carried.curves, carried.metrics)


def test_the_index_is_refreshed_even_when_nothing_came(empty, light):
    empty.edit(lambda d: d["protocols"]["digits"].update(judged_as="mnist"))
    bring(empty, light)
    index = empty.root / "results/index.json"
    seals = json.loads(index.read_text())
    assert seals[f"{RUN}/train"] == read_record(empty.record()).seal
    assert set(seals) == {f"{RUN}/{kind}" for kind in ("train", "fgsm", "reconstruct")}
    index.unlink()
    bring(empty, light)
    assert json.loads(index.read_text()) == seals


def test_what_is_missing_or_damaged_here_is_completed(empty, light):
    bring(empty, light)
    whole = files_of(empty)
    for name in (HISTORY, ARRAYS, FGSM, TRAIN):
        (empty.root / "results" / name).unlink()
        assert states(bring(empty, light)) == {RUN: "completed"}, name
        assert files_of(empty) == whole
    for name in (HISTORY, ARRAYS):
        (empty.root / "results" / name).write_text("damaged")
        assert states(bring(empty, light)) == {RUN: "completed"}, name
        assert files_of(empty) == whole


def test_evaluations_that_only_are_here_stay(evaluated, empty, light, tmp_path):
    evaluated.record("reconstruct").unlink()
    evaluated.record("reconstruct").with_suffix(".npz").unlink()
    fewer = carry(evaluated, tmp_path / "fewer.tar.gz")
    bring(empty, light)
    assert states(bring(empty, fewer)) == {RUN: "was here"}
    assert empty.record("reconstruct").exists()


def test_other_runs_here_stay(evaluated, empty, light, tmp_path):
    run = add_seed(evaluated, 1)
    bring(empty, carry(evaluated, tmp_path / "one.tar.gz", run))
    told = bring(empty, light)
    assert states(told) == {RUN: "imported"}
    assert empty.record(run=run).read_bytes() == evaluated.record(run=run).read_bytes()


def test_another_record_here_is_a_conflict_and_all_of_them_are_named(evaluated, empty, tmp_path):
    runs = [RUN, *(add_seed(evaluated, seed) for seed in (1, 2, 3))]
    bring(empty, carry(evaluated, tmp_path / "first.tar.gz", *runs[:3]))
    retrain(evaluated, runs[0])
    retrain(evaluated, runs[2])
    second = carry(evaluated, tmp_path / "second.tar.gz")
    sentence = f"other records are here of {runs[0]}, {runs[2]}; import with --replace"
    assert refused(empty, second, 1, sentence)
    assert states(bring(empty, second, "--replace")) == {
        runs[0]: "replaced",
        runs[1]: "was here",
        runs[2]: "replaced",
        runs[3]: "imported",
    }
    there, here = files_of(evaluated), files_of(empty)
    # The evaluations of the old weights were not carried; they stay and count no more.
    assert {name: there[name] for name in here if "/runs/" in name} == {
        name: here[name] for name in here if "/runs/" in name
    }
    for form in ("md", "json"):
        shown = empty.call("report", "digits", "--format", form)
        assert shown == evaluated.call("report", "digits", "--format", form)


def test_a_damaged_record_here_is_a_conflict_too(empty, light):
    bring(empty, light)
    whole = files_of(empty)
    empty.record().write_text("damaged")
    assert refused(empty, light, 1, RUN, "--replace")
    bring(empty, light, "--replace")
    assert files_of(empty) == whole


def test_a_run_that_is_being_trained_here_is_refused(empty, light):
    with control.exclusive(empty.root / "checkpoints" / RUN, RUN):
        assert refused(empty, light, 1, RUN, "already", f"process {os.getpid()}")
    bring(empty, light)
    with control.exclusive(empty.root / "checkpoints" / RUN, RUN):
        assert states(bring(empty, light)) == {RUN: "was here"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["protocols"]["digits"].update(version="2.0"), "protocol version 1.0 is"),
        (lambda d: d["protocols"]["digits"].update(full_steps=41), "its specification in params"),
        (lambda d: d["protocols"].pop("digits"), "params.yaml here does not know it"),
        (lambda d: forget_model(d, "capsnet-r3-recon"), "params.yaml here does not know it"),
    ],
)  # fmt: skip
def test_runs_that_are_not_current_here_come_and_are_said_not_to_be(empty, light, change, reason):
    empty.edit(change)
    (told,) = bring(empty, light)["runs"]
    assert (told["state"], told["current"]) == ("imported", False)
    assert told["reason"].startswith(reason)
    assert f"not current: {reason}" in empty.call("import", str(light)).out
    for command in ("report", "pending", "claims"):
        assert empty.call(command).code == 0


def forget_model(document, model):
    protocol = document["protocols"]["digits"]
    del document["models"][protocol["models"]][model]
    for other in document["protocols"].values():
        other["run_models"] = [name for name in other["run_models"] if name != model]
        asked = (other.get(kind, {}).values() for kind in ("evaluations", "attacks"))
        for evaluation in itertools.chain.from_iterable(asked):
            evaluation["models"] = [name for name in evaluation["models"] if name != model]


def test_a_failed_run(evaluated, empty, tmp_path):
    record = read_record(evaluated.record())
    failure = Failure(reason="the loss is nan", step=7)
    update = {"status": "failed", "failure": failure, "metrics": {}}
    write_record(evaluated.record().parent, record.model_copy(update=update))
    path = carry(evaluated, tmp_path / "x.tar.gz")
    said = empty.call("import", str(path)).out
    assert said.startswith(f"{RUN}: failed at step 7: the loss is nan; train, fgsm, reconstruct im")


# The data behind the runs.


def test_the_same_data_here_are_found_to_be_the_same(prepared, light):
    assert bring(prepared, light)["new_datasets"] == []


def test_data_that_cannot_be_compared_are_named_once(empty, light):
    assert bring(empty, light)["new_datasets"] == ["digits"]
    assert bring(empty, light)["new_datasets"] == []


def test_other_data_here_are_refused(prepared, light):
    prepared.edit(lambda d: d["datasets"]["digits"].update(test_count=400))
    assert prepared.call("datasets", "prepare", "digits").code == 0
    words = ["its digits (digest ", "is not that of", MANIFEST, RUN, "prepare the same data"]
    assert refused(prepared, light, 1, *words)
    assert refused(prepared, light, 1, *words, arguments=["--replace"])


@pytest.mark.fault
def test_a_damaged_manifest_here(prepared, light):
    (prepared.root / MANIFEST).write_text("{}")
    assert refused(prepared, light, 1, f"{MANIFEST} is no manifest", "git checkout")


# What goes wrong on the way.


def test_no_such_file(empty, tmp_path):
    words = [f"cannot import {tmp_path}/x.tar.gz: No such file", "`capsrepro export`"]
    assert refused(empty, tmp_path / "x.tar.gz", 1, *words)
    assert refused(empty, tmp_path, 1, "Is a directory")


@pytest.mark.fault
def test_a_bad_member_at_the_end_leaves_nothing_of_the_good_ones(empty, light):
    def spoil(members):
        members[ARRAYS] = members[ARRAYS][:-1]

    assert refused(empty, repack(light, spoil), 1, "reconstruct.npz is not the file")


IMPORT_WITH_LITTLE_DISK = """
import resource, sys
from capsrepro.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
main(["import", *sys.argv[2:]])
"""


def import_with_little_disk(workplace, limit, path, *arguments):
    """The kernel's limit on file sizes stands for the disk: root may write past any permission."""
    command = [sys.executable, "-c", IMPORT_WITH_LITTLE_DISK, str(limit), str(path), *arguments]
    child = subprocess.run(
        command, cwd=workplace.root, env=os.environ | workplace.env, capture_output=True, text=True
    )
    assert child.returncode == 1
    assert child.stderr.startswith("capsrepro: cannot write ")
    assert "File too large; free space or make" in child.stderr
    assert child.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.fault
def test_full_disk(empty, evaluated, heavy):
    before = files_of(empty)
    for limit in (2000, 100_000):
        import_with_little_disk(empty, limit, heavy)
        assert files_of(empty) == before
    bring(empty, heavy)
    assert read_record(empty.record()) == read_record(evaluated.record())


@pytest.mark.slow
@pytest.mark.fault
def test_full_disk_leaves_the_records_that_were_to_be_replaced(empty, evaluated, heavy, tmp_path):
    bring(empty, heavy)
    before = files_of(empty)
    retrain(evaluated)
    path = carry(evaluated, tmp_path / "new.tar.gz", "--weights")
    import_with_little_disk(empty, 100_000, path, "--replace")
    assert files_of(empty) == before


@pytest.fixture
def replacement(evaluated, tmp_path):
    """Two runs here; there the first trained anew, one evaluation of the second, and a third."""
    second = add_seed(evaluated, 1)
    here = evaluated.copy(tmp_path / "here")
    shutil.rmtree(here.root / "data")
    retrain(evaluated)
    sha256 = read_record(evaluated.record()).outputs["weights.safetensors"]
    arrays = evaluated.record("reconstruct").with_suffix(".npz")
    arrays.write_bytes(arrays.read_bytes() + b"more")
    outputs = {"fgsm": {}, "reconstruct": {arrays.name: sha256_of_file(arrays)}}
    for kind, left in outputs.items():
        record = read_record(evaluated.record(kind))
        update = {"inputs": {"weights.safetensors": sha256}, "outputs": left}
        write_record(evaluated.record().parent, record.model_copy(update=update))
    fgsm = read_record(evaluated.record("fgsm", second))
    folder = evaluated.record(run=second).parent
    write_record(folder, fgsm.model_copy(update={"created_at": "later"}))
    add_seed(evaluated, 2)
    return here, evaluated, carry(evaluated, tmp_path / "x.tar.gz", "--weights")


# Killed before its first step that changes the disk, and before later ones until it lives; in the
# second half, when all is written and only put in place, before every single one.
IMPORT_AND_DIE = """
import os, pathlib, shutil, signal, sys
import capsrepro.running.importing  # once for all children
from capsrepro.cli.main import _run

def dying(act):
    def acting(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*arguments, **options)
    return acting

os.fsync = dying(os.fsync)
pathlib.Path.replace = dying(pathlib.Path.replace)
pathlib.Path.unlink = dying(pathlib.Path.unlink)
here, folder, bundle = sys.argv[1:]
code, left, killed_at = -9, 0, 0
while code == -9:
    trial = shutil.copytree(here, f"{folder}/trial-{left}")
    child = os.fork()
    if not child:
        os.chdir(trial)
        os._exit(_run(["import", "--replace", bundle]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(trial, code)
    left = killed_at = killed_at + (1 if killed_at > 40 else 8)
"""


def assert_old_none_or_new(trial, old, new):
    """No record is half-written or stands beside files that it does not name."""
    for name, content in files_of(trial).items():
        if name.startswith(("results/runs", "checkpoints")) and not name.endswith(".tmp"):
            assert content in (old.get(name), new.get(name)), name
    for path in (trial.root / "results/runs").rglob("*.json"):
        for output, sha256 in read_record(path).outputs.items():
            if output != "weights.safetensors":
                assert sha256_of_file(path.with_name(output)) == sha256, path


@pytest.mark.slow
@pytest.mark.fault
def test_kill_9_at_every_step_and_again(replacement, tmp_path):
    """Wherever it is killed: old, none or new; and the same command completes it."""
    here, there, bundle = replacement
    program = [sys.executable, "-c", IMPORT_AND_DIE, here.root, tmp_path, bundle]
    env = {name: value for name, value in os.environ.items() if not name.startswith("CAPSREPRO")}
    env["MLFLOW_TRACKING_URI"] = "off"
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=240)
    trials = [line.split() for line in done.stdout.splitlines() if "trial-" in line.split()[0]]
    assert [int(code) for _, code in trials] == [-signal.SIGKILL] * (len(trials) - 1) + [0], done
    assert len(trials) > 40
    old, new = files_of(here), files_of(there)
    wanted = {n: c for n, c in new.items() if n.startswith(("results/runs", "checkpoints"))}
    for folder, _ in trials:
        trial = type(here)(Path(folder))
        assert_old_none_or_new(trial, old, new)
        bring(trial, bundle, "--replace")
        found = files_of(trial)
        assert {n: c for n, c in found.items() if n.startswith(("results/runs", "check"))} == wanted


# MLflow.

needs_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None, reason="the extra `pipeline` is not installed"
)


@pytest.mark.slow
@needs_mlflow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_is_fed_once(evaluated, empty, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    runs = [RUN, add_seed(evaluated, 1)]
    path = carry(evaluated, tmp_path / "x.tar.gz")
    uri = empty.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{empty.root}/mlflow.db"
    client = None
    for _ in range(2):
        bring(empty, path)
        client = client or MlflowClient(tracking_uri=uri)
        (experiment,) = [e for e in client.search_experiments() if e.name == "digits"]
        found = client.search_runs([experiment.experiment_id])
        by_key = {run.data.tags["capsrepro.key"]: run for run in found}
        assert set(by_key) == {*runs, "digits/capsnet-r3-recon"}
        assert len(found) == 3
    for name in runs:
        records = [
            read_record(empty.record(kind, name)) for kind in ("train", "fgsm", "reconstruct")
        ]
        assert by_key[name].data.tags["capsrepro.seals"] == ",".join(r.seal[:16] for r in records)
        metrics = by_key[name].data.metrics
        assert metrics["final.test_error_pct"] == records[0].metrics["test_error_pct"]
        assert metrics["final.reconstruct.digit_sse"] == records[2].metrics["digit_sse"]
    result = empty.call("mlflow-sync")
    assert result.out.startswith("0 of 2 runs published")


@pytest.mark.slow
@needs_mlflow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.fault
def test_a_dead_server_is_one_warning_and_the_runs_are_here(empty, light):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        empty.env["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = empty.spawn("import", str(light))
    assert result.code == 0
    (line,) = result.err.splitlines()
    assert line.startswith("warning: MLflow logging failed")
    assert "`capsrepro mlflow-sync` mends it later" in line
    assert "1 of 1 runs brought in" in result.out


def test_a_wrong_params_file_is_said_before_torch_is_imported(empty, light):
    (empty.root / "params.yaml").write_text("margins: 3\n")
    assert refused(empty, light, 2, "params.yaml, line 1")
