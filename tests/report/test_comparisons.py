"""Fewer errors than another network, and runs that were matched to one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capsrepro.claims import Claim, load_claims
from capsrepro.config import load_params
from capsrepro.records import MATCHED, Record
from capsrepro.report.comparisons import with_comparisons
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.selection import selection_notes
from capsrepro.report.summaries import Group, group_records
from capsrepro.schema.params import Params

CLAIMS = load_claims()
REDUCTION = "novel_error_reduction_pct"
CNN, CAPSULES = "matcaps-azimuth/cnn-baseline", "matcaps-azimuth/matcaps-em3"
AGAINST = {"against": "cnn-baseline"}


@pytest.fixture(scope="module")
def real() -> Params:
    return load_params(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture
def seen(run_record: Callable[..., Record], real: Params) -> Callable[..., list[Record]]:
    """Make runs by their errors on familiar and on novel views, and what they were matched to."""

    def make(model: str, *errors: tuple[float, ...], **changes: Any) -> list[Record]:
        names = ("familiar_test_error_pct", "novel_test_error_pct", MATCHED)
        counts = {"familiar_test_images": 8_100.0, "novel_test_images": 16_200.0}
        return [
            run_record(
                f"{model}/seed-{seed}",
                counts | dict(zip(names, of_seed, strict=False)),
                **{"params": real, **changes},
            )
            for seed, of_seed in enumerate(errors)
        ]

    return make


@pytest.fixture
def records(seen: Callable[..., list[Record]]) -> list[Record]:
    cnn = seen(CNN, (4.0, 20.0), (3.0, 10.0), (5.0, 25.0))
    # Every seed is compared with its own: the means would give 28.6 %.
    return [*cnn, *seen(CAPSULES, (3.9, 14.0, 96.0), (2.9, 9.0, 97.0), (4.9, 15.0, 95.0))]


def compared(records: list[Record], params: Params, claims: list[Claim] = CLAIMS) -> list[Group]:
    return with_comparisons(group_records(records, params), claims, params)


def group_of(groups: list[Group], model: str) -> Group:
    (found,) = [group for group in groups if f"{group.protocol}/{group.model}" == model]
    return found


def test_errors_are_compared_seed_by_seed(records: list[Record], real: Params) -> None:
    groups = compared(records, real)
    found = group_of(groups, CAPSULES).values(REDUCTION, AGAINST)
    assert found == {0: pytest.approx(30), 1: pytest.approx(10), 2: pytest.approx(40)}
    assert group_of(groups, CAPSULES).values(REDUCTION, {"against": "matcaps-em1"}) == {}
    # Two claims about it would look like a curve, of which a single number says nothing.
    twice = group_of(compared(records, real, [*CLAIMS, *CLAIMS]), CAPSULES)
    assert [len(points) for points in twice.matching(REDUCTION, AGAINST)] == [1]
    # Nobody claims it of the other network, nor of this one elsewhere.
    assert group_of(groups, CNN).values(REDUCTION) == {}
    others = [group for group in groups if group.values(REDUCTION)]
    assert [f"{group.protocol}/{group.model}" for group in others] == [CAPSULES]
    assert not [group for group in compared(records, real, []) if group.values(REDUCTION)]


def test_only_seeds_that_both_have_are_compared(
    seen: Callable[..., list[Record]], real: Params
) -> None:
    records = [
        *seen(CNN, (4.0, 20.0), (0.0, 0.0)),
        *seen(CAPSULES, (4.0, 15.0), (0.0, 1.0), (4, 9)),
    ]
    groups = compared(records, real)
    # Nothing is fewer than no errors at all.
    assert group_of(groups, CAPSULES).values(REDUCTION, AGAINST) == {0: pytest.approx(25)}
    alone = [record for record in records if record.model != "cnn-baseline"]
    assert group_of(compared(alone, real), CAPSULES).values(REDUCTION, AGAINST) == {}


def test_a_published_error_stands_for_the_other_network(
    run_record: Callable[..., Record], real: Params
) -> None:
    """EM18, abstract: 45 and 30 % fewer than the 2.56 % of Cireşan et al."""
    run = "matcaps-smallnorb/matcaps-em3/seed-0"
    groups = compared([run_record(run, {"test_error_pct": 1.8}, params=real)], real)
    found = group_of(groups, "matcaps-smallnorb/matcaps-em3")
    condition = {"against": "ciresan2011", "against_test_error_pct": 2.56}
    assert found.values("error_reduction_pct", condition) == {0: pytest.approx(29.6875)}
    assert found.values("error_reduction_pct", condition | {"against": "others"}) == {}


def test_parameters_are_compared_as_a_factor(
    run_record: Callable[..., Record], real: Params
) -> None:
    """EM18 §2: 15 times fewer than the CNN, 9 times fewer than the 2.7M of Cireşan et al."""
    counts = {"cnn-baseline": 4_253_349.0, "matcaps-em3": 316_650.0, "matcaps-small-em3": 68_618.0}
    records = [
        run_record(f"matcaps-smallnorb/{model}/seed-0", {"parameters": count}, params=real)
        for model, count in counts.items()
    ]
    groups = compared(records, real)
    found = group_of(groups, "matcaps-smallnorb/matcaps-em3")
    assert found.values("parameter_ratio", AGAINST) == {0: pytest.approx(13.43, abs=0.01)}
    others = {"against": "ciresan2011"}
    assert found.values("parameter_ratio", others) == {0: pytest.approx(8.527, abs=0.001)}
    for model in ("cnn-baseline", "matcaps-small-em3"):
        other = group_of(groups, f"matcaps-smallnorb/{model}")
        assert other.values("parameter_ratio", AGAINST) == {}
    alone = group_of(compared(records[1:], real), "matcaps-smallnorb/matcaps-em3")
    assert alone.values("parameter_ratio", AGAINST) == {}
    assert alone.values("parameter_ratio", others) == found.values("parameter_ratio", others)


def judged(groups: list[Group], params: Params) -> dict[str, Judgement]:
    prefix = "hinton2018/smallnorb-azimuth/"
    own = [claim for claim in CLAIMS if claim.id.startswith(prefix)]
    return {one.claim.id.removeprefix(prefix): one for one in judge(own, groups, params)}


def test_every_claim_about_novel_azimuths_is_held_against_the_runs(
    records: list[Record], real: Params
) -> None:
    found = judged(compared(records, real), real)
    assert len(found) == 6
    for one in found.values():
        (candidate,) = one.candidates
        assert candidate.group.protocol == "matcaps-azimuth"
        assert candidate.verdict.ours is not None
        assert candidate.verdict.ours.n == 3
    reduction = found["matcaps-em3/novel-error-reduction"].candidates[0].verdict
    assert reduction.ours is not None
    assert reduction.ours.mean == pytest.approx(80 / 3)
    # From the number of images on which both errors were counted, and the published ones.
    assert reduction.numbers["margin_pp"] == pytest.approx(4.855, abs=1e-3)


def test_runs_whose_match_has_changed_are_not_judged(
    records: list[Record], seen: Callable[..., list[Record]], real: Params
) -> None:
    assert [g.superseded for g in compared(records, real) if g.seeds] == [None, None]
    again = [*seen(CNN, (4.0, 20.0), (3.0, 10.0), (4.5, 25.0)), *records[3:]]
    groups = compared(again, real)
    why = "the accuracy of cnn-baseline, to which it was trained, is another now"
    assert (group_of(groups, CNN).superseded, group_of(groups, CAPSULES).superseded) == (None, why)
    assert {one.status for name, one in judged(groups, real).items() if "matcaps" in name} == {
        "not comparable"
    }
    # So it is when the other run is gone.
    assert group_of(compared(records[1:], real), CAPSULES).superseded == why


def test_selection_on_familiar_test_images_is_told(real: Params) -> None:
    shipped = real.protocols["matcaps-elevation"]
    rule = shipped.recipe.stop
    for every_epochs, every in ((10, " (looking every 10 epochs)"), (1, "")):
        stop = rule and rule.model_copy(update={"every_epochs": every_epochs})
        recipe = shipped.recipe.model_copy(update={"stop": stop})
        end, finding = selection_notes(shipped.model_copy(update={"recipe": recipe}), real)
        assert end.startswith(
            "cnn-baseline was trained to the end; training of every other model ended at the first "
            f"epoch{every} at which it was at least as accurate, seed by seed, on the split "
            "familiar, which is made of test images: this repeats"
        )
        assert end.endswith("The same without it: none.")
        assert "“error, familiar views” was selected so, but for cnn-baseline, and is no" in finding


def test_so_is_selection_at_an_accuracy_for_all(real: Params) -> None:
    end, finding = selection_notes(real.protocols["solids-azimuth"], real)
    assert end.startswith(
        "Training ended at the first epoch with an accuracy of 80.00 % or more on the split"
    )
    assert "“error, familiar views” was selected so" in finding


def test_another_accuracy_is_not_the_same_protocol_on_other_images(real: Params) -> None:
    """Only the images that end the training may differ."""
    clean = real.protocols["affnist-clean"]
    stop = clean.recipe.stop.model_copy(update={"accuracy_pct": 98.0, "every_epochs": 2})
    recipe = clean.recipe.model_copy(update={"stop": stop})
    other = clean.model_copy(update={"recipe": recipe})
    protocols = {**real.protocols, "affnist-clean": other}
    changed = real.model_copy(update={"protocols": protocols})
    (note,) = selection_notes(other, changed)
    assert note.startswith(
        "Training ended at the first epoch (looking every 2 epochs) with an accuracy of 98.00 % or "
        "more on 10,000 training images that were held out"
    )
    assert note.endswith("selection on test images: none.")
