"""Which records share a group, and what a group then knows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from capsrepro.records import Budget, Record
from capsrepro.report.summaries import Group, group_records
from capsrepro.schema.params import Params

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
ERRORS = [0.25, 0.26, 0.24]


def found(groups: list[Group], name: str) -> Group:
    (group,) = [g for g in groups if f"{g.protocol}/{g.model}" == name]
    return group


def test_seeds_of_one_model_are_one_group(
    params: Params, trained: MakeAll, on_disk: Callable[[list[Record]], list[Record]]
) -> None:
    records = on_disk(trained("capsnet-r3-recon", ERRORS))
    group = found(group_records(records, params), "mnist/capsnet-r3-recon")
    assert group.values("test_error_pct") == {0: 0.25, 1: 0.26, 2: 0.24}
    assert group.test_images() == 10_000
    assert (group.version, group.budget, group.superseded) == ("1.0", 1.0, None)
    assert (group.reading, group.stands_for, group.judged_as) == (
        "text",
        "capsnet-r3-recon",
        "mnist",
    )
    assert (group.seeds, group.missing, group.failed) == ((0, 1, 2), (), {})


def test_what_was_asked_for_and_not_run_is_there_too(params: Params) -> None:
    groups = group_records([], params)
    assert [f"{g.protocol}/{g.model}" for g in groups] == [
        f"{protocol}/{model}"
        for protocol in ("mnist", "mnist-short")
        for model in ("cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon")
    ]
    assert all(g.missing == (0, 1, 2) and g.seeds == () for g in groups)
    assert found(groups, "mnist-short/cnn-baseline").budget == pytest.approx(1 / 150)


def test_failed_and_missing_seeds_are_told_apart(params: Params, run_record: Make) -> None:
    records = [
        run_record("mnist/capsnet-r3-recon/seed-0", {"test_error_pct": 0.25}),
        run_record("mnist/capsnet-r3-recon/seed-1", failure="loss is NaN"),
    ]
    group = found(group_records(records, params), "mnist/capsnet-r3-recon")
    assert (group.seeds, dict(group.failed), group.missing) == ((0,), {1: "loss is NaN"}, (2,))


def test_a_failed_run_does_not_shrink_the_budget(params: Params, run_record: Make) -> None:
    early = Budget(steps=120, full_steps=300_000, fraction=120 / 300_000)
    failed = run_record("mnist/capsnet-r3-recon/seed-0", failure="loss is NaN", budget=early)
    finished = run_record("mnist/capsnet-r3-recon/seed-1", {"test_error_pct": 0.25})
    for records in ([failed], [failed, finished]):
        assert found(group_records(records, params), "mnist/capsnet-r3-recon").budget == 1


def test_versions_never_share_a_group(params: Params, trained: MakeAll) -> None:
    newer = params.protocols["mnist"].model_copy(update={"version": "1.1"})
    later = params.model_copy(update={"protocols": {**params.protocols, "mnist": newer}})
    records = trained("capsnet-r3-recon", [0.5] * 3) + trained(
        "capsnet-r3-recon", ERRORS, params=later
    )
    groups = [g for g in group_records(records, later) if g.model == "capsnet-r3-recon"]
    mnist = [g for g in groups if g.protocol == "mnist"]
    assert [(g.version, g.superseded) for g in mnist] == [
        ("1.1", None),
        ("1.0", "protocol version 1.0 is now 1.1"),
    ]
    assert list(mnist[1].values("test_error_pct").values()) == [0.5] * 3


def test_specifications_never_share_a_group(params: Params, trained: MakeAll) -> None:
    mnist = params.protocols["mnist"]
    faster = mnist.recipe.model_copy(update={"learning_rate": 0.01})
    protocols = {**params.protocols, "mnist": mnist.model_copy(update={"recipe": faster})}
    other = params.model_copy(update={"protocols": protocols})
    records = trained("capsnet-r3-recon", ERRORS) + trained("capsnet-r3-recon", [0.9], params=other)
    groups = [g for g in group_records(records, params) if g.seeds]
    assert [(g.seeds, g.superseded) for g in groups] == [
        ((0, 1, 2), None),
        ((0,), "its specification in params.yaml has changed"),
    ]


def test_other_data_are_another_group(params: Params, trained: MakeAll) -> None:
    data = trained("capsnet-r3-recon", [0.9])[0].data.model_copy(update={"digest": "0" * 64})
    records = trained("capsnet-r3-recon", ERRORS) + trained("capsnet-r3-recon", [0.9], data=data)
    assert [g.seeds for g in group_records(records, params) if g.seeds] == [(0,), (0, 1, 2)]


def test_a_protocol_gone_from_params_still_shows(params: Params, trained: MakeAll) -> None:
    short = params.model_copy(
        update={"protocols": {"mnist-short": params.protocols["mnist-short"]}}
    )
    group = found(
        group_records(trained("capsnet-r3-recon", ERRORS), short), "mnist/capsnet-r3-recon"
    )
    assert (group.judged_as, group.title) == (None, "mnist")
    assert group.superseded == "params.yaml no longer has it"


def test_evaluations_join_their_run(params: Params, trained: MakeAll, attacked: Make) -> None:
    runs = trained("capsnet-r3-recon", ERRORS)
    records = runs + [attacked(run, {0.0: 99.7, 8 / 255: 90.0 + run.seed}) for run in runs]
    group = found(group_records(records, params), "mnist/capsnet-r3-recon")
    condition = {"attack": "fgsm", "epsilon": 0.03137255, "epsilon_unit": "raw-pixels"}
    assert group.values("accuracy_pct", condition) == {0: 90.0, 1: 91.0, 2: 92.0}
    assert group.values("accuracy_pct", {**condition, "loss": "margin", "goal": "untargeted"})
    assert not group.values("accuracy_pct", {**condition, "epsilon_unit": "standardised-pixels"})
    assert not group.values("accuracy_pct", {**condition, "attack": "bim"})
    assert not group.values("accuracy_pct", {**condition, "loss": "cross-entropy"})
    assert not group.values("accuracy_pct", {**condition, "epsilon": 0.03})
    assert group.test_images({"attack": "none of ours"}) == 10_000


def test_a_split_of_another_name_has_a_size_of_its_own(params: Params, trained: MakeAll) -> None:
    more = {"affnist_accuracy_pct": 79.0, "affnist_images": 320_000.0}
    group = found(
        group_records(trained("cnn-baseline", [0.8], metrics=more), params), "mnist/cnn-baseline"
    )
    assert group.test_images(metric="affnist_accuracy_pct") == 320_000
    assert group.test_images() == group.test_images(metric="accuracy_pct") == 10_000


def test_a_condition_without_epsilon_asks_for_every_attack(
    params: Params, trained: MakeAll, attacked: Make
) -> None:
    run = trained("capsnet-r3-recon", [0.25])[0]
    evaluation = attacked(run, {0.0: 99.7, 0.1: 90.0, 0.2: 80.0})
    group = found(group_records([run, evaluation], params), "mnist/capsnet-r3-recon")
    (points,) = group.matching("accuracy_pct", {"goal": "untargeted"})
    assert [point.point["epsilon"] for point in points] == [0.1, 0.2]


def test_evaluations_of_older_weights_are_left_out(
    params: Params, trained: MakeAll, attacked: Make
) -> None:
    run = trained("capsnet-r3-recon", [0.25])[0]
    stale = attacked(run, {0.1: 90.0}, inputs={"weights.safetensors": "9" * 64})
    group = found(group_records([run, stale], params), "mnist/capsnet-r3-recon")
    assert group.values("accuracy_pct", {"attack": "fgsm"}) == {}


def test_uncommitted_code_is_remembered(params: Params, trained: MakeAll) -> None:
    (run,) = trained("capsnet-r3-recon", [0.25])
    dirty = run.model_copy(update={"code": run.code.model_copy(update={"git_dirty": True})})
    group = found(group_records([dirty], params), "mnist/capsnet-r3-recon")
    assert group.uncommitted == (0,)


def test_an_accuracy_is_an_error_seen_from_the_other_side(params: Params, trained: MakeAll) -> None:
    group = found(group_records(trained("cnn-baseline", [0.25]), params), "mnist/cnn-baseline")
    assert group.values("test_accuracy_pct") == {0: 99.75}


def test_the_order_of_records_does_not_matter(
    params: Params, trained: MakeAll, attacked: Make
) -> None:
    runs = trained("capsnet-r3-recon", ERRORS) + trained("cnn-baseline", ERRORS)
    records = runs + [attacked(run, {0.1: 90.0}) for run in runs]
    forwards, backwards = (group_records(order, params) for order in (records, records[::-1]))
    assert forwards == backwards


def test_images_made_on_a_network_that_was_trained_anew_are_forgotten(
    params: Params, trained: MakeAll, attacked: Callable[..., Record]
) -> None:
    (victim,) = trained("capsnet-r3-recon", [0.3])
    source = trained("cnn-baseline", [0.4, 0.4])[1]
    told = {"name": "transfer-cnn", "source": source.run, "source_model": "cnn-baseline"}
    weights = f"{source.run}/weights.safetensors"
    inputs = {**victim.outputs, weights: source.outputs["weights.safetensors"]}
    made = attacked(victim, {0.1: 50.0}, attack=told, inputs=inputs)

    def measured(*records: Record) -> dict[int, float]:
        groups = group_records([victim, made, *records], params)
        (group,) = (one for one in groups if one.seeds and one.model == victim.model)
        return group.values("accuracy_pct", {"source_model": "cnn-baseline"})

    assert measured(source) == measured() == {0: 50.0}
    anew = source.model_copy(update={"outputs": {"weights.safetensors": "0" * 64}})
    assert measured(anew) == {}
