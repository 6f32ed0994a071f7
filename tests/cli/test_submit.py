from __future__ import annotations

import json
import subprocess
import sys

import pytest

from capsrepro.records import read_record, write_record

RUN = "digits/capsnet-r3-recon/seed-0"
CPU = ("submit", "--devices", "cpu")


def test_dry_run_shows_order_time_and_manner(trained):
    record = read_record(trained.record())
    cost = record.cost.model_copy(update={"wall_time_s": 120.0})
    write_record(trained.record().parent, record.model_copy(update={"cost": cost}))
    before = sorted(trained.root.rglob("*"))
    result = trained.call(*CPU, "digits/*-recon/*", "--per-device", "2", "--dry-run")
    assert (result.code, result.err) == (0, "")
    # What has no estimate may be long, so it is started first.
    assert result.out.splitlines()[:4] == [
        *(f"digits/capsnet-r1-recon/seed-{n}: no record (time unknown)" for n in (0, 1, 2)),
        "digits/capsnet-r3-recon/seed-1: no record (about 2 min)",
    ]
    assert result.out.splitlines()[-1].startswith("5 planned: 2 at a time on cpu, ")
    assert sorted(trained.root.rglob("*")) == before

    found = json.loads(trained.call(*CPU, "digits", "--dry-run", "--json").out)
    assert set(found) == {"manner", "wall_s", "images", "images_per_s", "runs"}
    assert {run["state"] for run in found["runs"]} == {"planned"}
    assert len(found["runs"]) == 8


def test_dry_run_names_what_a_matched_run_waits_for(empty):
    result = empty.call(*CPU, "matcaps-azimuth", "--dry-run")
    assert ", after matcaps-azimuth/cnn-baseline/seed-0\n" in result.out


def test_on_the_cpu_its_cores_are_divided(empty):
    arguments = (*CPU, "digits", "--dry-run", "--per-device")
    assert "1 at a time on cpu\n" in empty.call(*arguments, "1").out
    assert "64 at a time on cpu, 1 CPU threads each\n" in empty.call(*arguments, "64").out
    result = empty.call(*arguments, "2", "--threads", "3")
    assert "2 at a time on cpu, 3 CPU threads each\n" in result.out


def test_nothing_is_pending(trained):
    result = trained.call(*CPU, RUN)
    assert (result.code, result.out, result.err) == (0, "nothing is pending\n", "")
    assert json.loads(trained.call(*CPU, RUN, "--json").out)["runs"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nope"], ["'nope' names none of the runs", "mnist-short/*/seed-0"]),
        (["digits/nope/seed-0"], ["unknown model 'nope'"]),
        (["--per-device", "0"], ["'--per-device'", "x>=1"]),
        (["--devices", "abacus"], ["'abacus' is no device"]),
        (["--backend", "abacus"], ["'--backend'", "'local', 'slurm'"]),
        (["--slurm-limit", "2"], ["need --backend slurm"]),
        (["--slurm-option", "--partition=gpu"], ["need --backend slurm"]),
        (["--abacus"], ["No such option", "--abacus"]),
    ],
)
def test_wrong_usage(empty, options, words):
    assert empty.call("submit", *options).is_refusal(2, *words)


def test_a_device_that_is_not_here(empty):
    result = empty.call("submit", "digits", "--devices", "cuda:99")
    assert result.is_refusal(1, "device cuda:99 is not here")


@pytest.mark.fault
def test_a_run_that_cannot_print(prepared):
    """Nothing can be written where its log should be."""
    (prepared.root / "checkpoints").mkdir(exist_ok=True)
    (prepared.root / "checkpoints" / "digits").write_text("a file where a folder should be")
    result = prepared.call(*CPU, RUN)
    assert f"{RUN}: FAILED after 0.0 s: cannot write" in result.out
    assert result.is_refusal(1, "1 of 1 runs failed", f"{RUN}, see checkpoints/{RUN}/submit.log")


def test_planning_needs_no_torch(empty):
    program = (
        "import sys\n"
        "from capsrepro.cli.main import _run\n"
        "assert _run(['submit', '--devices', 'cpu', '--dry-run', 'digits']) == 0\n"
        "print(*({'torch', 'mlflow', 'sklearn', 'scipy.stats'} & set(sys.modules)))\n"
    )
    with empty.inside():
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
