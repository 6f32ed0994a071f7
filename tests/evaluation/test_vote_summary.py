"""What is kept of the votes, against every image measured by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_capsnets import predictions, random_images, stored
from small_matcaps import matcaps

from capsrepro.data.batches import EvaluationSplit
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.vote_distances import Routed, route_classes, vote_histograms
from capsrepro.evaluation.vote_summary import measure_votes
from capsrepro.metrics import METRICS

COUNT, WINDOWS, BINS = 60, [1.0, 5.0], 6
CURVES = (
    "true_vote_distance",
    "other_vote_distance",
    "true_class_share_pct",
    "assignment_entropy_nat",
)


def some_labels(model: Any, images: np.ndarray) -> np.ndarray:
    """Two thirds of what the network takes the images for, the others one class further."""
    guesses = predictions(model, images)[:, 0]
    return np.where(np.arange(len(images)) % 3 == 0, (guesses + 1) % 5, guesses)


def measure(model: Any, split: EvaluationSplit, right: int = 2, wrong: int = 1) -> Any:
    return measure_votes(model, split, right=right, wrong=wrong, windows=WINDOWS, bins=BINS)


@pytest.fixture(scope="module")
def model() -> Any:
    return matcaps()


@pytest.fixture(scope="module")
def labels(model: Any) -> np.ndarray:
    return some_labels(model, random_images(COUNT))


def one_by_one(model: Any) -> list[Routed]:
    with torch.no_grad():
        pixels = torch.from_numpy(random_images(COUNT)).float() / 255
        return [route_classes(model, image[None]) for image in pixels]


def weighted_median(distances: np.ndarray, weights: np.ndarray) -> float:
    order = distances.argsort()
    passed = np.cumsum(weights[order])
    return float(distances[order][np.searchsorted(passed, passed[-1] / 2)])


@pytest.mark.parametrize("batch_size", [7, COUNT])
def test_curves_are_those_of_all_images(batch_size: int, model: Any, labels: np.ndarray) -> None:
    split = stored(random_images(COUNT), labels, batch_size)
    metrics, curves, arrays = measure(model.train(), split)
    assert not model.training
    assert list(curves) == ["iteration", *CURVES]
    assert curves["iteration"] == [1, 2, 3]
    assert all(name in METRICS for name in CURVES)
    every = one_by_one(model)
    for t in range(3):
        near: dict[bool, list[Any]] = {True: [], False: []}
        shares, entropies = [], []
        histograms = np.zeros((2, 2, BINS + 1))
        for routed, label in zip(every, labels, strict=True):
            R, d = routed.assignments[0, t].numpy(), routed.distances[0, t].numpy()
            own = vote_histograms(routed, WINDOWS, BINS)[0, t].numpy()
            for j in range(5):
                near[j == label].append((d[j], R[j]))
                histograms[int(j != label)] += own[j] / (1 if j == label else 4) / COUNT
            shares.append(R[label].sum() / 8)
            entropies.append(-(R[R > 0] * np.log(R[R > 0])).sum() / 8)
        assert curves["true_class_share_pct"][t] == pytest.approx(100 * np.mean(shares), rel=1e-5)
        assert curves["assignment_entropy_nat"][t] == pytest.approx(np.mean(entropies), rel=1e-5)
        for is_true, name in ((True, "true_vote_distance"), (False, "other_vote_distance")):
            pairs = np.hstack([np.stack(pair) for pair in near[is_true]])
            # Bins of 200 a decade are 1.2 % wide, and their middle is at most half of it away.
            assert curves[name][t] == pytest.approx(weighted_median(*pairs), rel=0.006), (name, t)
        np.testing.assert_allclose(arrays["mean_histograms"][:, t], histograms, atol=1e-5)
    assert {name: metrics[name] for name in CURVES} == {name: curves[name][-1] for name in CURVES}


def test_the_test_errors_are_counted_again(model: Any, labels: np.ndarray) -> None:
    split = stored(random_images(COUNT), labels)
    metrics, _, _ = measure(model, split)
    assert measure_accuracy(model, split).items() <= metrics.items()
    assert metrics["test_errors"] == 20


def test_the_first_images_of_each_class_are_kept(model: Any, labels: np.ndarray) -> None:
    images = random_images(COUNT)
    _, _, arrays = measure(model, stored(images, labels))
    guesses = predictions(model, images)[:, 0]
    expected = []
    for hit, wanted in ((True, 2), (False, 1)):
        for label in range(5):
            own = np.flatnonzero((labels == label) & ((guesses == labels) == hit))
            expected += own[:wanted].tolist()
    assert len(expected) > 6
    assert arrays["labels"].tolist() == labels[expected].tolist()
    assert arrays["predictions"].tolist() == guesses[expected].tolist()
    lowest, highest = (f(images[expected], axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    stretched = np.rint(255 * ((images[expected] - lowest) / (highest - lowest)))
    assert np.abs(arrays["images"].astype(int) - stretched).max() <= 1
    every = one_by_one(model)
    for place, item in enumerate(expected):
        own = vote_histograms(every[item], WINDOWS, BINS)[0].numpy()
        np.testing.assert_allclose(arrays["histograms"][place], own, rtol=1e-3, atol=1e-6)
        activations = every[item].activations[0]
        np.testing.assert_allclose(arrays["activations"][place], activations, rtol=1e-4)
    assert [arrays[name].dtype for name in ("images", "labels", "predictions")] == [np.uint8] * 3
    assert arrays["histograms"].dtype == np.float16
    assert arrays["histograms"].shape == (len(expected), 3, 5, 2, BINS + 1)


def test_standardised_pixels_are_drawn_from_darkest_to_brightest(model: Any) -> None:
    """An image of one colour has no contrast to be drawn with, and is black."""
    flat = np.full((3, 1, 8, 8), 200, np.uint8)
    flat[1:] = random_images(2)
    _, _, arrays = measure(model, stored(flat, [0, 1, 2]))
    spans = {(int(image.min()), int(image.max())) for image in arrays["images"]}
    assert spans == {(0, 0), (0, 255)}


def test_nothing_is_changed_and_the_same_comes_out_again(model: Any, labels: np.ndarray) -> None:
    split = stored(random_images(COUNT), labels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first, second = measure(model, split), measure(model, split)
    assert first[:2] == second[:2]
    assert all(np.array_equal(first[2][name], second[2][name]) for name in first[2])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_any_assignment_a_distance_is_nothing() -> None:
    """Two classes of which one gets all: the median distance to the other does not exist."""
    from capsrepro.evaluation.vote_summary import _Totals

    distances = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    assignments = torch.tensor([[[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]])
    routed = Routed(distances, assignments, torch.tensor([[[0.9, 0.1]]]))
    totals = _Totals()
    totals.add(routed, vote_histograms(routed, WINDOWS, BINS), torch.tensor([0]))
    curves = totals.curves()
    assert curves["other_vote_distance"] == [0.0]
    assert curves["true_vote_distance"] == [pytest.approx(2, rel=0.006)]
    assert curves["true_class_share_pct"] == [100]
    assert curves["assignment_entropy_nat"] == [0]
