"""The paragraph of README.md on robustness: whom it compares, and that its figures are records'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from capsrepro.records import Record
from capsrepro.report.robustness_answer import robustness_answer
from capsrepro.report.summaries import group_records
from capsrepro.schema.params import Params

Make = Callable[..., Record]
MakeAll = Callable[..., list[Record]]
IDENTITY = {
    "rotation_deg": 0.0,
    "translation_px": 0.0,
    "scale": 1.0,
    "affine_share": 0.0,
    "noise_sd": 0.0,
}
SIZES = [0.0, 8 / 255, 25 / 255, 0.3]
BIM = {"name": "bim", "method": "bim", "steps": 10}


def distorted(run: Record, accuracies: Sequence[tuple[str, float, float]]) -> Record:
    points = [{**IDENTITY, name: value} for name, value, _ in accuracies]
    curves = {name: [point[name] for point in points] for name in IDENTITY}
    curves["distorted_accuracy_pct"] = [accuracy for _, _, accuracy in accuracies]
    changes: dict[str, Any] = {
        "kind": "distortions",
        "spec": {**run.spec, "evaluation": {"name": "distortions"}},
        "inputs": dict(run.outputs),
        "outputs": {},
        "metrics": {"test_images": 2_000.0},
        "curves": curves,
    }
    return run.model_copy(update=changes).sealed()


@pytest.fixture
def attack(attacked: Make) -> Make:
    def make(run: Record, accuracies: Sequence[float], **changes: Any) -> Record:
        found = dict(zip(SIZES, accuracies, strict=True))
        metrics = {"test_images": 10_000.0, "classes": 10.0, "zero_gradient_pct": 0.0}
        return attacked(run, found, **{"metrics": metrics, **changes})

    return make


@pytest.fixture
def records(trained: MakeAll, attack: Make) -> list[Record]:
    """Three CNNs and three CapsNets under FGSM and BIM; one more CapsNet under FGSM alone."""
    cnns = trained("cnn-baseline", [0.4, 0.4, 0.4])
    capsules = trained("capsnet-r3-recon", [0.3, 0.3, 0.3])
    other = trained("capsnet-r1-recon", [0.3])

    def made() -> Iterator[Record]:
        for run in cnns:
            yield attack(run, [99.0, 95.0, 80.0 + run.seed, 2.0], loss="cross-entropy")
            yield attack(run, [99.0, 90.0, 60.0, 0.0], attack=BIM)
            yield distorted(run, [("rotation_deg", 30.0, 70.0), ("noise_sd", 0.3, 97.0)])
        for run in capsules:
            yield attack(run, [99.0, 96.0, 64.0 + run.seed, 22.5])
            yield attack(run, [99.0, 80.0, 61.0, 0.0], attack=BIM)
            yield distorted(run, [("rotation_deg", 30.0, 75.5), ("noise_sd", 0.3, 90.0)])
        yield attack(other[0], [99.0, 99.0, 99.0, 99.0])

    return [*cnns, *capsules, *other, *made()]


def answer(records: Sequence[Record], params: Params) -> str:
    return robustness_answer(group_records(records, params), params)


def test_the_paragraph(records: list[Record], params: Params) -> None:
    assert answer(records, params) == (
        "**`mnist`** (budget 1 of 1): `capsnet-r3-recon` (3 seeds) / `cnn-baseline` (3 seeds), "
        "% of test images classified right. At ε 25/255: fgsm 65.0 / 81.0, bim 61.0 / 60.0; "
        "under the strongest against each 61.0 / 60.0. At ε 0.3: fgsm 22.5 / 2.0, bim 0.0 / 0.0; "
        "under the strongest against each 0.0 / 0.0. Images turned by 30° 75.5 / 70.0, with noise "
        "of 0.3 90.0 / 97.0. Of these 6 comparisons the capsules are ahead in 2, the CNN in 2, by "
        "more than two test sets of that size would differ."
    )


def test_masked_gradients_are_told(records: list[Record], params: Params) -> None:
    def masked(record: Record) -> Record:
        if record.model != "capsnet-r3-recon" or record.kind != "fgsm":
            return record
        metrics = {**record.metrics, "zero_gradient_pct": 12.0 + record.seed}
        return record.model_copy(update={"metrics": metrics}).sealed()

    assert answer([masked(record) for record in records], params).endswith(
        "Gradients of `capsnet-r3-recon` look masked (up to 13.0 % of images have none): fgsm. "
        "Its accuracy under its own gradients is an upper bound."
    )


def test_only_seeds_that_were_attacked_are_counted(records: list[Record], params: Params) -> None:
    some = [
        record
        for record in records
        if (record.kind, record.model) != ("bim", "cnn-baseline") or record.seed == 0
    ]
    said = answer(some, params)
    assert "`capsnet-r3-recon` (3 seeds) / `cnn-baseline` (1 to 3 seeds)," in said
    assert "bim 61.0 / 60.0" in said


def test_nothing_is_answered_without_both(
    records: list[Record], params: Params, trained: MakeAll, attack: Make
) -> None:
    said = "No protocol has attacked both a capsule network and a CNN yet."
    capsules = [record for record in records if record.model != "cnn-baseline"]
    assert answer(capsules, params) == said
    assert answer([], params) == said
    (alone,) = trained("cnn-baseline", [0.4])
    assert answer([*capsules, alone], params) == said
    # Both, but nothing in common.
    targeted = attack(alone, [1.0] * 4, attack={"name": "pgd", "method": "pgd"})
    assert answer([*capsules, alone, targeted], params) == said


def test_short_protocols_stand_behind_the_full_one(
    records: list[Record], params: Params, trained: MakeAll, attack: Make
) -> None:
    short = [
        *trained("mnist-short/cnn-baseline", [1.0]),
        *trained("mnist-short/capsnet-r1-recon", [1.0]),
    ]
    short += [attack(run, [99.0, 90.0, 50.0, 3.0]) for run in short]
    first, second = answer([*records, *short], params).split("\n\n")
    assert first.startswith("**`mnist`**")
    assert second.startswith(
        "**`mnist-short`** (budget 0.00667 of 1): `capsnet-r1-recon` (1 seed) / `cnn-baseline`"
    )
    assert "the capsules are ahead in 0, the CNN in 0" in second
