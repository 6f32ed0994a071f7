"""Two digits in one image: by hand, and against one composite at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import small_capsnets
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_capsnets import Pairs, composites, one_by_one
from torch import Tensor, nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.composites import Reading
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.overlap import (
    OVERLAP_EDGES,
    ink_overlap,
    intersection_over_union,
    measure_crowding,
    measure_overlap,
    measure_segmentation,
    same_class_composites,
    same_class_pairs,
)

TEXT = Reading(4, "independent", "composite")
RELATIVE = Reading(4, "relative", "composite")
CODE = Reading(6, "independent", "shared")


@pytest.fixture(scope="module")
def model():
    return small_capsnets.capsnet(**small_capsnets.TWO_DIGITS)


def masks(*rows: str) -> Tensor:
    """Pictures (1, L, 1, 1, W) from strings of 0 and 1."""
    values = [[float(character) for character in row] for row in rows]
    return torch.tensor(values).view(1, len(rows), 1, 1, -1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("11110000", "00001111", 0),
        ("11110000", "00011111", 1 / 4),
        ("00011111", "11110000", 1 / 4),
        ("11110000", "11110000", 1),
        ("01100000", "11110000", 1),
        ("00000000", "11110000", 0),
        ("00000000", "00000000", 0),
    ],
)
def test_overlap_of_ink_by_hand(one: str, other: str, expected: float) -> None:
    assert ink_overlap(masks(one, other)).tolist() == [expected]


def test_unions_by_hand() -> None:
    drawn = masks("11110000", "11110000", "11110000", "00000000", "00000000")
    true = masks("11110000", "00001111", "00111100", "11110000", "00000000")
    found = intersection_over_union(drawn, true)
    assert found.tolist() == [[1, 0, pytest.approx(2 / 6), 0, 0]]
    assert torch.equal(found, intersection_over_union(true, drawn))


def test_ink_is_half_of_white_or_more() -> None:
    grey = torch.tensor([127 / 255, 128 / 255, 1.0, 0.5]).view(1, 1, 1, 1, 4)
    white = torch.ones(1, 1, 1, 1, 4)
    assert ink_overlap(torch.cat([grey, white], 1)).tolist() == [1]
    assert ink_overlap(torch.cat([grey, masks("0001")], 1)).tolist() == [1]
    assert ink_overlap(torch.cat([grey, masks("1000")], 1)).tolist() == [0]
    assert intersection_over_union(grey, white).tolist() == [[3 / 4]]
    assert intersection_over_union(white, grey).tolist() == [[3 / 4]]


def test_all_rows_and_channels_count() -> None:
    one, other = torch.zeros(2, 1, 1, 2, 3, 3)
    one[..., 0, :, :] = 1
    other[..., :, 0] = 1  # columns of both channels: 3 of 9 pixels are shared in the first
    assert ink_overlap(torch.cat([one, other], 1)).tolist() == [0.5]
    assert intersection_over_union(one, other).tolist() == [[3 / 12]]


class Lookup(nn.Module):
    """Scores from a table, by the value of the last pixel."""

    def __init__(self, scores: list[list[float]]) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return self.scores[(images[:, 0, -1, -1] * 255).round().long()]


def pairs_of(overlaps: list[int], labels: list[list[int]]) -> Pairs:
    """Digits of ten pixels each, so many of them shared; the last pixel counts the composites."""
    singles = np.zeros((len(labels), 2, 1, 1, 21), np.uint8)
    for place, shared in enumerate(overlaps):
        singles[place, 0, 0, 0, :10] = 200
        singles[place, 1, 0, 0, 10 - shared : 20 - shared] = 200
        singles[place, 0, 0, 0, 20] = place
    return Pairs(singles, labels)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_errors_by_hand(batch_size: int) -> None:
    both, first, none = [0.9, 0.8, 0.1, 0.2], [0.9, 0.1, 0.8, 0.2], [0.1, 0.2, 0.8, 0.9]
    #           0     0     1      1     5     6     9     10 of 10 pixels shared
    scores = [both, none, first, both, first, none, none, both]
    # Labels in either order.
    labels = [[0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [0, 1], [0, 1], [1, 0]]
    split = EvaluationSplit(pairs_of([0, 0, 1, 1, 5, 6, 9, 10], labels), batch_size=batch_size)
    metrics, curves = measure_overlap(Lookup(scores).train(), split)
    assert metrics == {
        "test_error_pct": 100 * 5 / 8,
        "both_wrong_pct": 100 * 3 / 8,
        "label_error_pct": 100 * 8 / 16,
    }
    # An overlap of exactly 0.1 begins a group; those without composites are left out.
    assert curves == {
        "overlap_from": [0, 0.1, 0.5, 0.6],
        "overlap_to": [0.1, 0.2, 0.6, 1],
        "composites": [2, 2, 1, 3],
        "error_pct": [50, 50, 100, pytest.approx(100 * 2 / 3)],
    }


def test_every_tenth_begins_a_group() -> None:
    labels = [[0, 1]] * 11
    split = EvaluationSplit(pairs_of(list(range(11)), labels), batch_size=4)
    _, curves = measure_overlap(Lookup([[1.0, 1.0, 0.0]] * 11), split)
    assert curves["overlap_from"] == list(OVERLAP_EDGES[:-1])
    assert curves["overlap_to"] == list(OVERLAP_EDGES[1:])
    assert curves["composites"] == [1] * 6 + [5]


@pytest.mark.parametrize("batch_size", [7, 30])
def test_errors_are_those_of_one_composite_at_a_time(model, batch_size: int) -> None:
    split = composites(TEXT, batch_size, 60)
    missed, groups = [], Counter()
    with torch.no_grad():
        for image, labels, targets in one_by_one(split):
            winners = set(model(image)[0].topk(2).indices.tolist())
            missed.append(len(set(labels[0].tolist()) - winners))
            one, other = targets[0].numpy() >= 0.5
            share = (one & other).sum() / min(one.sum(), other.sum())
            groups[max(edge for edge in OVERLAP_EDGES[:-1] if edge <= share)] += 1
    metrics, curves = measure_overlap(model.train(), split)
    assert len(set(missed)) == 3  # none, one, both
    assert len(groups) > 3
    assert metrics["test_error_pct"] == measure_accuracy(model, split)["test_error_pct"]
    assert metrics["test_error_pct"] == 100 * sum(count > 0 for count in missed) / 60
    assert metrics["both_wrong_pct"] == 100 * missed.count(2) / 60
    assert metrics["label_error_pct"] == pytest.approx(100 * sum(missed) / 120)
    assert dict(zip(curves["overlap_from"], curves["composites"], strict=True)) == groups
    wrong = zip(curves["error_pct"], curves["composites"], strict=True)
    assert sum(error * count for error, count in wrong) == pytest.approx(
        60 * metrics["test_error_pct"]
    )


@pytest.mark.parametrize("batch_size", [7, 30])
def test_segmentation_is_that_of_one_picture_at_a_time(model, batch_size: int) -> None:
    split = composites(TEXT, batch_size, 30)
    every, found = [], []
    with torch.no_grad():
        for image, labels, targets in one_by_one(split):
            capsules = model.class_capsules(image)
            winners = model(image)[0].topk(2).indices.tolist()
            for label, target in zip(labels[0].tolist(), targets[0], strict=True):
                drawn = model.decoder(capsules, torch.tensor([[label]]))[0, 0].numpy() >= 0.5
                true = target.numpy() >= 0.5
                union = (drawn & true).sum() / (drawn | true).sum()
                every.append(union if label in winners else 0)
                found += [union] if label in winners else []
    assert 0 < len(found) < len(every) == 60
    assert measure_segmentation(model.train(), split) == pytest.approx(
        {"segmentation_iou": np.mean(every), "segmentation_iou_found": np.mean(found)}
    )
    assert not model.training


def test_segmentation_without_a_winner_is_zero(model) -> None:
    (batch,) = composites(TEXT, 20, 20)
    with torch.no_grad():
        losers = (-model(batch.images)).topk(2).indices.tolist()
    split = EvaluationSplit(Pairs((batch.targets * 255).round().numpy(), losers), batch_size=20)
    assert measure_segmentation(model, split) == {
        "segmentation_iou": 0,
        "segmentation_iou_found": 0,
    }


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=30)


@given(LABELS, st.lists(st.integers(0, 4), max_size=30))
def test_the_nth_of_a_class_is_paired_with_the_nth(first: list[int], second: list[int]) -> None:
    pairs = same_class_pairs(torch.tensor(first), torch.tensor(second, dtype=torch.int64))
    expected = set()
    for label in range(5):
        ones = [place for place, name in enumerate(first) if name == label]
        others = [place for place, name in enumerate(second) if name == label]
        expected |= set(zip(ones, others, strict=False))
    assert pairs.shape == (2, len(expected))
    assert set(zip(*pairs.tolist(), strict=True)) == expected


def gathered(split: EvaluationSplit) -> list[tuple[int, bytes]]:
    """All composites of two digits of one class, sorted."""
    return sorted(
        (int(label), (image * 255).round().byte().numpy().tobytes())
        for images, labels in same_class_composites(split)
        for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("reading", [TEXT, RELATIVE, CODE])
def test_composites_of_one_class_are_sums_of_digits_in_their_places(reading: Reading) -> None:
    firsts: dict[int, list[np.ndarray]] = {label: [] for label in range(10)}
    seconds: dict[int, list[np.ndarray]] = {label: [] for label in range(10)}
    for _, labels, targets in one_by_one(composites(reading, 250, 300)):
        for digits, label, single in zip((firsts, seconds), labels[0], targets[0], strict=True):
            digits[int(label)].append((single.numpy() * 255).round().astype(int))
    expected = [
        (label, (one + other).clip(max=255).astype(np.uint8).tobytes())
        for label in range(10)
        for one, other in zip(firsts[label], seconds[label], strict=False)
    ]
    assert any((one + other).max() > 255 for one, other in zip(firsts[0], seconds[0], strict=False))
    assert len(expected) > 200
    for batch_size in (1, 40, 300):
        assert gathered(composites(reading, batch_size, 300)) == sorted(expected)


def test_pixels_stay_within_the_range() -> None:
    for images, labels in same_class_composites(composites(TEXT, 100, 100)):
        assert images.min() == 0
        assert images.max() == 1
        assert images.shape[1:] == (1, 36, 36)
        assert labels.shape == (len(images),)


class Brightness(nn.Module):
    """Of three classes: length 0.9 for the class 0 of bright images, 0.8 for class 1 of others."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        bright = (images.flatten(1).amax(1) > 0.5).float()
        return torch.stack([0.9 * bright, 0.8 * (1 - bright), 0.1 + 0.2 * bright], dim=1)


def test_crowding_by_hand() -> None:
    # First digits of classes 0, 0, 1, second digits of 1, 2, 0: one pair of each of 0 and 1.
    singles = np.zeros((3, 2, 1, 1, 2), np.uint8)
    singles[0, 0] = 100  # first 0
    singles[2, 1] = 50  # second 0: together 150, bright
    singles[2, 0] = 30  # first 1, with second 1: 30, dark
    singles[1, 0] = 255  # the other 0, which no second digit is left for
    pairs = Pairs(singles, [[0, 1], [0, 2], [1, 0]])
    expected: dict[str, Any] = {
        "crowded_top1_pct": 100,
        "crowded_length": (0.9 + 0.8) / 2,
        "crowded_second_length": (0.3 + 0.1) / 2,
        "separate_second_length": (0.1 + 0.3 + 0.1) / 3,
    }
    for batch_size in (1, 2, 3):
        found = measure_crowding(
            Brightness().train(), EvaluationSplit(pairs, batch_size=batch_size)
        )
        assert found == pytest.approx(expected)


def test_crowding_is_that_of_one_composite_at_a_time(model) -> None:
    split = composites(TEXT, 40, 60)
    lengths, hits = [], []
    with torch.no_grad():
        for images, labels in same_class_composites(split):
            for image, label in zip(images, labels, strict=True):
                winners = model(image[None])[0].topk(2)
                lengths.append(winners.values.tolist())
                hits.append(bool(winners.indices[0] == label))
        separate = [float(model(image)[0].topk(2).values[1]) for image, _, _ in one_by_one(split)]
    assert 0 < sum(hits) < len(hits)
    first, second = np.mean(lengths, axis=0)
    assert measure_crowding(model, split) == pytest.approx(
        {
            "crowded_top1_pct": 100 * np.mean(hits),
            "crowded_length": first,
            "crowded_second_length": second,
            "separate_second_length": np.mean(separate),
        },
        rel=1e-5,
    )


def test_crowding_without_a_pair_says_what_it_can() -> None:
    pairs = Pairs(np.full((2, 2, 1, 1, 2), 20), [[0, 1], [0, 2]])
    found = measure_crowding(Brightness(), EvaluationSplit(pairs, batch_size=1))
    assert found == pytest.approx({"separate_second_length": 0.1})
