"""Runs that are trained until they are as accurate as another run."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from capsrepro.records import MATCHED, Failure, Record, read_history, read_record, write_record
from capsrepro.training import state

CNN = "digits/cnn-baseline/seed-0"
CAPSNET = "digits/capsnet-r3-recon/seed-0"
# Of the 1,297 digits 273 are held out, so 16 batches of 64 are an epoch.
HELD_OUT, EPOCH = 273, 16
STEPS = 56


def match(**rule: Any):
    """The digits held out decide when a CapsNet is as good as the CNN, within 3.5 epochs."""

    def change(params: dict[str, Any]) -> None:
        stop = {"split": "validation", "accuracy_of": "cnn-baseline", **rule}
        recipe = {"steps": STEPS, "validation_images": HELD_OUT, "stop": stop, "shift_px": 0}
        digits = params["protocols"]["digits"]
        digits["full_steps"] = STEPS
        digits["recipe"] = digits["recipe"] | recipe
        digits["measured"] = {"validation": "validation_error_pct"}
        digits["run_models"] = ["capsnet-r3-recon", "cnn-baseline"]
        digits["run_seeds"] = [0]
        params["protocols"] = {"digits": digits}
        for model in params["models"]["digits"].values():
            small = {"conv1_channels": 8, "primary_types": 4, "decoder_widths": [8, 8]}
            small |= {"conv_channels": [8, 8, 8], "dense_widths": [16]}
            model |= {key: value for key, value in small.items() if key in model}

    return change


@pytest.fixture(scope="session")
def with_cnn_once(prepared_once, tmp_path_factory):
    """The run that the other is matched to is there."""
    workplace = prepared_once.copy(tmp_path_factory.mktemp("matched") / "project")
    workplace.edit(match())
    assert workplace.call("run", CNN).code == 0
    return workplace


@pytest.fixture(scope="session")
def failed_once(with_cnn_once, tmp_path_factory):
    """The other one was to reach 100 %, and did not."""
    workplace = with_cnn_once.copy(tmp_path_factory.mktemp("never") / "project")
    make_wrong(workplace, 0)
    assert workplace.call("run", CAPSNET).code == 0
    return workplace


@pytest.fixture
def with_cnn(with_cnn_once, tmp_path):
    return with_cnn_once.copy(tmp_path / "matched")


@pytest.fixture
def failed(failed_once, tmp_path):
    return failed_once.copy(tmp_path / "failed")


def record(workplace, run: str = CAPSNET) -> Record:
    return read_record(workplace.record(run=run))


def history(workplace, run: str = CAPSNET) -> list[dict[str, float]]:
    return read_history(workplace.record(run=run).parent, record(workplace, run))


def make_wrong(workplace, wrong: int) -> float:
    """Let the record of the CNN have so many errors; returns its accuracy."""
    found = record(workplace, CNN)
    changed = {"validation_error_pct": 100 * wrong / HELD_OUT, "validation_errors": wrong}
    metrics = {"metrics": found.metrics | changed}
    write_record(workplace.record(run=CNN).parent, found.model_copy(update=metrics))
    return 100 - 100 * wrong / HELD_OUT


def pending(workplace) -> dict[str, str]:
    owed = json.loads(workplace.call("pending", "--json").out)
    return {one["run"]: one["reason"] for one in owed}


def timeless(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in entry.items() if k != "images_per_s"} for entry in entries]


def test_the_other_run_trains_all_its_steps(with_cnn):
    found = record(with_cnn, CNN)
    assert (found.budget.steps, found.budget.fraction) == (STEPS, 1)
    assert "stop" not in found.spec["recipe"]
    assert MATCHED not in found.metrics


def test_training_ends_at_the_first_epoch_that_is_as_good(failed):
    whole = history(failed)
    accuracies = [entry["validation_accuracy_pct"] for entry in whole]
    assert [entry["step"] for entry in whole] == [16, 32, 48, 56]
    better = next(i for i, accuracy in enumerate(accuracies) if accuracy > accuracies[0])
    for last in (better, 0):
        wanted = make_wrong(failed, round(HELD_OUT * (1 - accuracies[last] / 100)))
        assert wanted == accuracies[last]  # as good is good enough
        assert failed.call("run", CAPSNET).code == 0
        found = record(failed)
        assert (found.status, found.budget.fraction) == ("finished", 1)
        assert found.budget.steps == found.budget.full_steps == whole[last]["step"]
        assert found.metrics[MATCHED] == wanted
        assert 100 - found.metrics["validation_error_pct"] == wanted
        assert timeless(history(failed)) == timeless(whole[: last + 1])
    # One image more is not.
    make_wrong(failed, round(HELD_OUT * (1 - accuracies[0] / 100)) - 1)
    assert failed.call("run", CAPSNET).code == 0
    assert record(failed).budget.steps > EPOCH


def test_a_training_that_is_never_as_good_is_a_failed_record(failed):
    found = record(failed)
    assert found.failure is not None
    reason = "never reached an accuracy of 100 % on validation, that of cnn-baseline"
    assert (found.failure.reason, found.failure.step) == (reason, STEPS)
    assert (found.status, found.metrics) == ("failed", {MATCHED: 100})
    assert pending(failed) == {}
    assert "nothing to do" in failed.call("run", CAPSNET).out


def test_it_is_looked_at_as_often_as_asked_and_at_the_end(with_cnn):
    with_cnn.edit(match(every_epochs=3))
    make_wrong(with_cnn, HELD_OUT)  # met whenever it is looked at
    assert with_cnn.call("run", CAPSNET).code == 0
    looked = ["validation_accuracy_pct" in entry for entry in history(with_cnn)]
    assert looked == [False, False, True]

    make_wrong(with_cnn, 0)
    assert with_cnn.call("run", CAPSNET).code == 0
    looked = ["validation_accuracy_pct" in entry for entry in history(with_cnn)]
    assert looked == [False, False, True, True]


def test_the_other_run_must_be_there_first(prepared):
    prepared.edit(match())
    refused = prepared.call("run", CAPSNET)
    assert refused.is_refusal(1, f"as accurate as {CNN} (no record)", f"`capsrepro run {CNN}`")
    assert not (prepared.root / "results/runs" / CAPSNET).exists()
    # The order of run_models is another.
    assert list(pending(prepared).items()) == [
        (CNN, "no record"),
        (CAPSNET, f"no record; the run that it is matched to, {CNN}: no record"),
    ]
    # Nor does another seed help.
    seed = CNN.replace("seed-0", "seed-1")
    assert prepared.call("run", seed).code == 0
    assert prepared.call("run", CAPSNET).is_refusal(1, f"as accurate as {CNN} (no record)")


def test_a_failed_run_has_no_accuracy(with_cnn):
    found = record(with_cnn, CNN)
    failure = Failure(reason="the loss was not finite by step 9", step=9)
    changes = {"status": "failed", "failure": failure, "metrics": {}}
    write_record(with_cnn.record(run=CNN).parent, found.model_copy(update=changes))
    why = "its training failed: the loss was not finite by step 9"
    assert with_cnn.call("run", CAPSNET).is_refusal(1, f"as accurate as {CNN} ({why})")
    assert pending(with_cnn) == {CAPSNET: f"no record; the run that it is matched to, {CNN}: {why}"}


def test_a_record_lasts_as_long_as_the_accuracy_that_ended_its_training(failed):
    before = make_wrong(failed, 0)
    make_wrong(failed, 1)
    another = f"the run that it is matched to, {CNN}, has another accuracy now"
    assert pending(failed) == {CAPSNET: another}
    assert make_wrong(failed, 0) == before
    assert pending(failed) == {}

    def wider(params: dict[str, Any]) -> None:
        params["models"]["digits"]["cnn-baseline"]["dense_widths"] = [17]

    failed.edit(wider)
    changed = "its specification in params.yaml has changed"
    assert list(pending(failed).items()) == [
        (CNN, changed),
        (CAPSNET, f"the run that it is matched to, {CNN}: {changed}"),
    ]
    assert failed.call("run", CAPSNET).is_refusal(1, f"{CNN} ({changed})")


def test_a_training_for_another_accuracy_is_not_resumed(with_cnn, monkeypatch):
    """It may have gone past the epoch at which it would have ended."""
    save = state.save_checkpoint

    def save_and_stop(folder: Any, training: Any, key: str) -> None:
        save(folder, training, key)
        if training.step == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupt() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(state, "save_checkpoint", save_and_stop)
            stopped = with_cnn.call("run", CAPSNET, "--checkpoint-every", "20")
        assert stopped.is_refusal(143, "was interrupted at step")

    make_wrong(with_cnn, 0)
    interrupt()
    resumed = with_cnn.call("run", CAPSNET)
    assert "resuming at step 21" in resumed.out
    make_wrong(with_cnn, 1)
    interrupt()
    make_wrong(with_cnn, 2)
    assert "starting anew" in with_cnn.call("run", CAPSNET).out
