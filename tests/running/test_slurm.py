"""The real scripts, run by bash; only the cluster is made up, as an executable named sbatch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from capsrepro.records import read_record

CNN, CAPSNET, ROUTED = (
    f"digits/{model}/seed-0" for model in ("cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon")
)
SLURM = ("submit", "--backend", "slurm", "--devices", "cpu", "--threads", "1")

# Runs every task of the array at once, one after another, and prints the number of the job.
CLUSTER = """#!/bin/bash
script="${@: -1}"
echo "$@" >> "$0.calls"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 $last); do
  SLURM_ARRAY_TASK_ID=$task bash "$script" >> "$0.output" 2>&1
done
echo "$((6 + $(wc -l < "$0.calls")));cluster"
"""
REFUSAL = """#!/bin/bash
echo "sbatch: error: invalid partition specified: gpu" >&2
exit 1
"""


def put_sbatch(workplace, text: str) -> Path:
    """Have an sbatch on PATH, and no other."""
    path = workplace.root / "bin" / "sbatch"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o755)
    workplace.env["PATH"] = f"{path.parent}:{os.environ['PATH']}"
    return path


def ask(params: dict[str, Any]) -> None:
    """Two CapsNets matched to a CNN, and one that is not; a few steps of small models."""
    digits = params["protocols"]["digits"]
    digits["run_models"] = ["capsnet-r1-recon", "capsnet-r3-recon", "cnn-baseline"]
    digits["run_seeds"] = [0]
    plain = digits | {"run_models": ["capsnet-r1-recon"]}
    stop = {"split": "validation", "accuracy_of": "cnn-baseline"}
    digits["recipe"] = digits["recipe"] | {"validation_images": 273, "stop": stop, "shift_px": 0}
    digits["measured"] = {"validation": "validation_error_pct"}
    params["protocols"] = {"digits": digits, "plain": plain}
    small = {"conv1_channels": 8, "primary_types": 4, "decoder_widths": [8, 8]}
    small |= {"conv_channels": [8, 8, 8], "dense_widths": [16]}
    for model in params["models"]["digits"].values():
        model |= {key: value for key, value in small.items() if key in model}


def scripts(workplace) -> list[str]:
    """In the order in which they were written."""
    paths = (workplace.root / "checkpoints").glob("submit-*.sbatch")
    return [path.read_text() for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]


def tasks_of(script: str) -> list[str]:
    return re.findall(r"^'(digits.*|plain.*)'$", script, flags=re.MULTILINE)


def test_dry_run_writes_the_scripts_and_names_the_calls(prepared):
    prepared.edit(ask)
    options = ("--per-device", "2", "--slurm-limit", "3", "--slurm-option", "--partition=a b")
    result = prepared.call(*SLURM, *options, "--dry-run")
    assert result.code == 0, result
    calls = [line for line in result.out.splitlines() if line.startswith("sbatch")]
    # What others wait for, these others, and the rest, which waits for nothing.
    first, second, third = scripts(prepared)
    assert [tasks_of(script) for script in (first, second, third)] == [
        [CNN],
        [f"{CAPSNET} {ROUTED}"],
        [CAPSNET.replace("digits", "plain")],
    ]
    folder = prepared.root / "checkpoints"
    name = re.fullmatch(rf"sbatch --parsable {folder}/(submit-\w{{12}}).sbatch", calls[0])
    assert name
    assert calls[1].startswith(f"sbatch --parsable --dependency=afterany:ID-OF-{name[1]} {folder}")
    assert "dependency" not in calls[2]
    assert first.splitlines()[:11] == [
        "#!/bin/bash",
        "#SBATCH --job-name=capsrepro",
        "#SBATCH --array=0-0%3",
        f"#SBATCH --output={folder}/submit-%A_%a.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --export=ALL",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@60",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --partition=a b",
        "tasks=(",
    ]
    assert first.splitlines()[-1] == (
        f"exec {sys.executable} -m capsrepro submit --backend local --devices cpu --per-device 2 "
        "--checkpoint-every 250 --threads 1 ${tasks[$SLURM_ARRAY_TASK_ID]}"
    )
    assert "gres" not in first
    again = prepared.call(*SLURM, *options, "--dry-run")
    assert again.out == result.out  # the same runs, the same names
    assert len(scripts(prepared)) == 3


def test_a_gpu_is_asked_for_where_one_is_wanted(prepared):
    arguments = ("submit", "--backend", "slurm", "--dry-run", "digits/cnn-baseline")
    result = prepared.call(*arguments, "--devices", "cuda", "--json")
    (script,) = scripts(prepared)
    assert "#SBATCH --gres=gpu:1\n" in script
    assert "#SBATCH --array=0-2\n" in script
    assert "--devices cuda --per-device 1 " in script
    assert "cpus-per-task" not in script
    found = json.loads(result.out)
    job_id = re.search(r"submit-\w{12}", result.err)
    assert job_id
    assert [(run["run"], run["state"], run["said"]) for run in found["runs"]] == [
        (f"digits/cnn-baseline/seed-{n}", "planned", f"task {n} of ID-OF-{job_id[0]}")
        for n in (0, 1, 2)
    ]


@pytest.mark.slow
def test_every_task_runs_what_is_its_own(prepared):
    blank = prepared.copy(prepared.root.parent / "it's a folder")
    blank.edit(ask)
    cluster = put_sbatch(blank, CLUSTER)
    result = blank.spawn(*SLURM, "--per-device", "2", "--slurm-option", "--partition=cpu", "--json")
    assert result.code == 0, result
    output = Path(f"{cluster}.output").read_text()
    calls = Path(f"{cluster}.calls").read_text().splitlines()
    assert len(calls) == 3
    assert [call.split(" ")[1] == "--dependency=afterany:7" for call in calls] == [0, 1, 0]
    said = {run["run"]: (run["state"], run["said"]) for run in json.loads(result.out)["runs"]}
    assert said == {
        CNN: ("submitted", "task 0 of 7"),
        CAPSNET: ("submitted", f"task 0 of 8, after {CNN}"),
        ROUTED: ("submitted", f"task 0 of 8, after {CNN}"),
        CAPSNET.replace("digits", "plain"): ("submitted", "task 0 of 9"),
    }
    assert all(read_record(blank.record(run=run)).kind == "train" for run in said)
    assert f"{CNN}: started on cpu (1 of 1)" in output
    assert f"{ROUTED}: started on cpu (2 of 2)" in output
    assert "sbatch" not in blank.spawn(*SLURM).out  # nothing is pending


@pytest.mark.slow
@pytest.mark.fault
def test_a_preempted_task_saves_and_resumes(prepared):
    prepared.edit(lambda params: params["protocols"]["digits"]["recipe"].update(steps=120))
    straight = prepared.copy(prepared.root.parent / "straight")
    reference = straight.start("run", CNN, "--threads", "1")  # beside the other, to save time
    assert prepared.call(*SLURM, CNN, "--dry-run", "--checkpoint-every", "7").code == 0
    (path,) = (prepared.root / "checkpoints").glob("*.sbatch")
    folder = prepared.root / "checkpoints" / CNN

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", path],
            env={**os.environ, **prepared.env, "SLURM_ARRAY_TASK_ID": "0"},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with start() as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("step-*.pt")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no checkpoint after two minutes"
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)  # reaches what `exec` left in the script's place
        result = prepared.finish(process)
    assert result.code == 143, result
    assert "its checkpoint is saved" in result.out
    with start() as process:
        result = prepared.finish(process)
    assert result.code == 0, result
    assert straight.finish(reference).code == 0
    one, other = (read_record(each.record(run=CNN)) for each in (straight, prepared))
    assert one.outputs["weights.safetensors"] == other.outputs["weights.safetensors"]
    assert (one.cost.sessions, other.cost.sessions) == (1, 2)
    # Queued once more for no reason, it has nothing to do.
    with start() as process:
        assert prepared.finish(process).out == "nothing is pending\n"


@pytest.mark.fault
def test_a_cluster_that_refuses(prepared):
    put_sbatch(prepared, REFUSAL)
    result = prepared.call(*SLURM, "digits/cnn-baseline", "--slurm-option", "--partition=gpu")
    words = ("sbatch refuses submit-", "invalid partition specified: gpu", "--slurm-option")
    assert result.is_refusal(1, *words)


@pytest.mark.fault
def test_no_cluster(prepared):
    (prepared.root / "bin").mkdir()
    prepared.env["PATH"] = str(prepared.root / "bin")
    result = prepared.call(*SLURM, "digits/cnn-baseline")
    assert result.is_refusal(1, "no sbatch on PATH", "--dry-run")
    assert not list((prepared.root / "checkpoints").glob("*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "auto"], ["--devices auto does not tell", "--devices cuda or"]),
        (["--devices", "cuda:1"], ["--devices cuda:1 does not tell"]),
        (["--slurm-option", "partition=gpu"], ["'partition=gpu' is no option of sbatch"]),
        (["--slurm-option", "--a\necho"], ["is no option of sbatch"]),
    ],
)
def test_options_that_no_cluster_takes(prepared, options, words):
    assert prepared.call(*SLURM, "digits", *options).is_refusal(2, *words)


def test_bash_reads_the_script(prepared):
    assert shutil.which("bash") is not None
    prepared.call(*SLURM, "digits", "--dry-run")
    (path,) = (prepared.root / "checkpoints").glob("*.sbatch")
    assert subprocess.run(["bash", "-n", path]).returncode == 0
