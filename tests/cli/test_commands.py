from __future__ import annotations

import csv
import io
import json
import os
import socket
from pathlib import Path

import pytest

from capsrepro.claims import load_claims
from capsrepro.data import fetch
from capsrepro.files import sha256_of_file
from capsrepro.records import read_record, write_record
from capsrepro.running import control

RUN = "digits/capsnet-r3-recon/seed-0"
WEIGHTS = f"checkpoints/{RUN}/weights.safetensors"


def test_run_leaves_record_history_and_weights(trained):
    record = read_record(trained.record())
    weights, history = trained.root / WEIGHTS, trained.record().with_name("history.jsonl")
    assert (record.run, record.status, record.budget.steps) == (RUN, "finished", 40)
    assert record.outputs == {
        "weights.safetensors": sha256_of_file(weights),
        "history.jsonl": sha256_of_file(history),
    }
    beside = weights.with_name("weights.safetensors.sha256").read_text()
    assert beside == f"{record.outputs['weights.safetensors']}  weights.safetensors\n"
    epochs = [json.loads(line) for line in history.read_text().splitlines()]
    assert [epoch["step"] for epoch in epochs] == [21, 40]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    assert record.metrics["train_loss"] == epochs[-1]["train_loss"]
    assert 0 < record.metrics["test_error_pct"] < 80  # chance is 90
    assert record.metrics["test_images"] == 500
    assert not list(weights.parent.glob("step-*.pt"))


@pytest.mark.parametrize("command", [["run", RUN], ["attack", "fgsm", RUN]])
def test_second_call_changes_nothing_and_says_so(trained, command):
    before = {p: p.stat().st_mtime_ns for p in trained.root.rglob("*") if p.suffix == ".json"}
    result = trained.call(*command)
    assert (result.code, result.err) == (0, "")
    assert "nothing to do, its record is current" in result.out
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_attack_without_perturbation_is_the_test(trained):
    run, attack = read_record(trained.record()), read_record(trained.record("fgsm"))
    assert attack.curves["epsilon"] == [0, 8 / 255, 16 / 255, 25 / 255, 50 / 255, 76 / 255]
    assert attack.curves["accuracy_pct"][0] == 100 - run.metrics["test_error_pct"]
    assert attack.curves["accuracy_pct"][-1] < attack.curves["accuracy_pct"][0]
    assert attack.inputs == {"weights.safetensors": run.outputs["weights.safetensors"]}
    assert attack.spec["attack"]["epsilons"][1] == "8/255"


def test_verify_agrees_bit_for_bit(trained):
    result = trained.call("verify", RUN, "--json")
    found = json.loads(result.out)
    assert result.code == 0, result
    assert (found["identical"], found["same_machine"], found["steps"]) == (True, True, 20)
    assert "the same bit for bit" in trained.call("verify", RUN).out


def test_verify_notices_other_losses_behind_a_whole_seal(trained):
    record = read_record(trained.record())
    losses = [loss * (1 + 1e-6) for loss in record.curves["first_losses"]]
    write_record(
        trained.record().parent, record.model_copy(update={"curves": {"first_losses": losses}})
    )
    result = trained.call("verify", RUN)
    assert result.code == 1
    assert "DIFFERS" in result.out


@pytest.mark.parametrize(("share", "agrees"), [(1e-6, True), (1e-2, False)])
def test_another_version_of_the_program_may_round_otherwise(trained, share, agrees):
    record = read_record(trained.record())
    losses = [loss * (1 + share) for loss in record.curves["first_losses"]]
    older = record.code.model_copy(update={"science_digest": "0" * 64})
    changes = {"curves": {"first_losses": losses}, "code": older}
    write_record(trained.record().parent, record.model_copy(update=changes))
    result = trained.call("verify", RUN)
    assert result.code == (0 if agrees else 1)
    assert "on the same machine, by another version of the program" in result.out


def test_pending_shrinks_with_every_record(prepared, trained):
    before = json.loads(prepared.call("pending", "--json").out)
    after = json.loads(trained.call("pending", "--json").out)
    names = [run["run"] for run in before]
    assert len(names) == len(set(names)) == 271
    assert [run["run"] for run in after] == [name for name in names if name != RUN]
    assert prepared.call("pending").out.endswith("271 runs pending\n")


def test_pending_check_fails_until_nothing_is_owed(trained):
    def ask_for_one_run(document):
        document["protocols"] = {"digits": document["protocols"]["digits"]}
        document["protocols"]["digits"] |= {"run_models": [RUN.split("/")[1]], "run_seeds": [0]}

    assert trained.call("pending", "--check").code == 1
    trained.edit(ask_for_one_run)
    result = trained.call("pending", "--check")
    assert (result.code, result.out) == (0, "nothing is pending\n")


def test_report_in_every_format(trained):
    shown = {
        form: trained.call("report", "digits", "--format", form)
        for form in ("md", "latex", "html", "csv", "json")
    }
    error = str(read_record(trained.record()).metrics["test_error_pct"])
    for form, result in shown.items():
        assert (result.code, result.err) == (0, ""), form
        assert error in result.out, form
        assert "capsnet-r3-recon" in result.out, form
    assert shown["md"].out.lstrip().startswith(("#", "|", "*"))
    assert r"\begin{tabular}" in shown["latex"].out
    assert "<table" in shown["html"].out
    assert len(list(csv.reader(io.StringIO(shown["csv"].out)))) > 3
    assert json.loads(shown["json"].out)


def test_claims_lists_every_claim(empty):
    claims = load_claims()
    result = empty.call("claims", "--json")
    assert result.code == 0, result
    (table,) = json.loads(result.out)["tables"]
    assert {row["id"] for row in table["rows"]} == {claim.id for claim in claims}
    assert len(table["rows"]) == len(claims)


# What goes wrong: one sentence, no traceback, the right exit code.


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["run", "nope/capsnet-r3-recon/seed-0"], ["'nope'", "digits, mnist, mnist-short"]),
        (["run", "digits/nope/seed-0"], ["'nope'", "capsnet-r1-recon"]),
        (["run", "digits"], ["'digits' is no run name", "PROTOCOL/MODEL/seed-N"]),
        (["attack", "nope", RUN], ["no attack 'nope'", "it has fgsm", "protocols.digits.attacks"]),
        (["attack", "reconstruct", RUN], ["no attack 'reconstruct'"]),
        (["datasets", "prepare", "nope"], ["no data set nope", "digits, mnist"]),
        (["datasets", "verify", "nope"], ["no data set nope"]),
        (["report", "nope"], ["'nope'", "mnist-short"]),
        (["verify", "digits/capsnet-r3-recon/0"], ["no run name"]),
        (["run", RUN, "--device", "abacus"], ["'abacus'", "cuda:N"]),
    ],
)
def test_unknown_names_are_wrong_usage(prepared, command, words):
    assert prepared.call(*command).is_refusal(2, *words)


@pytest.mark.parametrize("command", [["attack", "fgsm", RUN], ["verify", RUN]])
def test_nothing_can_be_done_before_training(prepared, command):
    assert prepared.call(*command).is_refusal(1, "no record", f"run `capsrepro run {RUN}`")


def test_attack_without_weights(trained):
    trained.record("fgsm").unlink()
    (trained.root / WEIGHTS).unlink()
    command = ("attack", "fgsm", RUN)
    assert trained.call(*command).is_refusal(1, "are not here", f"`capsrepro run {RUN} --weights`")
    sha256 = read_record(trained.record()).outputs["weights.safetensors"]
    assert "nothing to do" not in trained.call("run", RUN, "--weights").out
    assert sha256_of_file(trained.root / WEIGHTS) == sha256
    assert trained.call(*command).code == 0


def test_attack_with_other_weights(trained):
    trained.record("fgsm").unlink()
    content = bytearray((trained.root / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (trained.root / WEIGHTS).write_bytes(content)
    result = trained.call("attack", "fgsm", RUN)
    assert result.is_refusal(1, "does not hold the weights", "--weights")


@pytest.mark.parametrize("command", [["run", RUN], ["attack", "fgsm", RUN]])
def test_second_copy_is_refused_and_names_the_first(trained, command):
    with control.exclusive(trained.root / "checkpoints" / RUN, RUN):
        assert trained.call(*command).is_refusal(1, "already", f"process {os.getpid()}")
    assert trained.call(*command).code == 0


@pytest.mark.parametrize(
    "command", [["run", RUN], ["attack", "fgsm", RUN], ["pending"], ["report"], ["claims"]]
)
def test_damaged_record_is_named(trained, command):
    path = trained.record()
    path.write_text(path.read_text()[:200])
    assert trained.call(*command).is_refusal(1, str(path), "damaged", "git checkout")


def test_edited_record_is_refused(trained):
    path = trained.record()
    path.write_text(path.read_text().replace('"test_errors": ', '"test_errors": 1'))
    assert trained.call("report").is_refusal(1, str(path), "changed after it was written")


def test_no_params(tmp_path, empty):
    (empty.root / "params.yaml").unlink()
    assert empty.call("pending").is_refusal(2, "no params.yaml", str(empty.root))


def test_wrong_params(empty):
    (empty.root / "params.yaml").write_text("margins: 3\n")
    assert empty.call("pending").is_refusal(2, "params.yaml, line 1: margins")


def test_missing_gpu(prepared):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    result = prepared.call("run", RUN, "--device", "cuda")
    assert result.is_refusal(1, "device cuda is not here", "--device cpu")


def test_a_cpu_leaves_no_record_of_tf32(empty):
    result = empty.call("run", "mnist-precision-tf32/capsnet-r3-recon/seed-0")
    assert result.is_refusal(2, "device cpu has no TF32", "--device")
    assert not list(empty.root.rglob("*.json"))
    assert not (empty.root / "data").exists()


@pytest.mark.fault
def test_data_out_of_reach(empty, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        # A proxy that is not there: the official servers are out of reach too.
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, nowhere)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setattr(fetch, "RETRY_PAUSES_S", ())
        empty.env["CAPSREPRO_MIRROR"] = nowhere
        for command in (["datasets", "prepare", "mnist"], ["run", "mnist-short/capsnet-r1/seed-0"]):
            result = empty.call(*command)
            assert result.code == 1
            *progress, refusal = result.err.splitlines()
            assert all(": 9,912,422 bytes from http" in line for line in progress)
            assert all(
                word in refusal
                for word in ("capsrepro: ", nowhere, "train-images-idx3-ubyte.gz", "SHA-256")
            )
    assert not list((empty.root / "data").rglob("*.gz"))


def test_unwritable_results(prepared):
    blocked = prepared.root / "blocked"
    blocked.write_text("a file where a folder should be\n")
    prepared.env["CAPSREPRO_RESULTS"] = str(blocked)
    assert prepared.call("run", RUN).is_refusal(1, "cannot write", str(blocked))


def test_folders_move_with_the_environment(trained, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    trained.env["CAPSREPRO_RESULTS"] = str(elsewhere)
    assert RUN in trained.call("pending").out
    trained.env["CAPSREPRO_RESULTS"] = ""  # set but empty: the default
    assert RUN not in trained.call("pending").out
