from __future__ import annotations

import json
import shutil
import time

import pytest

from capsrepro.errors import CapsreproError
from capsrepro.files import sha256_of_file
from capsrepro.records import read_history, read_record, write_record

RUN = "digits/capsnet-r3-recon/seed-0"
BASELINE = "digits/cnn-baseline/seed-0"


def _recipe(**changes):
    def change(document):
        digits = document["protocols"]["digits"]
        digits["recipe"] = digits["recipe"] | changes

    return change


@pytest.mark.parametrize("run", [RUN, BASELINE])
def test_same_seed_gives_the_same_bits(prepared, tmp_path, run):
    other = prepared.copy(tmp_path / "other")
    for workplace in (prepared, other):
        assert workplace.call("run", run).code == 0
    here, there = (read_record(place.record(run=run)) for place in (prepared, other))
    assert here.outputs["weights.safetensors"] == there.outputs["weights.safetensors"]
    assert here.metrics == there.metrics
    assert here.curves == there.curves
    assert (here.spec_digest, here.data) == (there.spec_digest, there.data)


def test_another_seed_gives_others(trained):
    assert trained.call("run", RUN.replace("seed-0", "seed-1")).code == 0
    first = read_record(trained.record())
    second = read_record(trained.record(run=RUN.replace("seed-0", "seed-1")))
    assert first.outputs["weights.safetensors"] != second.outputs["weights.safetensors"]
    assert first.curves["first_losses"][0] != second.curves["first_losses"][0]


def test_record_says_where_it_comes_from(trained):
    record = read_record(trained.record())
    manifest = json.loads((trained.root / "results" / "datasets" / "digits.json").read_text())
    assert record.data.digest == manifest["digest"]
    assert (record.budget.steps, record.budget.fraction) == (40, 1)
    assert len(record.code.science_digest) == 64
    assert record.environment.versions["torch"]
    assert record.environment.deterministic
    assert record.cost.sessions == 1
    assert record.cost.wall_time_s > 0
    assert len(record.curves["first_losses"]) == 20
    # Outside a clone there is no commit to name.
    assert record.code.git_commit is None


@pytest.mark.parametrize("run", [RUN, BASELINE])
def test_divergence_is_a_failed_record_and_is_not_retried(prepared, run):
    prepared.edit(_recipe(learning_rate=1e30))
    result = prepared.call("run", run)
    assert (result.code, result.err) == (0, "")
    record = read_record(prepared.record(run=run))
    assert record.status == "failed"
    assert record.failure is not None
    assert 0 < record.failure.step == record.budget.steps <= 40
    assert record.metrics == {}
    assert 0 < len(record.curves["first_losses"]) < 20
    assert f"failed at step {record.failure.step}: the loss was not finite" in result.out

    before = prepared.record(run=run).read_bytes()
    assert "nothing to do" in prepared.call("run", run).out
    assert prepared.record(run=run).read_bytes() == before
    assert run not in prepared.call("pending").out

    # The pipeline goes on: the attack leaves a record that says the same.
    attacked = prepared.call("attack", "fgsm", run)
    assert attacked.code == 0
    assert "not attacked, its training failed: the loss was not finite" in attacked.out
    assert read_record(prepared.record("fgsm", run=run)).failure == record.failure
    assert "nothing to do" in prepared.call("attack", "fgsm", run).out
    report = prepared.call("report", "digits")
    assert report.code == 0
    assert "failed 0" in report.out


def test_changed_recipe_makes_the_run_stale_and_it_is_trained_again(trained):
    before = read_record(trained.record())
    trained.edit(_recipe(learning_rate=0.002))
    assert f"{RUN}: its specification in params.yaml has changed" in trained.call("pending").out
    refused = trained.call("attack", "fgsm", RUN)
    assert refused.is_refusal(1, "its specification in params.yaml has changed")
    result = trained.call("run", RUN)
    assert result.code == 0
    assert "nothing to do" not in result.out
    after = read_record(trained.record())
    assert after.outputs["weights.safetensors"] != before.outputs["weights.safetensors"]
    assert RUN not in trained.call("pending").out
    assert "nothing to do" not in trained.call("attack", "fgsm", RUN).out
    attack = read_record(trained.record("fgsm"))
    assert attack.inputs["weights.safetensors"] == after.outputs["weights.safetensors"]


def test_changed_preparation_makes_the_run_stale(trained):
    trained.edit(lambda document: document["datasets"]["digits"].update(split_seed=1))
    before = read_record(trained.record()).data.digest
    assert RUN in trained.call("pending").out
    assert trained.call("run", RUN).code == 0
    assert read_record(trained.record()).data.digest != before


def test_changed_attack_leaves_the_training_alone(trained):
    def one_epsilon(document):
        document["protocols"]["digits"]["attacks"] = {
            "fgsm": {
                "models": ["capsnet-r3-recon"],
                "method": "fgsm",
                "loss": "cross-entropy",
                "epsilons": ["1/255"],
            }
        }

    trained.edit(one_epsilon)
    assert RUN not in trained.call("pending").out
    before = trained.record().read_bytes()
    result = trained.call("attack", "fgsm", RUN)
    assert "accuracy under fgsm on the cross-entropy loss" in result.out
    assert "at ε = 1/255;" in result.out
    assert len(read_record(trained.record("fgsm")).curves["accuracy_pct"]) == 1
    assert trained.record().read_bytes() == before


def test_unprepared_data_do_not_make_a_record_stale(trained):
    """A fresh clone has our records and no data: it must not train anything."""
    for path in (trained.root / "data").rglob("*.*"):
        path.unlink()
    assert "nothing to do" in trained.call("run", RUN).out
    assert not list((trained.root / "data").rglob("*.npz"))


def test_index_has_the_seals_of_judged_protocols_only(trained):
    index = trained.root / "results" / "index.json"
    assert json.loads(index.read_text()) == {}

    def judge(document):
        digits = document["protocols"]["digits"]
        document["protocols"]["judged"] = digits | {"judged_as": "mnist"}

    trained.edit(judge)
    run = RUN.replace("digits/", "judged/")
    assert trained.call("run", run).code == 0
    assert trained.call("attack", "fgsm", run).code == 0
    assert json.loads(index.read_text()) == {
        f"{run}/fgsm": read_record(trained.record("fgsm", run)).seal,
        f"{run}/train": read_record(trained.record(run=run)).seal,
    }


def test_a_damaged_record_of_another_run_is_named_when_the_index_is_written(trained):
    trained.edit(lambda d: d["protocols"]["digits"].update(judged_as="mnist"))
    trained.record("fgsm").write_text("{")
    result = trained.call("run", BASELINE)
    assert result.is_refusal(1, str(trained.record("fgsm")), "damaged")
    # The run itself is safe, and the next call mends the index.
    trained.record("fgsm").unlink()
    assert "nothing to do" in trained.call("run", BASELINE).out
    index = json.loads((trained.root / "results" / "index.json").read_text())
    assert sorted(index) == [f"{RUN}/train", f"{BASELINE}/train"]


def test_other_weights_are_trained_again_on_request(trained):
    weights = trained.root / "checkpoints" / RUN / "weights.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(b"others")
    assert "nothing to do" in trained.call("run", RUN).out
    assert "nothing to do" not in trained.call("run", RUN, "--weights").out
    assert weights.read_bytes() == right
    assert "nothing to do" in trained.call("run", RUN, "--weights").out


@pytest.mark.slow
def test_a_checkpoint_of_another_origin_is_not_resumed(prepared):
    """Half a run on other threads would make a record that names only the second half."""
    process = prepared.start("run", RUN, "--checkpoint-every", "1", "--threads", "1")
    folder = prepared.root / "checkpoints" / RUN
    while not list(folder.glob("step-*.pt")):
        assert process.poll() is None, "it ended before its first checkpoint"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    other = prepared.spawn("run", RUN, "--threads", "2")
    assert "starting anew" in other.out
    assert read_record(prepared.record()).cost.sessions == 1
    assert read_record(prepared.record()).environment.threads == 2


def test_a_damaged_history_is_refused(trained):
    history = trained.record().with_name("history.jsonl")
    history.write_text(history.read_text().replace("0.", "1.", 1))
    with pytest.raises(CapsreproError, match=r"history.jsonl is not the history that its record"):
        read_history(history.parent, read_record(trained.record()))


def test_a_model_too_large_for_the_images_is_one_sentence(prepared):
    def widen(document):
        document["models"]["digits"]["capsnet-r3-recon"]["conv1_kernel"] = 9

    prepared.edit(widen)
    assert prepared.call("run", RUN).is_refusal(1, "does not fit the images of digits")


def test_weights_are_those_of_the_record(trained):
    weights = trained.root / "checkpoints" / RUN / "weights.safetensors"
    assert sha256_of_file(weights) == read_record(trained.record()).outputs[weights.name]


def test_attack_is_done_again_when_the_same_run_has_other_weights(trained):
    """As after training on another machine: the same specification, other bits."""
    other = RUN.replace("seed-0", "seed-1")
    assert trained.call("run", other).code == 0
    weights = trained.root / "checkpoints" / RUN / "weights.safetensors"
    shutil.copy(trained.root / "checkpoints" / other / weights.name, weights)
    record = read_record(trained.record())
    outputs = record.outputs | {weights.name: sha256_of_file(weights)}
    write_record(trained.record().parent, record.model_copy(update={"outputs": outputs}))
    before = read_record(trained.record("fgsm"))
    assert "nothing to do" not in trained.call("attack", "fgsm", RUN).out
    after = read_record(trained.record("fgsm"))
    assert after.inputs == {weights.name: outputs[weights.name]} != before.inputs
    assert after.curves != before.curves
