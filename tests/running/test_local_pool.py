"""Real runs in real processes; slow, as each process needs seconds to come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from capsrepro.errors import CapsreproError, UsageError
from capsrepro.records import Record, read_record
from capsrepro.running.backends.local_pool import find_devices

CNN, CAPSNET, ROUTED = (
    f"digits/{model}/seed-0" for model in ("cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon")
)
POOL = ("submit", "--devices", "cpu", "--threads", "1", "--per-device", "2")


def ask(runs: Sequence[str], **recipe: Any) -> Callable[[dict[str, Any]], None]:
    """Ask for seed 0 of these models alone."""

    def change(params: dict[str, Any]) -> None:
        digits = params["protocols"]["digits"]
        digits["recipe"] = digits["recipe"] | recipe
        digits["full_steps"] = digits["recipe"]["steps"]
        digits["run_models"] = [run.split("/")[1] for run in runs]
        digits["run_seeds"] = [0]
        params["protocols"] = {"digits": digits}

    return change


def shrink(params: dict[str, Any]) -> None:
    """Models that take no time, where only their order matters."""
    small = {"conv1_channels": 8, "primary_types": 4, "decoder_widths": [8, 8]}
    small |= {"conv_channels": [8, 8, 8], "dense_widths": [16]}
    for model in params["models"]["digits"].values():
        model |= {key: value for key, value in small.items() if key in model}


def match(params: dict[str, Any]) -> None:
    """The CapsNets are trained until they are as good as the CNN on held-out digits."""
    digits = params["protocols"]["digits"]
    stop = {"split": "validation", "accuracy_of": "cnn-baseline"}
    digits["recipe"] |= {"validation_images": 273, "stop": stop, "shift_px": 0}
    digits["measured"] = {"validation": "validation_error_pct"}


def record(workplace, run: str) -> Record:
    return read_record(workplace.record(run=run))


def holder(workplace, run: str) -> int:
    """The process that works on a run."""
    return int((workplace.root / "checkpoints" / run / "lock").read_text())


def gone(process: int) -> bool:
    """Whether it has ended; a zombie has, whoever should reap it."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_until(true: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "not within two minutes"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("request_", "names"), [("cpu", ["cpu"]), ("cpu,cpu", ["cpu"]), ("auto", None)]
)
def test_devices_that_are_here(request_, names):
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    assert find_devices(request_) == (names or cuda or ["cpu"])


@pytest.mark.parametrize("request_", ["abacus", "cpu,", "auto,cpu", "cuda:x"])
def test_devices_that_are_none(request_):
    with pytest.raises(UsageError, match="is no device; use auto, or cpu, cuda and cuda:N"):
        find_devices(request_)


def test_a_device_that_is_not_here():
    with pytest.raises(CapsreproError, match="device cuda:99 is not here"):
        find_devices("cpu,cuda:99")


@pytest.mark.slow
def test_two_at_a_time_and_matched_runs_wait(prepared):
    """The order of run_models would have the matched ones first."""
    prepared.edit(ask([CAPSNET, ROUTED, CNN], steps=40))
    prepared.edit(match)
    prepared.edit(shrink)
    result = prepared.spawn(*POOL)
    lines = result.out.splitlines()
    assert result.code in (0, 1), result  # 1: one was never as good as the CNN, a result too
    events = [line.split(": ")[0:2] for line in lines if line.startswith("digits/")]
    assert [run for run, what in events if what == "started on cpu (1 of 3)"] == [CNN]
    assert [run for run, _ in events[:2]] == [CNN, CNN]  # none beside it
    assert {run for run, _ in events[2:4]} == {CAPSNET, ROUTED}  # both started before one ends
    assert all("started on cpu" in what for _, what in events[2:4])

    alone = prepared.copy(prepared.root.parent / "alone")
    alone.record(run=ROUTED).unlink()
    assert alone.spawn("run", ROUTED, "--threads", "1").code == 0
    one, other = record(alone, ROUTED), record(prepared, ROUTED)
    assert one.outputs["weights.safetensors"] == other.outputs["weights.safetensors"]
    images = sum(record(prepared, run).budget.steps * 64 for run in (CNN, CAPSNET, ROUTED))
    assert lines[-1].startswith(f"{images:,} images in ")
    log = prepared.root / "checkpoints" / CNN / "submit.log"
    assert f"{CNN}: step 40 of 40, loss " in log.read_text()
    assert prepared.call("submit", "digits").out == "nothing is pending\n"


@pytest.mark.slow
@pytest.mark.fault
def test_what_fails_stops_only_what_waits_for_it(prepared):
    prepared.edit(ask([CNN, CAPSNET], steps=40, learning_rates={"cnn-baseline": 1e30}))
    prepared.edit(match)
    prepared.edit(shrink)

    def another(params: dict[str, Any]) -> None:
        plain = params["protocols"]["digits"] | {"run_models": ["capsnet-r1-recon"], "measured": {}}
        recipe = {k: v for k, v in plain["recipe"].items() if k != "stop"}
        plain["recipe"] = recipe | {"learning_rates": {}}
        params["protocols"]["plain"] = plain
        params["protocols"]["dear"] = plain | {"dataset": "affmnist-generated"}

    prepared.edit(another)
    good = CAPSNET.replace("digits/", "plain/")
    # A file stands where the data set's folder should be made.
    (prepared.root / "data" / "prepared" / "affmnist-generated").write_text("")
    result = prepared.spawn(*POOL, "--json")
    assert result.code == 1
    found = json.loads(result.out)
    runs = {run["run"]: run for run in found["runs"]}
    assert runs[good]["state"] == "finished"
    assert record(prepared, good).status == "finished"
    assert (runs[CNN]["state"], runs[CAPSNET]["state"]) == ("failed", "not run")
    assert "the loss was not finite" in runs[CNN]["said"]
    assert runs[CAPSNET]["said"].startswith(f"{CNN}, which it is matched to, FAILED after ")
    dear = runs[CAPSNET.replace("digits/", "dear/")]
    assert (dear["state"], dear["images"]) == ("not run", 0)
    assert "affmnist-generated" in dear["said"]
    assert found["images"] == 64 * (40 + record(prepared, CNN).budget.steps)
    *_, last = result.err.splitlines()
    assert last.startswith(
        f"capsrepro: 3 of 4 runs failed ({CNN}, see checkpoints/{CNN}/submit.log"
    )
    # What diverged has a record; the next call is told so by the run that waits for it.
    again = prepared.spawn(*POOL, CAPSNET)
    assert again.code == 1
    assert f"{CAPSNET}: FAILED after" in again.out
    assert f"{CNN} (its training failed: the loss was not finite" in again.out


@pytest.mark.slow
@pytest.mark.fault
def test_a_killed_run_stops_no_other(prepared):
    prepared.edit(ask([CNN, CAPSNET], steps=120))
    with prepared.start(*POOL, "--checkpoint-every", "5") as process:
        first = prepared.root / "checkpoints" / CNN
        wait_until(lambda: list(first.glob("step-*.pt")), process)
        os.kill(holder(prepared, CNN), signal.SIGKILL)
        result = prepared.finish(process)
    assert result.code == 1
    assert f"{CNN}: FAILED after" in result.out
    assert f"killed by SIGKILL (has the memory run out?) (log {first}/submit.log)" in result.out
    assert f"{CAPSNET}: finished after" in result.out
    # Only what it still had to do is counted as done.
    found = json.loads(prepared.spawn(*POOL, "--json").out)
    (run,) = found["runs"]
    resumed_at = int((first / "submit.log").read_text().split("resuming at step ")[1].split()[0])
    assert (run["run"], run["images"]) == (CNN, 64 * (120 - resumed_at))
    assert resumed_at > 0


@pytest.mark.slow
@pytest.mark.fault
def test_stopped_submissions_end_with_the_same_weights(prepared):
    """By the signals of a cluster and of a person, and by a kill that nobody can catch."""
    runs = [CNN, CNN.replace("seed-0", "seed-1")]
    prepared.edit(ask([CNN], steps=200))
    straight = prepared.copy(prepared.root.parent / "straight")
    arguments = (*POOL, *runs, "--checkpoint-every", "10")
    reference = straight.start(*arguments)  # beside the others, to save time

    def newest() -> list[int]:
        folders = (prepared.root / "checkpoints" / run for run in runs)
        steps = [sorted(folder.glob("step-*.pt")) for folder in folders]
        return [int(paths[-1].stem[5:]) if paths else 0 for paths in steps]

    def stop(how: Callable[[subprocess.Popen[str], list[int]], None]) -> tuple[int, str]:
        before = newest()
        with prepared.start(*arguments) as process:
            wait_until(lambda: all(new > old for new, old in zip(newest(), before, strict=True)))
            children = [holder(prepared, run) for run in runs]
            how(process, children)
            result = prepared.finish(process)
        wait_until(lambda: all(map(gone, children)))
        # Each at the very step of the signal, though it came twice.
        for run, step in zip(runs, newest(), strict=True):
            log = (prepared.root / "checkpoints" / run / "submit.log").read_text()
            assert f"{run} was interrupted at step {step} of 200; its checkpoint is saved" in log
        return result.code, result.err

    def as_a_cluster(process: subprocess.Popen[str], children: list[int]) -> None:
        for each in (*children, process.pid):
            os.kill(each, signal.SIGTERM)

    said = (
        "capsrepro: interrupted; 2 runs were stopped and 0 not started, call the same command "
        "again to resume them.\n"
    )
    assert stop(as_a_cluster) == (143, said)
    assert stop(lambda process, _: process.send_signal(signal.SIGINT)) == (130, said)
    assert stop(lambda process, _: process.kill()) == (-signal.SIGKILL, "")
    result = prepared.spawn(*arguments)
    assert result.code == 0, result
    assert straight.finish(reference).code == 0
    for run in runs:
        one, other = record(straight, run), record(prepared, run)
        assert (one.cost.sessions, other.cost.sessions) == (1, 4)
        assert one.outputs["weights.safetensors"] == other.outputs["weights.safetensors"]
        assert one.curves == other.curves
        assert one.metrics == other.metrics
