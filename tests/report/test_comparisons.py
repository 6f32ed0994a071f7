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


EPSILONS = {0.0: 0.0, 0.1: 0.1, 0.2: 0.2}
ATTACK = {"epsilon_unit": "standardised-pixels"}
SMALLNORB = ("matcaps-smallnorb/cnn-baseline", "matcaps-smallnorb/matcaps-em3")
DECADES, ADVANTAGE = "gradient_orders_of_magnitude_smaller", "black_box_accuracy_advantage_pp"
CONDITIONS = {claim.metric: claim.condition for claim in CLAIMS if claim.judged}


@pytest.fixture
def under_attack(
    run_record: Callable[..., Record], attacked: Callable[..., Record], real: Params
) -> Callable[..., list[Record]]:
    """Make three runs of each of two networks and an attack on them, by seed of CNN and capsules.

    `gradients` are the mean norms of their gradients, `accuracies` those of transferred images.
    """

    def make(
        gradients: tuple[list[float], list[float]] | None = None,
        accuracies: tuple[list[float], list[float]] | None = None,
        **attack: Any,
    ) -> list[Record]:
        records = []
        for place, model in enumerate(SMALLNORB):
            for seed in range(3):
                counts = {"test_error_pct": 2.0, "test_images": 24_300.0}
                run = run_record(f"{model}/seed-{seed}", counts, params=real)
                changes: dict[str, Any] = {"loss": ("cross-entropy", "spread")[place]}
                told = ATTACK | attack
                if gradients:
                    norm = {"gradient_l2_mean": gradients[place][seed]}
                    changes["metrics"] = norm | {"test_images": 1_000.0}
                if accuracies:
                    value = accuracies[place][seed]
                    curve = [99.0 - place, value, value - 10 * place]
                    changes["curves"] = {"epsilon": list(EPSILONS), "transfer_accuracy_pct": curve}
                    source = f"matcaps-smallnorb/{attack['source_model']}/seed-{(seed + 1) % 3}"
                    told |= {"source": source}
                records += [run, attacked(run, EPSILONS, attack=told, **changes)]
        return records

    return make


def found_in(records: list[Record], params: Params, metric: str) -> list[dict[int, float]]:
    """What claims of that metric are held against, point by point; of the first setting."""
    capsules = group_of(compared(records, params), SMALLNORB[1])
    settings = capsules.matching(metric, CONDITIONS[metric])
    return [dict(point.values) for point in settings[0]] if settings else []


def test_gradients_are_compared_by_orders_of_magnitude(
    under_attack: Callable[..., list[Record]], real: Params
) -> None:
    gradients = ([1.0, 10.0, 0.5], [0.01, 0.01, 5.0])
    records = under_attack(gradients)
    # Each of its own seed, though each network followed a loss of its own.
    (decades,) = found_in(records, real, DECADES)
    assert decades == {0: pytest.approx(2), 1: pytest.approx(3), 2: pytest.approx(-1)}
    # Not those of raw pixels, of several steps or of targets.
    for other in ({"epsilon_unit": "raw-pixels"}, {"method": "bim"}, {"goal": "targeted"}):
        assert found_in(under_attack(gradients, **other), real, DECADES) == []
    # Nothing is any number of times smaller than a gradient that is 0.
    gone = under_attack(([1.0, 0.0, 1.0], [0.1, 0.1, 0.0]))
    assert found_in(gone, real, DECADES) == [{0: pytest.approx(1)}]


def test_transferred_images_are_compared_at_every_epsilon(
    under_attack: Callable[..., list[Record]], real: Params
) -> None:
    records = under_attack(
        None,
        ([60.0, 61.0, 0.0], [62.0, 61.0, 3.0]),
        name="transfer-cnn",
        method="bim",
        source_model="cnn-baseline",
    )
    # Not where ε is 0: there is no attack. An accuracy of 0 is one like any other. Each seed had
    # its images from another run, and they belong together all the same.
    assert found_in(records, real, ADVANTAGE) == [
        {0: 2.0, 1: 0.0, 2: 3.0},
        {0: -8.0, 1: -10.0, 2: -7.0},
    ]
    from_capsules = under_attack(
        None, ([60.0] * 3, [60.0] * 3), name="transfer-caps", source_model="matcaps-em3"
    )
    assert found_in(from_capsules, real, ADVANTAGE) == []
    alone = [record for record in records if record.model != "cnn-baseline"]
    assert found_in(alone, real, ADVANTAGE) == []


def test_the_margin_of_an_attack_is_of_the_images_that_it_attacked(
    under_attack: Callable[..., list[Record]], real: Params
) -> None:
    records = under_attack(
        ([1.0] * 3, [1.0] * 3),
        ([60.0, 61.0, 62.0], [60.0, 61.0, 62.0]),
        name="transfer-cnn",
        source_model="cnn-baseline",
    )
    claims = [claim for claim in CLAIMS if claim.judged and claim.metric == ADVANTAGE]
    (judgement,) = judge(claims, compared(records, real), real)
    (candidate,) = judgement.candidates
    # 1.96 √2 √2 √(0.25 / 1,000); the capsules are 10 pp worse at the larger ε.
    assert candidate.verdict.numbers["margin_pp"] == pytest.approx(6.198, abs=1e-3)
    assert (judgement.status, candidate.verdict.effect_pp) == ("differs (worse)", -10.0)
