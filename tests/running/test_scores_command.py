"""`capsrepro scores`: what it leaves, what it refuses, and when it is done again."""

from __future__ import annotations

import numpy as np
import pytest

from capsrepro.files import sha256_of_file
from capsrepro.records import read_record, write_record
from capsrepro.scores import count_errors

RUN = "digits/capsnet-r3-recon/seed-0"
BASELINE = "digits/cnn-baseline/seed-0"


def ask(document):
    scores = {"models": ["capsnet-r3-recon"]}
    document["protocols"]["digits"]["evaluations"] = {"scores": scores}


@pytest.fixture
def asked(trained):
    trained.edit(ask)
    return trained


def test_scores_of_a_run_give_its_own_error(asked):
    result = asked.call("scores", RUN)
    assert (result.code, result.err) == (0, "")
    record, run = read_record(asked.record("scores")), read_record(asked.record())
    path = asked.record().with_name("scores.npz")
    assert record.outputs == {"scores.npz": sha256_of_file(path)}
    with np.load(path) as arrays:
        scores, labels = arrays["scores"], arrays["labels"]
    assert (scores.shape, labels.shape) == ((500, 10), (500, 1))
    assert record.metrics["tied_images"] == 0
    assert count_errors(scores, labels) == run.metrics["test_errors"]
    for name in ("test_error_pct", "test_errors", "test_images"):
        assert record.metrics[name] == run.metrics[name]
    assert "nothing to do" in asked.call("scores", RUN).out


def test_other_errors_than_the_record_has_are_refused(asked):
    run = read_record(asked.record())
    more = run.metrics | {"test_errors": run.metrics["test_errors"] + 1}
    write_record(asked.record().parent, run.model_copy(update={"metrics": more}))
    refused = asked.call("scores", RUN)
    assert refused.is_refusal(1, "errors here where its record has", "where it was trained (")
    assert not asked.record("scores").exists()
    assert not asked.record().with_name("scores.npz").exists()


def test_a_missing_file_is_made_again(asked):
    assert asked.call("scores", RUN).code == 0
    path = asked.record().with_name("scores.npz")
    before = path.read_bytes()
    path.unlink()
    assert "nothing to do" not in asked.call("scores", RUN).out
    assert path.read_bytes() == before


def test_scores_that_are_no_lengths_are_refused(asked):
    assert asked.call("run", BASELINE).code == 0
    refused = asked.call("scores", BASELINE)
    assert refused.is_refusal(1, "model cnn-baseline has no class capsules")


def test_what_is_not_asked_for_is_refused(trained):
    refused = trained.call("scores", RUN)
    assert refused.is_refusal(2, "asks for no scores", "protocols.digits.evaluations")


def test_a_failed_run_leaves_a_record_without_scores(prepared):
    def diverge(document):
        ask(document)
        recipe = document["protocols"]["digits"]["recipe"]
        document["protocols"]["digits"]["recipe"] = recipe | {"learning_rate": 1e30}

    prepared.edit(diverge)
    assert prepared.call("run", RUN).code == 0
    assert "not evaluated, its training failed" in prepared.call("scores", RUN).out
    assert read_record(prepared.record("scores")).outputs == {}
    assert prepared.call("report", "digits").code == 0
