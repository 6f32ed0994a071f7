"""Several crops as a row of its own: its numbers, its seeds, and the claims it stands trial for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capsrepro.claims import load_claims
from capsrepro.config import load_params
from capsrepro.records import Record
from capsrepro.report.comparisons import with_comparisons
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.multicrop import multicrop_notes, with_multicrops
from capsrepro.report.summaries import Group, group_records

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
MODEL = "matcaps-smallnorb/matcaps-em3"
CLAIM = "hinton2018/smallnorb/matcaps-em3-multicrop/test-error"
SINGLE = [1.8, 1.81, 1.79]
MULTI = [1.4, 1.41, 1.39]

Keep = Callable[..., list[Record]]


@pytest.fixture
def keep(run_record: Callable[..., Record]) -> Keep:
    """A train record and one of its crops for each seed; None: not evaluated."""

    def leave(multi: list[float | None] = [*MULTI], model: str = MODEL, **changes: Any) -> Any:  # noqa: B006
        changes = {"params": PARAMS, **changes}
        records = []
        for seed, (one, many) in enumerate(zip(SINGLE, multi, strict=True)):
            metrics = {"test_error_pct": one, "test_images": 24_300.0, "test_errors": 437.0}
            run = run_record(f"{model}/seed-{seed}", metrics, **changes)
            records.append(run)
            if many is None:
                continue
            crops = {
                "kind": "crops",
                "spec": {**run.spec, "evaluation": {"name": "crops", "offsets_px": [1, 2, 3]}},
                "inputs": dict(run.outputs),
                "outputs": {},
                "metrics": {"test_error_pct": many, "test_images": 24_300.0, "central_errors": 437},
                "curves": {"crops": [1, 5, 9, 13], "test_error_pct": [one, 1.6, 1.5, many]},
            }
            records.append(run.model_copy(update=crops).sealed())
        return records

    return leave


def pair(records: list[Record], params: Any = PARAMS) -> tuple[Group, Group]:
    """The group of the model and that of its crops, which stands behind it."""
    groups = with_multicrops(group_records(records, params), params)
    place = next(n for n, g in enumerate(groups) if f"{g.protocol}/{g.model}" == MODEL)
    return groups[place], groups[place + 1]


def judged(records: list[Record], *claims: str) -> list[Judgement]:
    groups = with_multicrops(group_records(records, PARAMS), PARAMS)
    wanted = [claim for claim in load_claims("hinton2018") if claim.id in claims]
    assert len(wanted) == len(claims)
    return judge(wanted, groups, PARAMS)


def test_the_sum_over_all_crops_is_another_model(keep: Keep) -> None:
    single, multi = pair(keep())
    assert (multi.model, multi.stands_for) == ("matcaps-em3-multicrop", "matcaps-em3-multicrop")
    assert single.values("test_error_pct") == dict(enumerate(SINGLE))
    assert multi.values("test_error_pct") == dict(enumerate(MULTI))
    assert (multi.seeds, multi.missing, multi.test_images()) == ((0, 1, 2), (), 24_300)
    assert (multi.reading, multi.judged_as, multi.budget) == ("text", "smallnorb", 1)
    # The model itself keeps nothing of it, so that no claim about one crop meets thirteen.
    assert [m for m in single.measurements if m.setting] == []
    by_crops = {m.point["crops"]: m.values[2] for m in multi.measurements if m.point}
    assert by_crops == {1: 1.79, 5: 1.6, 9: 1.5, 13: 1.39}


def test_what_crops_cannot_answer_they_do_not(keep: Keep) -> None:
    (multi,) = pair(keep())[1:]
    assert multi.values("test_error_pct", {"evaluation": "crops", "crops": 5}) == dict.fromkeys(
        range(3), 1.6
    )
    assert multi.scores == multi.pictures == {}


def test_seeds_that_were_not_evaluated_are_missing(keep: Keep) -> None:
    single, multi = pair(keep([1.4, None, 1.3]))
    assert single.missing == ()
    assert (multi.seeds, multi.missing) == ((0, 2), (1,))


def test_asked_for_and_not_run_it_is_owed() -> None:
    single, multi = pair([])
    assert single.missing == multi.missing == (0, 1, 2)
    assert (multi.seeds, multi.measurements) == ((), ())


def test_only_models_that_are_asked_for_are_owed(keep: Keep) -> None:
    groups = with_multicrops(group_records([], PARAMS), PARAMS)
    owed = {f"{g.protocol}/{g.model}" for g in groups if g.model.endswith("-multicrop")}
    assert owed == {
        "matcaps-smallnorb/matcaps-em3-multicrop",
        "matcaps-smallnorb-code/matcaps-em3-code-multicrop",
    }
    others = group_records(keep(model="matcaps-smallnorb/matcaps-em2"), PARAMS)
    found = [g for g in with_multicrops(others, PARAMS) if g.model == "matcaps-em2-multicrop"]
    assert [(g.seeds, g.missing) for g in found] == [((0, 1, 2), ())]


def test_crops_of_older_weights_do_not_count(keep: Keep) -> None:
    records = keep()
    stale = records[1].model_copy(update={"inputs": {"weights.safetensors": "9" * 64}})
    _, multi = pair([records[0], stale, *records[2:]])
    assert (multi.seeds, multi.missing) == ((1, 2), (0,))


def test_superseded_crops_stay_behind_their_runs(keep: Keep) -> None:
    newer = PARAMS.protocols["matcaps-smallnorb"].model_copy(update={"version": "1.1"})
    later = PARAMS.model_copy(
        update={"protocols": {**PARAMS.protocols, "matcaps-smallnorb": newer}}
    )
    groups = with_multicrops(group_records(keep(), later), later)
    found = [g for g in groups if f"{g.protocol}/{g.model}" == f"{MODEL}-multicrop"]
    assert [(g.version, g.superseded is None, g.seeds) for g in found] == [
        ("1.1", True, ()),
        ("1.0", False, (0, 1, 2)),
    ]
    # Nobody asks for the crops of runs that nobody asks for.
    groups = with_multicrops(group_records(keep([None] * 3), later), later)
    found = [g for g in groups if f"{g.protocol}/{g.model}" == f"{MODEL}-multicrop"]
    assert [g.version for g in found] == ["1.1"]


def test_it_is_judged_by_its_own_claim_and_the_model_by_its_own(keep: Keep) -> None:
    records = keep()
    multi, single = judged(records, CLAIM, "hinton2018/smallnorb/matcaps-em3/test-error")
    if multi.claim.id != CLAIM:
        multi, single = single, multi
    assert [c.group.model for c in multi.candidates] == ["matcaps-em3-multicrop"]
    assert [c.group.model for c in single.candidates] == ["matcaps-em3"]
    assert multi.verdict is not None
    assert multi.verdict.ours is not None
    assert multi.verdict.ours.mean == pytest.approx(1.4)
    assert multi.status == "reproduced"


def test_several_crops_are_compared_with_one(keep: Keep) -> None:
    (ordering,) = judged(keep(), "hinton2018/smallnorb/matcaps-em3-multicrop-over-matcaps-em3")
    (candidate,) = ordering.candidates
    assert candidate.against is not None
    names = (candidate.group.model, candidate.against.model)
    assert names == ("matcaps-em3-multicrop", "matcaps-em3")
    assert candidate.verdict.effect_pp == pytest.approx(0.4)


def test_the_row_is_compared_with_published_networks_by_its_own_error(keep: Keep) -> None:
    groups = with_multicrops(group_records(keep(), PARAMS), PARAMS)
    compared = with_comparisons(groups, load_claims("hinton2018"), PARAMS)
    found = {g.model: g.values("error_reduction_pct") for g in compared if g.seeds}
    for model, errors in (("matcaps-em3", SINGLE), ("matcaps-em3-multicrop", MULTI)):
        expected = {seed: 100 * (1 - error / 2.56) for seed, error in enumerate(errors)}
        assert found[model] == pytest.approx(expected)


def test_what_was_not_run_is_said(keep: Keep) -> None:
    (judgement,) = judged([], CLAIM)
    assert judgement.verdict is not None
    assert judgement.verdict.reason == "no finished run of matcaps-em3-multicrop"


def test_tables_can_say_how_many_crops_there_were(keep: Keep) -> None:
    groups = with_multicrops(group_records(keep(), PARAMS), PARAMS)
    assert list(multicrop_notes(groups)) == [
        "matcaps-em3-multicrop: every image is classified by 13 crops, whose activations are "
        "divided by their sum and added up."
    ]
