"""Ensembles: whose scores are added up, what comes out, and what may be said about it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capsrepro.claims import load_claims
from capsrepro.config import load_params
from capsrepro.errors import CapsreproError
from capsrepro.files import sha256_of_file
from capsrepro.records import Record, write_record
from capsrepro.report.ensembles import with_ensembles
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.page import all_tables
from capsrepro.report.rendering import render
from capsrepro.report.summaries import Group, group_records
from capsrepro.scores import count_errors, count_ties

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
MODEL = "cifar10/capsnet-r3-recon"
CLAIM = "sabour2017/cifar10/capsnet-r3-ensemble7/test-error"
IMAGES = 10_000
RNG = np.random.default_rng(0)

Keep = Callable[..., list[Record]]


def weak_voters(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores of networks that are each right on 60 to 70 % of the images, and the labels."""
    labels = RNG.integers(0, 10, (IMAGES, 1), np.uint8)
    right = np.arange(10) == labels
    voters = [RNG.uniform(0, 0.6, right.shape) + 0.35 * right for _ in range(count)]
    return [np.clip(scores, 0, 1).astype(np.float16) for scores in voters], labels


VOTERS, LABELS = weak_voters(8)


@pytest.fixture
def keep(tmp_path: Path, run_record: Callable[..., Record]) -> Keep:
    """Leave a train record and a scores record with its file, seed by seed."""

    def leave(
        voters: Sequence[np.ndarray] = VOTERS[:7],
        labels: np.ndarray = LABELS,
        model: str = MODEL,
        **changes: Any,
    ) -> list[Record]:
        changes = {"params": PARAMS, **changes}
        records = []
        for seed, scores in enumerate(voters):
            error = 100 * count_errors(scores, labels) / len(labels)
            metrics = {"test_error_pct": error, "test_images": float(len(labels))}
            run = run_record(f"{model}/seed-{seed}", metrics, **changes)
            folder = tmp_path / "runs" / run.run
            folder.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(folder / "scores.npz", scores=scores, labels=labels)
            evaluated = {
                "kind": "scores",
                "inputs": dict(run.outputs),
                "outputs": {"scores.npz": sha256_of_file(folder / "scores.npz")},
            }
            pair = [run, run.model_copy(update=evaluated).sealed()]
            for record in pair:
                write_record(folder, record)
            records += pair
        return records

    return leave


def ensembles(records: list[Record], results: Path, params: Any = PARAMS) -> list[Group]:
    groups = with_ensembles(group_records(records, params), params, results)
    return [group for group in groups if group.members > 1 and group.seeds]


def judged(records: list[Record], results: Path, params: Any = PARAMS) -> Judgement:
    groups = with_ensembles(group_records(records, params), params, results)
    claims = [claim for claim in load_claims("sabour2017") if claim.id == CLAIM]
    (judgement,) = judge(claims, groups, params)
    return judgement


def error_of(group: Group) -> float:
    (error,) = group.values("test_error_pct").values()
    return error


def test_each_wrong_alone_and_right_together(keep: Keep, tmp_path: Path) -> None:
    labels = np.array([[0], [1], [2]], np.uint8)
    right = np.eye(3)
    # Each network fails on one image of its own, and narrowly.
    voters = [right.copy() for _ in range(3)]
    for image, scores in enumerate(voters):
        scores[image] = np.roll(right[image], 1) * 0.5 + right[image] * 0.4
    assert [count_errors(scores, labels) for scores in voters] == [1, 1, 1]
    (group,) = ensembles(keep([v.astype(np.float16) for v in voters], labels), tmp_path)
    assert (group.model, group.stands_for) == ("capsnet-r3-recon-ensemble3", "capsnet-r3-ensemble3")
    assert (group.members, group.seeds, error_of(group)) == (3, (0, 1, 2), 0)
    assert group.values("test_accuracy_pct") == {0: 100}
    assert group.test_images() == 3


def test_lengths_are_added_up_and_not_votes(keep: Keep, tmp_path: Path) -> None:
    """Two networks are narrowly wrong and one is surely right: a majority would be wrong."""
    labels = np.array([[0]], np.uint8)
    voters = [np.array([scores], np.float16) for scores in ([0.4, 0.5], [0.4, 0.5], [0.9, 0.1])]
    (group,) = ensembles(keep(voters, labels), tmp_path)
    assert error_of(group) == 0


def test_two_labels_are_the_two_highest_sums(keep: Keep, tmp_path: Path) -> None:
    labels = np.array([[0, 2], [2, 0]], np.uint8)
    first = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]], np.float16)
    second = np.array([[0.9, 0.1, 0.9], [0.1, 0.9, 0.2]], np.float16)
    (group,) = ensembles(keep([first, second], labels), tmp_path)
    assert error_of(group) == 50


def test_sum_over_many_images_in_any_order(keep: Keep, tmp_path: Path) -> None:
    (group,) = ensembles(keep(), tmp_path)
    total = np.sum([scores.astype(np.float64) for scores in VOTERS[:7]], axis=0)
    expected = 100 * float(np.mean(total.argmax(1) != LABELS[:, 0]))
    assert error_of(group) == pytest.approx(expected)
    (turned,) = ensembles(keep(VOTERS[6::-1]), tmp_path)
    assert error_of(turned) == error_of(group)
    singles = [count_errors(scores, LABELS) / 100 for scores in VOTERS[:7]]
    assert error_of(group) < min(singles)


def test_of_equal_scores_the_lower_class_is_taken() -> None:
    scores = np.array([[0.5, 0.5, 0.1], [0.1, 0.5, 0.5], [0.2, 0.1, 0.1]], np.float16)
    assert count_errors(scores, np.array([[0], [1], [0]], np.uint8)) == 0
    assert count_errors(scores, np.array([[1], [2], [1]], np.uint8)) == 3
    assert count_ties(scores, np.array([[0], [1], [0]], np.uint8)) == 2
    assert count_ties(scores, np.array([[0, 1], [1, 2], [0, 1]], np.uint8)) == 1


def test_seven_stand_trial_and_are_inconclusive(keep: Keep, tmp_path: Path) -> None:
    records = keep()
    judgement = judged(records, tmp_path)
    (candidate,) = judgement.candidates
    assert candidate.group.model == "capsnet-r3-recon-ensemble7"
    verdict = candidate.verdict
    assert (verdict.status, dict(verdict.numbers)) == ("inconclusive", {"members": 7})
    assert verdict.ours is not None
    assert (verdict.ours.n, verdict.ours.sd, verdict.ours.interval) == (1, None, None)
    assert verdict.effect_pp == pytest.approx(error_of(candidate.group) - 10.6)


def test_even_the_very_number_is_not_reproduced(keep: Keep, tmp_path: Path) -> None:
    labels = np.zeros((IMAGES, 1), np.uint8)
    scores = np.tile(np.array([0.9, 0.1], np.float16), (IMAGES, 1))
    scores[:1_060] = scores[:1_060, ::-1]
    records = keep([scores] * 7, labels)
    (group,) = ensembles(records, tmp_path)
    assert error_of(group) == 10.6
    assert judged(records, tmp_path).status == "inconclusive"


@pytest.mark.parametrize("count", [1, 6])
def test_fewer_are_another_ensemble(count: int, keep: Keep, tmp_path: Path) -> None:
    records = keep(VOTERS[:count])
    judgement = judged(records, tmp_path)
    assert (judgement.candidates, judgement.status) == ((), "not run")
    assert judgement.verdict is not None
    assert judgement.verdict.reason == "no finished run of capsnet-r3-ensemble7"
    names = [group.model for group in ensembles(records, tmp_path)]
    assert names == ([f"capsnet-r3-recon-ensemble{count}"] if count > 1 else [])
    groups = with_ensembles(group_records(records, PARAMS), PARAMS, tmp_path)
    (owed,) = [g for g in groups if g.stands_for == "capsnet-r3-ensemble7" and g.reading == "text"]
    assert (owed.seeds, owed.missing) == ((), tuple(range(count, 7)))


def test_a_seed_that_nobody_asked_for_has_no_vote(keep: Keep, tmp_path: Path) -> None:
    (with_eighth,) = ensembles(keep(VOTERS), tmp_path)
    (without,) = ensembles(keep(), tmp_path)
    assert with_eighth.seeds == without.seeds == tuple(range(7))
    assert error_of(with_eighth) == error_of(without)
    assert with_eighth.model.endswith("ensemble7")


def test_scores_of_older_weights_have_no_vote(keep: Keep, tmp_path: Path) -> None:
    records = keep()
    stale = records[1].model_copy(update={"inputs": {"weights.safetensors": "9" * 64}})
    (group,) = ensembles([records[0], stale, *records[2:]], tmp_path)
    assert group.seeds == (1, 2, 3, 4, 5, 6)


def test_a_short_budget_is_not_comparable(keep: Keep, tmp_path: Path) -> None:
    protocol = PARAMS.protocols["cifar10"]
    recipe = protocol.recipe.model_copy(update={"steps": 6_000})
    protocols = {"cifar10": protocol.model_copy(update={"recipe": recipe})}
    short = PARAMS.model_copy(update={"protocols": protocols})
    judgement = judged(keep(params=short), tmp_path, short)
    assert judgement.status == "not comparable"


@pytest.mark.parametrize("count", [3, 7])
def test_a_superseded_ensemble_stays_and_is_not_comparable(
    count: int, keep: Keep, tmp_path: Path
) -> None:
    records = keep(VOTERS[:count])
    newer = PARAMS.protocols["cifar10"].model_copy(update={"version": "1.1"})
    later = PARAMS.model_copy(update={"protocols": {**PARAMS.protocols, "cifar10": newer}})
    (group,) = ensembles(records, tmp_path, later)
    assert group.superseded == "protocol version 1.0 is now 1.1"
    both = with_ensembles(group_records(records, later), later, tmp_path)
    owed = [g.version for g in both if g.members == 7 and g.reading == "text" and not g.seeds]
    assert owed == ["1.1"]
    candidates = judged(records, tmp_path, later).candidates
    assert [c.verdict.status for c in candidates] == ["not comparable"] * (count == 7)


def test_the_text_comes_before_the_code(keep: Keep, tmp_path: Path) -> None:
    code = keep(model="cifar10-code/capsnet-r3-code")
    records = code + keep()
    names = [f"{c.group.protocol}/{c.group.model}" for c in judged(records, tmp_path).candidates]
    assert names == [f"{MODEL}-ensemble7", "cifar10-code/capsnet-r3-code-ensemble7"]


@pytest.mark.fault
@pytest.mark.parametrize("content", [None, b"", b"PK\3\4"])
def test_missing_or_other_scores_are_one_sentence(
    content: bytes | None, keep: Keep, tmp_path: Path
) -> None:
    records = keep()
    path = tmp_path / "runs" / MODEL / "seed-3" / "scores.npz"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(CapsreproError, match=r"scores\.npz.*; restore it with") as caught:
        all_tables(records, [], PARAMS, results=tmp_path)
    assert str(caught.value).endswith(f"run `capsrepro scores {MODEL}/seed-3`.")


def test_whole_scores_of_another_run_are_refused(keep: Keep, tmp_path: Path) -> None:
    records = keep()
    folders = [tmp_path / "runs" / MODEL / f"seed-{seed}" for seed in (1, 2)]
    (folders[0] / "scores.npz").write_bytes((folders[1] / "scores.npz").read_bytes())
    with pytest.raises(CapsreproError, match=r"does not hold the scores its record speaks of"):
        ensembles(records, tmp_path)


def test_a_failed_seed_is_told_once(
    keep: Keep, run_record: Callable[..., Record], tmp_path: Path
) -> None:
    failed = run_record(f"{MODEL}/seed-6", failure="the loss was not finite", params=PARAMS)
    records = [*keep(VOTERS[:6]), failed]
    judgement = judged(records, tmp_path)
    assert judgement.verdict is not None
    assert judgement.verdict.reason == "no finished run of capsnet-r3-ensemble7"
    text = render(all_tables(records, [], PARAMS, ["cifar10"], tmp_path)["cifar10"], "md")
    assert text.count("the loss was not finite") == 1


def test_the_table_says_what_one_ensemble_is_worth(keep: Keep, tmp_path: Path) -> None:
    records = keep()
    claims = [claim for claim in load_claims("sabour2017") if claim.id == CLAIM]
    tables = all_tables(records, claims, PARAMS, ["cifar10"], tmp_path)
    (table,) = json.loads(render(tables["cifar10"], "json"))["tables"]
    rows = {row["model"]["name"]: row for row in table["rows"]}
    single, ensemble = rows["capsnet-r3-recon"], rows["capsnet-r3-recon-ensemble7"]
    assert single["test_error_pct"]["n"] == 7
    assert single["test_error_pct"]["sd"] > 0
    assert single["published"] is None
    assert ensemble["seeds"]["n"] == 7
    assert (ensemble["test_error_pct"]["n"], ensemble["test_error_pct"]["sd"]) == (1, None)
    assert ensemble["published"]["claim"] == CLAIM
    assert ensemble["verdict"] == "inconclusive"
    text = render(tables["cifar10"], "md")
    assert "inconclusive: one ensemble of 7 seeds has no spread" in text
    assert "the scores of 7 seeds are added up image by image" in text
    claimed = render(tables["claims"], "md")
    assert "cifar10/capsnet-r3-recon-ensemble7" in claimed


def npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.fault
@pytest.mark.parametrize(
    "content",
    [
        npz(scores=np.array([{}], object), labels=LABELS),  # a pickle
        npz(labels=LABELS),
        b"PK\3\4",
        b"",
    ],
    ids=["pickle", "no scores", "no archive", "empty"],
)
def test_a_file_without_scores_is_one_sentence_whatever_its_record_says(
    content: bytes, keep: Keep, tmp_path: Path
) -> None:
    records = keep()
    path = tmp_path / "runs" / MODEL / "seed-0" / "scores.npz"
    path.write_bytes(content)
    outputs = {"scores.npz": sha256_of_file(path)}
    records[1] = records[1].model_copy(update={"outputs": outputs})
    with pytest.raises(CapsreproError, match=r"scores\.npz holds no class scores.*; restore it"):
        ensembles(records, tmp_path)
