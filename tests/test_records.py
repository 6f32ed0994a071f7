from __future__ import annotations

import json
import math
import re

import pytest
from pydantic import ValidationError

from capsrepro.errors import CapsreproError
from capsrepro.records import (
    Budget,
    Code,
    Cost,
    Data,
    Environment,
    Failure,
    Record,
    find_record,
    read_record,
    read_records,
    record_path,
    stale_reason,
    write_index,
    write_record,
)


def make(run: str = "mnist/capsnet-r1/seed-0", kind: str = "train", **changes) -> Record:
    protocol, model, seed = run.split("/")
    fields = {
        "schema_version": 1,
        "kind": kind,
        "run": run,
        "protocol": protocol,
        "protocol_version": "1.0",
        "model": model,
        "seed": int(seed.removeprefix("seed-")),
        "status": "finished",
        "failure": None,
        "spec": {"recipe": {"learning_rate": 1e-3, "adam_betas": [0.9, 0.999]}, "title": "8×8"},
        "spec_digest": "a" * 64,
        "data": Data(name="mnist", digest="b" * 64),
        "inputs": {},
        "outputs": {"weights.safetensors": "c" * 64},
        "budget": Budget(steps=3, full_steps=9, fraction=1 / 3),
        "metrics": {"test_error_pct": 0.1 + 0.2, "parameters": 6_806_656},
        "curves": {"first_losses": [0.8095712661743164, 5e-324]},
        "code": Code(git_commit="d" * 40, git_dirty=False, science_digest="e" * 64),
        "environment": Environment(
            versions={"torch": "2.11.0", "cuda": None},
            platform="Linux",
            device="a CPU",
            threads=2,
            precision="float32",
            deterministic=True,
        ),
        "cost": Cost(
            wall_time_s=1.5, images_per_s=300, peak_memory_mib=1, energy_j=None, sessions=1
        ),
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    return Record.model_validate(fields | changes)


def test_round_trip_to_the_last_bit(tmp_path):
    record = make()
    path = write_record(tmp_path, record)
    assert path == record_path(tmp_path, "train") == tmp_path / "train.json"
    assert [p.name for p in tmp_path.iterdir()] == ["train.json"]
    found = read_record(path)
    assert found.model_copy(update={"seal": ""}) == record
    assert found.seal_is_whole()
    before = path.read_bytes()
    write_record(tmp_path, found)
    assert path.read_bytes() == before


def test_round_trip_of_a_failure(tmp_path):
    record = make(status="failed", failure=Failure(reason="the loss…", step=7), metrics={})
    assert read_record(write_record(tmp_path, record)).failure == Failure(
        reason="the loss…", step=7
    )


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda d: d["metrics"].update(test_error_pct=0.25), "changed after it was written"),
        (lambda d: d["curves"]["first_losses"].pop(), "changed after it was written"),
        (lambda d: d["spec"]["recipe"].update(learning_rate=2e-3), "changed after it was written"),
        (lambda d: d.update(seal=""), "changed after it was written"),
        (lambda d: d.update(schema_version=2), "is damaged: schema_version: input should be 1"),
        (lambda d: d.pop("cost"), "is damaged: cost: field required"),
        (lambda d: d["budget"].pop("steps"), "is damaged: budget.steps: field required"),
        (lambda d: d.update(comment="mine"), "is damaged: comment: extra inputs"),
        (lambda d: d["metrics"].update(test_error_pct=math.nan), "metrics.test_error_pct: input"),
    ],
)
def test_every_edit_is_noticed(tmp_path, damage, why):
    path = write_record(tmp_path, make())
    edit(path, damage)
    with pytest.raises(CapsreproError) as caught:
        read_record(path)
    said = str(caught.value)
    assert said.startswith(f"record {path} ")
    assert why in said
    assert said.endswith("git checkout`, or delete it and run its `capsrepro run` again.")
    assert "\n" not in said


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_what_is_no_record_is_said(tmp_path, content):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(CapsreproError, match=rf"^record {re.escape(str(path))} is damaged: .*\.$"):
        read_record(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_noticed(tmp_path, share):
    path = write_record(tmp_path, make())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CapsreproError, match="is damaged: it is not JSON"):
        read_record(path)


def test_a_missing_record(tmp_path):
    assert find_record(tmp_path, "train") is None
    with pytest.raises(CapsreproError, match=r"^cannot read record .*: No such file"):
        read_record(tmp_path / "train.json")
    record = make()
    write_record(tmp_path, record)
    assert find_record(tmp_path, "train") == record.sealed()
    assert find_record(tmp_path, "fgsm") is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(value):
    for changes in ({"metrics": {"test_error_pct": value}}, {"curves": {"accuracy_pct": [value]}}):
        with pytest.raises(ValidationError, match="finite number"):
            make(**changes)


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        make().seed = 1  # type: ignore[misc]


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(
        CapsreproError, match=r"^cannot write .*train\.json: Not a directory; .*\.$"
    ):
        write_record(tmp_path / "runs" / "mnist", make())


CURRENT = {"spec_digest": "a" * 64, "data_digest": "b" * 64, "protocol_version": "1.0"}


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({}, None),
        ({"data_digest": None}, None),
        ({"protocol_version": "1.1"}, "protocol version 1.0 is now 1.1"),
        ({"spec_digest": "x"}, "its specification in params.yaml has changed"),
        ({"data_digest": "x"}, "the prepared data have changed"),
        ({"data_digest": None, "spec_digest": "x"}, "its specification in params.yaml has changed"),
        ({"data_digest": "x", "spec_digest": "x", "protocol_version": "2.0"}, "protocol version 1"),
        ({"data_digest": "x", "spec_digest": "x"}, "its specification in params.yaml has changed"),
    ],
)
def test_stale_reason(now, reason):
    found = stale_reason(make(), **(CURRENT | now))
    assert found == reason or (reason is not None and str(found).startswith(reason))
    assert stale_reason(None, **(CURRENT | now)) == "no record"


@pytest.fixture
def results(tmp_path):
    for run in ("mnist/b/seed-1", "mnist/b/seed-0", "mnist/a/seed-2", "digits/c/seed-0"):
        for kind in ("train", "fgsm"):
            write_record(tmp_path / "runs" / run, make(run, kind))
    # What else may lie there is none of its business.
    (tmp_path / "runs" / "mnist" / "b" / "seed-0" / "history.jsonl").write_text("no record\n")
    (tmp_path / "runs" / "mnist" / "notes.json").write_text("no record\n")
    return tmp_path


def test_read_records_sorts_and_chooses(results):
    found = [(record.run, record.kind) for record in read_records(results)]
    assert found == [
        (run, kind)
        for run in ("digits/c/seed-0", "mnist/a/seed-2", "mnist/b/seed-0", "mnist/b/seed-1")
        for kind in ("fgsm", "train")
    ]
    assert {record.protocol for record in read_records(results, ("digits",))} == {"digits"}
    assert len(read_records(results, ("digits", "mnist"))) == 8
    assert read_records(results, ("svhn",)) == []
    assert read_records(results / "nowhere") == []


def test_one_damaged_record_stops_the_reading_of_all(results):
    path = results / "runs" / "mnist" / "a" / "seed-2" / "train.json"
    path.write_text("{")
    with pytest.raises(CapsreproError, match=re.escape(str(path))):
        read_records(results)
    assert len(read_records(results, ("digits",))) == 2


def test_index_lists_seals_and_is_left_alone_when_it_says_the_same(results):
    path = write_index(results, ["mnist"])
    index = json.loads(path.read_text())
    assert list(index) == [
        f"mnist/{run}/{kind}" for run in ("a/seed-2", "b/seed-0", "b/seed-1")
        for kind in ("fgsm", "train")
    ]  # fmt: skip
    assert index["mnist/a/seed-2/train"] == make("mnist/a/seed-2").sealed().seal
    before = path.stat().st_mtime_ns
    assert write_index(results, ["mnist"]) == path
    assert path.stat().st_mtime_ns == before
    write_record(results / "runs" / "mnist/a/seed-2", make("mnist/a/seed-2", metrics={}))
    assert json.loads(write_index(results, ["mnist"]).read_text()) != index
