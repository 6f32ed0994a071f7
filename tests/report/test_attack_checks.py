"""Each check of an attack: what passes, what fails, and where the one becomes the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from capsrepro.report.attack_checks import (
    BROKEN,
    MASKED,
    RESTARTS,
    SMALL,
    check_notes,
    findings,
)
from capsrepro.report.attack_results import GRADIENT_RATIO, Attacked
from capsrepro.report.summaries import Group

CONFIDENCE = 0.95
IMAGES = {"test_images": 10_000.0, "classes": 10.0}
# On 10,000 images of which half are right, two test sets differ by 1.96 · √2 · 0.5 % = 1.3859 %.
WITHIN, BEYOND = (50.692, 49.308), (50.694, 49.306)


def on(
    numbers: Mapping[str, float | list[float]] | None = None,
    curves: Mapping[str, Mapping[float, float]] | None = None,
    **setting: Any,
) -> Attacked:
    """An attack on capsnet-r3-recon; of several numbers, each is another seed's."""
    group = Group(
        protocol="mnist",
        version="1.0",
        title="MNIST",
        model="capsnet-r3-recon",
        reading="text",
        stands_for="capsnet-r3-recon",
        judged_as="mnist",
        budget=1.0,
        superseded=None,
        seeds=(0,),
        failed={},
        missing=(),
        uncommitted=(),
        measurements=(),
    )
    seeds = {
        name: dict(enumerate(value if isinstance(value, list) else [value]))
        for name, value in {**IMAGES, **(numbers or {})}.items()
    }
    return Attacked(
        group,
        {"attack": "fgsm", "name": "fgsm", "loss": "margin", **setting},
        seeds,
        {name: {size: {0: v} for size, v in at.items()} for name, at in (curves or {}).items()},
        cnn="cnn-pooled",
    )


def told(attacked: Attacked, sign: str) -> str | None:
    """The one sentence of that sign; None when there is no finding at all."""
    found = findings([attacked], CONFIDENCE)
    assert len(found) <= 1
    assert all(one.sign == sign for one in found)
    return found[0].sentence if found else None


def test_images_without_a_gradient() -> None:
    assert told(on({"zero_gradient_pct": 1.0}), MASKED) is None
    assert told(on({"zero_gradient_pct": [0.0, 0.0, 1.01]}), MASKED), "one seed is enough"
    assert told(on({"zero_gradient_pct": [5.0, 7.81]}), MASKED) == (
        "Gradients look masked: capsnet-r3-recon, fgsm (margin loss): up to 7.8 % of images have "
        "no gradient at all."
    )


@pytest.mark.parametrize(
    ("classes", "images", "passes", "fails"),
    [(10, 10_000, 10.83, 10.84), (10, 100, 18.31, 18.32), (5, 10_000, 21.10, 21.11)],
)
def test_what_survives_any_pixels(classes: int, images: int, passes: float, fails: float) -> None:
    size = {"classes": float(classes), "test_images": float(images)}
    assert told(on({**size, "full_range_accuracy_pct": passes}), BROKEN) is None
    assert told(on({**size, "full_range_accuracy_pct": fails}), BROKEN)
    assert told(on({"full_range_accuracy_pct": [40.0, 44.24]}), BROKEN) == (
        "The attack looks broken: capsnet-r3-recon, fgsm (margin loss): 42.1 % stay right where "
        "pixels may be anything, chance is 10 %."
    )


@pytest.mark.parametrize(
    ("sign", "higher", "lower", "words"),
    [
        (
            MASKED,
            "accuracy_pct",
            "fgsm_accuracy_pct",
            "at ε 8/255 all steps leave 90.0 % right, one step leaves 20.0 %.",
        ),
        (
            MASKED,
            "fgsm_targeted_success_pct",
            "targeted_success_pct",
            "at ε 8/255 one step succeeds with 90.0 %, all steps with 20.0 %.",
        ),
        (
            MASKED,
            "white_box_accuracy_pct",
            "transfer_accuracy_pct",
            "at ε 8/255 images made on the model itself leave 90.0 % right, those of cnn-pooled "
            "20.0 %.",
        ),
        (
            MASKED,
            "accuracy_pct",
            "noise_accuracy_pct",
            "at ε 8/255 the attack leaves 90.0 % right, random signs leave 20.0 %.",
        ),
        (
            RESTARTS,
            "first_start_accuracy_pct",
            "accuracy_pct",
            "at ε 8/255 the first start leaves 90.0 % right, all together 20.0 %.",
        ),
    ],
)
def test_what_should_not_lie_above_something_else(
    sign: str, higher: str, lower: str, words: str
) -> None:
    def between(high: float, low: float, images: float = 10_000.0) -> str | None:
        curves = {higher: {0.0: 99.0, 0.1: high}, lower: {0.0: 99.0, 0.1: low}}
        return told(on({"test_images": images}, curves, source_model="cnn-pooled"), sign)

    assert between(*WITHIN) is None
    assert between(*BEYOND)
    assert between(*BEYOND, images=9_000.0) is None
    assert between(20.0, 90.0) is None
    # The margin is that of a share half-way: 0.044 of 0.025 %, 0.034 of 0.015 %, and 0 of 0 %.
    assert between(0.05, 0.0)
    assert between(0.03, 0.0) is None
    # Of several ε the one is told where they lie furthest apart.
    at = {higher: {0.02: 80.0, 8 / 255: 90.0, 0.3: 1.0}, lower: {0.02: 70.0, 8 / 255: 20.0, 0.3: 1}}
    sentence = told(on({}, at, source_model="cnn-pooled"), sign)
    assert sentence == f"{sign}: capsnet-r3-recon, fgsm (margin loss): {words}"


def test_the_margin_is_that_of_the_confidence() -> None:
    curves = {"accuracy_pct": {0.1: 50.6}, "noise_accuracy_pct": {0.1: 49.4}}
    assert not findings([on({}, curves)], 0.95)
    assert findings([on({}, curves)], 0.8)


def test_only_where_both_were_measured() -> None:
    curves = {"accuracy_pct": {0.1: 90.0}, "noise_accuracy_pct": {0.2: 10.0}}
    assert not findings([on({}, curves)], CONFIDENCE)


def test_small_gradients() -> None:
    assert told(on({GRADIENT_RATIO: 0.1}), SMALL) is None
    assert told(on({GRADIENT_RATIO: [0.08, 0.1]}), SMALL) == (
        "Small gradients: capsnet-r3-recon, fgsm (margin loss): 0.09 times those of cnn-pooled, "
        "which alone masks nothing."
    )


def test_which_findings_make_a_figure_doubtful() -> None:
    curves = {"first_start_accuracy_pct": {0.1: 90.0}, "accuracy_pct": {0.1: 20.0}}
    numbers = {GRADIENT_RATIO: 0.01, "zero_gradient_pct": 5, "full_range_accuracy_pct": 50}
    found = findings([on(numbers, curves)], CONFIDENCE)
    assert [(one.sign, one.doubtful) for one in found] == [
        (MASKED, True),
        (BROKEN, True),
        (RESTARTS, False),
        (SMALL, False),
    ]


def test_the_checks_that_were_made_are_named_and_no_others() -> None:
    sound = on({"zero_gradient_pct": 0.5}, {"accuracy_pct": {0.1: 50.0}})
    assert check_notes([sound], CONFIDENCE) == [
        "No attack failed a check; checked: images without a gradient (1 % at most)."
    ]
    noisy = {"accuracy_pct": {0.1: 50.0}, "noise_accuracy_pct": {0.1: 40.0}}
    notes = check_notes([sound, on({}, noisy)], CONFIDENCE)
    assert len(notes) == 2
    assert notes[0].startswith("Gradients look masked")
    assert notes[1] == ("Checked without such a finding: images without a gradient (1 % at most).")
    # A check that one attack failed was not passed by all.
    notes = check_notes([sound, on({"zero_gradient_pct": 5.0})], CONFIDENCE)
    assert [note[:21] for note in notes] == ["Gradients look masked"]
    assert check_notes([on({}, {"accuracy_pct": {0.1: 50.0}})], CONFIDENCE) == []


def test_a_sentence_for_each_attack_and_check_in_their_order() -> None:
    both = on({"zero_gradient_pct": 5.0, "full_range_accuracy_pct": 50.0}, name="bim", loss="own")
    found = findings([on({"zero_gradient_pct": 5.0}), both], CONFIDENCE)
    assert [(one.attacked.name, one.sign) for one in found] == [
        ("fgsm", MASKED),
        ("bim", MASKED),
        ("bim", BROKEN),
    ]
    assert "bim (own loss)" in found[1].sentence
