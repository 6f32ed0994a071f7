"""A run that is stopped and resumed ends with the same bits as one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from watching import Watcher

from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import TrainingStream
from capsrepro.data.examples import StoredExamples
from capsrepro.data.preparation import prepare_dataset
from capsrepro.running.assembly import build_model
from capsrepro.schema.augmentation import Augmentation
from capsrepro.training.loop import train
from capsrepro.training.optimisation import make_optimizer
from capsrepro.training.state import (
    TrainingState,
    checkpoint_paths,
    load_checkpoint,
    save_checkpoint,
)

PARAMS_FILE = Path(__file__).parents[2] / "params.yaml"
PARAMS = load_params(PARAMS_FILE)
RECIPE = PARAMS.protocols["digits"].recipe


def new_state(model: str) -> TrainingState:
    network = build_model(resolve_run(PARAMS, f"digits/{model}/seed-0"), torch.device("cpu"))
    return TrainingState(network, make_optimizer(network, RECIPE))


def new_stream() -> TrainingStream:
    """20 items in batches of 8: two of three epochs end within a batch."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 1, 8, 8), np.uint8)
    labels = random.integers(0, 10, (20, 1), np.uint8)
    return TrainingStream(
        StoredExamples(images, labels, torch.device("cpu")),
        batch_size=8,
        augmentation=Augmentation(shift_px=1),
        order_seed=1,
        augmentation_seed=2,
    )


def without_speed(history):
    return [{k: v for k, v in entry.items() if k != "images_per_s"} for entry in history]


def assert_same(one: TrainingState, other: TrainingState) -> None:
    assert (one.step, one.first_losses) == (other.step, other.first_losses)
    assert without_speed(one.history) == without_speed(other.history)
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    ours, theirs = (state.optimizer.state_dict()["state"] for state in (one, other))
    assert ours.keys() == theirs.keys()
    for number, moments in ours.items():
        assert all(torch.equal(moments[key], theirs[number][key]) for key in moments)


# cnn-baseline has dropout: the random state matters. Step 5 ends an epoch, 3 and 7 do not.
@pytest.mark.parametrize("model", ["cnn-baseline", "capsnet-r3-recon"])
@pytest.mark.parametrize("stops", [[5], [3], [7], [3, 4, 7]])
def test_four_epochs_equal_their_parts(tmp_path, model: str, stops: list[int]) -> None:
    recipe = RECIPE.model_copy(update={"steps": 10})
    straight = new_state(model)
    assert train(straight, new_stream(), recipe, Watcher())

    for stop in [*stops, None]:
        state = new_state(model)
        torch.manual_seed(stop or 99)  # a new process starts from another random state
        document = load_checkpoint(tmp_path, "digest")
        if document is None:
            state = new_state(model)
        else:
            state.restore(document)
        assert train(state, new_stream(), recipe, Watcher(stop)) == (stop is None)
        save_checkpoint(tmp_path, state, "digest")
    assert_same(state, straight)
    assert state.sessions == len(stops) + 1


def test_dropout_needs_the_random_state() -> None:
    # What the test above would miss if nothing drew random numbers.
    recipe = RECIPE.model_copy(update={"steps": 3})
    one, other = new_state("cnn-baseline"), new_state("cnn-baseline")
    train(one, new_stream(), recipe, Watcher())
    torch.manual_seed(1)
    train(other, new_stream(), recipe, Watcher())
    assert one.first_losses != other.first_losses


def test_after_a_damaged_checkpoint_the_one_before_gives_the_same_end(tmp_path) -> None:
    recipe = RECIPE.model_copy(update={"steps": 8})
    straight = new_state("cnn-baseline")
    train(straight, new_stream(), recipe, Watcher())

    stopped = new_state("cnn-baseline")
    for stop in (3, 6):
        train(stopped, new_stream(), recipe, Watcher(stop))
        newest = save_checkpoint(tmp_path, stopped, "digest")
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = new_state("cnn-baseline")
    resumed.restore(load_checkpoint(tmp_path, "digest"))
    assert resumed.step == 3
    train(resumed, new_stream(), recipe, Watcher())
    assert_same(resumed, straight)


def test_wall_time_is_that_of_all_sessions(tmp_path) -> None:
    recipe = RECIPE.model_copy(update={"steps": 4})
    first = new_state("cnn-baseline")
    train(first, new_stream(), recipe, Watcher(2))
    first.wall_time_s += 1000
    save_checkpoint(tmp_path, first, "digest")
    second = new_state("cnn-baseline")
    second.restore(load_checkpoint(tmp_path, "digest"))
    train(second, new_stream(), recipe, Watcher())
    assert 1000 < second.wall_time_s < 1100


RUN = "digits/cnn-baseline/seed-0"


class Checkout:
    """A project folder of its own, and `capsrepro run` in it."""

    def __init__(self, root: Path, data: Path) -> None:
        root.mkdir()
        text = PARAMS_FILE.read_text()
        assert text.count("steps: 1500") == 2  # full_steps and steps of digits
        (root / "params.yaml").write_text(text.replace("steps: 1500", "steps: 160"))
        self.root = root
        self.environment = {k: v for k, v in os.environ.items() if k != "DVC_ROOT"} | {
            "CAPSREPRO_CHECKPOINTS": str(root / "checkpoints"),
            "CAPSREPRO_DATA": str(data),
            "CAPSREPRO_DEVICE": "cpu",
            "CAPSREPRO_RESULTS": str(root / "results"),
            "MLFLOW_TRACKING_URI": "off",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("capsrepro"), "run", RUN, "--checkpoint-every", "20"],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def newest_checkpoint(self) -> int:
        paths = checkpoint_paths(self.root / "checkpoints" / RUN)
        return int(paths[0].stem.removeprefix("step-")) if paths else 0

    def stop_after_a_checkpoint(self, number: int) -> tuple[int, str, str]:
        """Start, send the signal once there is a new checkpoint; exit status and output."""
        before = self.newest_checkpoint()
        with self.start() as process:
            deadline = time.monotonic() + 120
            while self.newest_checkpoint() <= before:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "no checkpoint after two minutes"
                time.sleep(0.002)
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
        assert not self.record_path.exists(), "the run was over before the signal came"
        return process.returncode, stdout, stderr

    def finish(self) -> str:
        with self.start() as process:
            stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        return stdout

    @property
    def record_path(self) -> Path:
        return self.root / "results" / "runs" / RUN / "train.json"

    def record(self):
        return json.loads(self.record_path.read_text())


@pytest.mark.slow
def test_killed_terminated_and_interrupted_runs_end_with_the_same_weights(tmp_path) -> None:
    data = tmp_path / "data"
    prepare_dataset("digits", PARAMS.datasets["digits"], data)
    straight, stopped = (Checkout(tmp_path / name, data) for name in ("straight", "stopped"))
    with straight.start() as reference:  # beside the others, to save time
        status, _, stderr = stopped.stop_after_a_checkpoint(signal.SIGKILL)
        assert (status, stderr) == (-signal.SIGKILL, "")
        for number, expected_status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            reached = stopped.newest_checkpoint()
            status, stdout, stderr = stopped.stop_after_a_checkpoint(number)
            assert status == expected_status
            assert f"{RUN}: resuming at step {reached:,}\n" in stdout
            # Saved at the very step of the signal, not at the last multiple of 20.
            assert stderr == (
                f"capsrepro: {RUN} was interrupted at step {stopped.newest_checkpoint()} of 160; "
                f"its checkpoint is saved, run `capsrepro run {RUN}` to resume.\n"
            )
        assert "resuming at step" in stopped.finish()
        stdout, stderr = reference.communicate(timeout=120)
    assert reference.returncode == 0, stderr
    assert "resuming" not in stdout

    one, other = straight.record(), stopped.record()
    assert other["outputs"]["weights.safetensors"] == one["outputs"]["weights.safetensors"]
    assert other["metrics"] == one["metrics"]
    assert other["curves"] == one["curves"]
    assert (one["cost"]["sessions"], other["cost"]["sessions"]) == (1, 4)
    assert other["budget"]["steps"] == 160
    histories = [
        without_speed(map(json.loads, path.with_name("history.jsonl").read_text().splitlines()))
        for path in (straight.record_path, stopped.record_path)
    ]
    assert histories[0] == histories[1]
    # Nothing is left of the checkpoints, and nothing is left to do.
    assert not checkpoint_paths(stopped.root / "checkpoints" / RUN)
