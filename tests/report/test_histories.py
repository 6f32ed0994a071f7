"""Which entry of a history answers which moment, and which histories are read at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from complete_results import ROOT, record, train

from capsrepro.claims import Claim
from capsrepro.config import load_params, resolve_run
from capsrepro.errors import CapsreproError
from capsrepro.records import HISTORY, Record
from capsrepro.report.formatting import explain
from capsrepro.report.gathering import gather
from capsrepro.report.histories import with_histories
from capsrepro.report.judging import judge
from capsrepro.report.summaries import group_records

PARAMS = load_params(ROOT / "params.yaml")
MakeClaim = Callable[..., Claim]
MODEL = "mnist-short/capsnet-r10-recon"
# Epochs of 469, 938 and, cut short, 1,000 steps.
ENTRIES = [
    {"step": 469, "epoch": 1.0005, "train_loss": 0.5, "logit_change_2": 1.0},
    {"step": 938, "epoch": 2.001, "train_loss": 0.3, "logit_change_2": 2.0},
    {"step": 1000, "epoch": 2.133, "train_loss": 0.2, "logit_change_2": 4.0},
]
FIRST_LOSSES = [0.9, 0.8]

Condition = Mapping[str, Any]


@pytest.fixture
def about(claim: MakeClaim) -> MakeClaim:
    """A claim on the changes of routing that names a moment."""

    def make(condition: Condition, metric: str = "logit_change", **changes: Any) -> Claim:
        return claim(
            model=changes.pop("model", "capsnet-r10"),
            metric=metric,
            condition=dict(condition),
            test_size=None,
            **changes,
        )

    return make


def run(results: Path, name: str, entries: Sequence[Mapping[str, float]] = ENTRIES) -> Record:
    return train(results, resolve_run(PARAMS, name), entries, FIRST_LOSSES)


def values(results: Path, records: list[Record], claims: list[Claim]) -> dict[int, float]:
    """What the claims' first condition found, by seed."""
    groups = with_histories(group_records(records, PARAMS), claims, results)
    (group,) = [group for group in groups if f"{group.protocol}/{group.model}" == MODEL]
    return group.values(claims[0].metric, claims[0].condition)


@pytest.mark.parametrize(
    ("metric", "condition", "found"),
    [
        # A step of the first ones is its own batch, any other the mean of its epoch.
        ("train_loss", {"step": 0}, 0.9),
        ("train_loss", {"step": 1}, 0.8),
        ("train_loss", {"step": 2}, 0.5),
        ("train_loss", {"step": 469}, 0.5),
        ("train_loss", {"step": 470}, 0.3),
        ("train_loss", {"step": 1000}, 0.2),
        ("train_loss", {"step": 1001}, None),
        ("logit_change", {"step": 0, "iteration": 2}, 1.0),
        # An epoch is the entry that ends nearest, within half of one.
        ("logit_change", {"epoch": 1, "iteration": 2}, 1.0),
        ("logit_change", {"epoch": 2, "iteration": 2}, 2.0),
        ("logit_change", {"epoch": 2.6, "iteration": 2}, 4.0),
        ("logit_change", {"epoch": 2.7, "iteration": 2}, None),
        ("logit_change", {"epoch": 0.4, "iteration": 2}, None),
        ("train_loss", {"epoch": 2}, 0.3),
        # A span is the mean of what ends in it, if training got to its end.
        ("logit_change", {"epoch_from": 1, "epoch_to": 2.2, "iteration": 2}, 7 / 3),
        ("logit_change", {"epoch_from": 2, "epoch_to": 2.5, "iteration": 2}, 3.0),
        ("logit_change", {"epoch_from": 1, "epoch_to": 3, "iteration": 2}, None),
        ("logit_change", {"phase": "start", "iteration": 2}, 1.0),
        # What else is asked must be so.
        ("train_loss", {"step": 2, "batch_size": 128}, 0.5),
        ("train_loss", {"step": 2, "batch_size": 64}, None),
        ("logit_change", {"epoch": 1, "iteration": 3}, None),
        ("train_loss", {"epoch": 1, "attack": "fgsm"}, None),
        ("train_loss", {"epoch": 1, "step": 2}, None),
        ("train_loss", {"phase": "end"}, None),
    ],
)
def test_which_entry_answers(
    tmp_path: Path, about: MakeClaim, metric: str, condition: Condition, found: float | None
) -> None:
    records = [run(tmp_path, f"{MODEL}/seed-0")]
    answer = values(tmp_path, records, [about(condition, metric)])
    assert answer == ({} if found is None else {0: pytest.approx(found)})


def test_seeds_are_told_apart(tmp_path: Path, about: MakeClaim) -> None:
    other = [{**entry, "logit_change_2": 10.0} for entry in ENTRIES]
    records = [run(tmp_path, f"{MODEL}/seed-1", other), run(tmp_path, f"{MODEL}/seed-0")]
    assert values(tmp_path, records, [about({"epoch": 1, "iteration": 2})]) == {0: 1.0, 1: 10.0}


def test_two_claims_on_one_moment_are_one_measurement(tmp_path: Path, about: MakeClaim) -> None:
    records = [run(tmp_path, f"{MODEL}/seed-{seed}") for seed in range(3)]
    claim = about({"epoch": 1, "iteration": 2})
    groups = gather(records, [claim, claim], PARAMS, tmp_path)
    (judgement, _) = judge([claim, claim], groups, PARAMS)
    # Two would look like a curve, of which a single number says nothing.
    assert [one.verdict.ours and one.verdict.ours.mean for one in judgement.candidates] == [1.0]


def test_a_moment_answers_no_other_question(tmp_path: Path, about: MakeClaim) -> None:
    records = [run(tmp_path, f"{MODEL}/seed-0")]
    moment = about({"epoch": 1, "iteration": 2})
    (group,) = [
        group
        for group in with_histories(group_records(records, PARAMS), [moment], tmp_path)
        if group.seeds
    ]
    assert group.values("logit_change", {"epoch": 1, "iteration": 2}) == {0: 1.0}
    for condition in ({}, {"iteration": 2}, {"iteration": 2, "phase": "end"}):
        assert group.matching("logit_change", condition) == [], condition


def routed(trained: Record) -> Record:
    spec = resolve_run(PARAMS, trained.run)
    curves = {"iteration": [1.0, 2.0], "logit_change": [0.3, 0.1]}
    inputs = {"weights.safetensors": trained.outputs["weights.safetensors"]}
    return record(spec, "routing", steps=1000, metrics={}, curves=curves, inputs=inputs)


def test_the_end_is_what_was_evaluated(tmp_path: Path, about: MakeClaim) -> None:
    trained = run(tmp_path, f"{MODEL}/seed-0")
    end, start = about({"phase": "end", "iteration": 2}), about({"phase": "start", "iteration": 2})
    records = [trained, routed(trained)]
    assert values(tmp_path, records, [end, start]) == {0: 0.1}
    assert values(tmp_path, records, [start, end]) == {0: 1.0}
    assert values(tmp_path, records, [about({"iteration": 2}), start]) == {0: 0.1}


def test_training_that_ended_before(tmp_path: Path, about: MakeClaim) -> None:
    longer = [*ENTRIES, {"step": 1500, "epoch": 3.2, "train_loss": 0.1}]
    runs = [run(tmp_path, f"{MODEL}/seed-0"), run(tmp_path, f"{MODEL}/seed-1", longer)]
    # As a rule leaves them that ends the training: what was done is the whole budget.
    whole = [
        one.model_copy(update={"budget": one.budget.model_copy(update={"fraction": 1.0})})
        for one in runs
    ]

    def said(records: list[Record], claim: Claim) -> tuple[str, str]:
        (judgement,) = judge([claim], gather(records, [claim], PARAMS, tmp_path), PARAMS)
        assert judgement.verdict is not None
        return judgement.status, explain(judgement.verdict)

    late = about({"step": 2000}, "train_loss")
    assert said(runs[:1], late) == ("not comparable", "budget 0.00333 of 1")
    why = "training ended at step 1,000, the claim is about step 2,000"
    assert said(whole, late) == ("not comparable", why)
    span = about({"epoch_from": 1, "epoch_to": 9, "iteration": 2})
    why = "training ended at epoch 2.13, the claim is about epoch 9"
    assert said(whole, span) == ("not comparable", why)
    unknown = about({"step": 20}, "margin_loss")
    assert said(whole, unknown) == ("not run", "not measured under this condition")


DAMAGED = "is not the history that its record speaks of; restore it with `git checkout`."


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("{}\n")])
def test_a_history_that_is_needed_must_be_whole(
    tmp_path: Path, about: MakeClaim, spoil: Callable[[Path], Any]
) -> None:
    records = [run(tmp_path, f"{MODEL}/seed-0")]
    path = tmp_path / "runs" / MODEL / "seed-0" / HISTORY
    spoil(path)
    with pytest.raises(CapsreproError) as caught:
        gather(records, [about({"epoch": 1, "iteration": 2})], PARAMS, tmp_path)
    assert str(caught.value) == f"{path} {DAMAGED}"


@pytest.mark.parametrize(
    "changes",
    [
        {"condition": {"iteration": 2}},
        {"condition": {"iteration": 2, "phase": "end"}},
        {"model": "capsnet-r3"},
        {"protocol": "svhn"},
        {"reading": "code"},
        {"cited_from": "Wan et al. 2013"},
    ],
)
def test_no_other_history_is_read(
    tmp_path: Path, about: MakeClaim, changes: dict[str, Any]
) -> None:
    records = [run(tmp_path, f"{MODEL}/seed-0")]
    (tmp_path / "runs" / MODEL / "seed-0" / HISTORY).unlink()
    claim = about(**{"condition": {"epoch": 1, "iteration": 2}, **changes})
    groups = group_records(records, PARAMS)
    assert with_histories(groups, [claim], tmp_path) == groups
