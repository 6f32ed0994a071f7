"""Width of digits by hand, and R² against scikit-learn on capsules whose content is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small_capsnets
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch import Tensor, nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.evaluation.digit_width import LEAST_IMAGES, ink_width, measure_width


def bar(first: int, last: int, side: int = 12) -> Tensor:
    """White columns from first to last, in rows 2 to 8 of one black image."""
    image = torch.zeros(1, 1, side, side)
    image[0, 0, 2:9, first : last + 1] = 1
    return image


def test_width_of_bars_by_hand() -> None:
    for columns in (1, 2, 5, 12):
        # Variance of the uniform distribution on so many neighbouring whole numbers.
        expected = 2 * ((columns**2 - 1) / 12) ** 0.5
        assert ink_width(bar(0, columns - 1)).item() == pytest.approx(expected, abs=1e-12)
        assert ink_width(bar(12 - columns, 11)).item() == pytest.approx(expected, abs=1e-12)


def test_width_is_horizontal_and_knows_no_brightness() -> None:
    two_columns = bar(3, 3) + bar(7, 7)
    assert ink_width(two_columns).item() == pytest.approx(4)
    assert ink_width(two_columns.transpose(2, 3)).item() == pytest.approx(2 * 4**0.5)
    assert ink_width(two_columns / 255).item() == pytest.approx(4)
    # Three quarters of the ink on the left: the standard deviation is 4·√(3/16).
    assert ink_width(3 * bar(3, 3) + bar(7, 7)).item() == pytest.approx(8 * (3 / 16) ** 0.5)
    colours = torch.cat([bar(3, 3), torch.zeros(1, 1, 12, 12), bar(7, 7)], dim=1)
    assert ink_width(colours).item() == pytest.approx(4)


def test_an_image_without_ink_has_no_width() -> None:
    assert ink_width(torch.cat([torch.zeros(1, 1, 12, 12), bar(3, 4)])).tolist() == [0, 1]
    faint = torch.zeros(1, 1, 12, 12)
    faint[0, 0, 5, [2, 8]] = 1 / 255
    assert ink_width(faint).item() == pytest.approx(6)


class Poses(nn.Module):
    """Class capsules from a table, by image; random numbers for all classes but the label's."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, poses_ND: np.ndarray) -> None:
        super().__init__()
        random = np.random.default_rng(5)
        capsules = random.normal(size=(len(images), labels.max() + 1, poses_ND.shape[1]))
        capsules[np.arange(len(images)), labels] = poses_ND
        self.table = {
            image.tobytes(): torch.from_numpy(rows).float()
            for image, rows in zip(images, capsules, strict=True)
        }

    def class_capsules(self, images: Tensor) -> Tensor:
        assert not self.training
        pixels = (images * 255).round().to(torch.uint8).numpy()
        return torch.stack([self.table[image.tobytes()] for image in pixels])


def boxes(count: int, seed: int = 0) -> np.ndarray:
    """Random grey boxes of many widths on 16×16 pixels."""
    random = np.random.default_rng(seed)
    images = np.zeros((count, 1, 16, 16), np.uint8)
    for image in images:
        first, last = sorted(random.choice(17, 2, replace=False))
        image[0, 3:13, first:last] = random.integers(1, 256, (10, last - first))
    return images


def widths(images: np.ndarray) -> np.ndarray:
    """By numpy's weighted variance of the columns."""
    found = []
    for image in images.astype(float):
        weights = image.sum((0, 1))
        mean = np.average(np.arange(16), weights=weights)
        found.append(2 * np.average((np.arange(16) - mean) ** 2, weights=weights) ** 0.5)
    return np.array(found)


def measured(images: Any, labels: Any, poses: Any, batch_size: int = 64) -> dict[str, float]:
    split: EvaluationSplit = small_capsnets.stored(images, labels, batch_size)
    return measure_width(Poses(images, labels, poses).train(), split)


@pytest.fixture(scope="module")
def noise() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """600 boxes of three classes and capsules of 16 numbers that know nothing of them."""
    random = np.random.default_rng(1)
    labels = np.arange(600) * 7 % 3
    random.shuffle(labels)
    return boxes(600), labels, random.normal(size=(600, 16))


def test_a_dimension_that_is_the_width_explains_it(noise) -> None:
    images, labels, poses = noise
    poses = poses.copy()
    poses[:, 3] = 0.2 - 0.04 * widths(images)
    found = measured(images, labels, poses)
    assert found["width_r2_best_dimension"] == pytest.approx(1, abs=1e-6)
    assert found["width_r2_best_dimension_lowest"] == pytest.approx(1, abs=1e-6)
    assert found["width_r2_all_dimensions"] == pytest.approx(1, abs=1e-6)


def test_noise_explains_nothing(noise) -> None:
    found = measured(*noise)
    # Even the best of 16, which explains some of the images that it was chosen on.
    assert -0.1 < found["width_r2_best_dimension"] < 0.02
    assert -0.4 < found["width_r2_all_dimensions"] < 0.02


def test_the_choice_among_dimensions_does_not_flatter() -> None:
    # Twenty images fit the best of sixteen kinds of noise well, the other twenty do not.
    random = np.random.default_rng(2)
    images, labels = boxes(40 * 30), np.arange(40 * 30) % 30
    found = measured(images, labels, random.normal(size=(1_200, 16)))
    assert found["width_r2_best_dimension"] < 0


def test_each_class_may_have_its_own_dimension_or_none(noise) -> None:
    images, labels, poses = noise
    poses = poses.copy()
    for label, dimension in ((0, 5), (2, 11)):
        poses[labels == label, dimension] = widths(images)[labels == label]
    found = measured(images, labels, poses)
    assert found["width_r2_best_dimension_lowest"] < 0.05
    lowest = found["width_r2_best_dimension_lowest"]
    assert found["width_r2_best_dimension"] == pytest.approx((2 + lowest) / 3, abs=1e-6)


def sklearn_r2(known_ND, known_N, new_ND, new_N) -> float:
    return r2_score(new_N, LinearRegression().fit(known_ND, known_N).predict(new_ND))


@pytest.mark.parametrize("batch_size", [50, 600])
def test_scikit_learn_finds_the_same(noise, batch_size) -> None:
    images, labels, poses = noise
    poses, width = poses.copy(), widths(images)
    # Two dimensions know a part each, the second more than the first.
    poses[:, [2, 9]] += width[:, None] * [0.3, 0.4]
    poses = poses.astype(np.float32).astype(float)  # as capsules are computed
    best, together = [], []
    for label in range(3):
        places = np.flatnonzero(labels == label)
        known, new = ((poses[half], width[half]) for half in (places[0::2], places[1::2]))
        columns = [((known[0][:, [d]], known[1]), (new[0][:, [d]], new[1])) for d in range(16)]
        fit, result = max(columns, key=lambda halves: sklearn_r2(*halves[0], *halves[0]))
        best.append(sklearn_r2(*fit, *result))
        together.append(sklearn_r2(*known, *new))
    expected = {
        "width_r2_best_dimension": np.mean(best),
        "width_r2_best_dimension_lowest": np.min(best),
        "width_r2_all_dimensions": np.mean(together),
    }
    assert 0.1 < min(best) < max(together) < 0.9
    assert measured(images, labels, poses, batch_size) == pytest.approx(expected, rel=1e-9)


def test_small_classes_are_left_out(noise) -> None:
    images, labels, poses = noise
    poses = poses.copy()
    poses[:, 3] = widths(images)
    poses[labels == 1] = np.random.default_rng(3).normal(size=(sum(labels == 1), 16))
    few = np.flatnonzero(labels == 1)[: LEAST_IMAGES - 1]
    enough = np.flatnonzero(labels == 1)[:LEAST_IMAGES]
    others = np.flatnonzero(labels == 0)
    for ones, counted in ((few[:0], 1), (few[:1], 1), (few[:2], 1), (few, 1), (enough, 2)):
        chosen = np.concatenate([others, ones])
        found = measured(images[chosen], labels[chosen], poses[chosen])
        assert (found["width_r2_best_dimension_lowest"] > 0.99) == (counted == 1)
    assert LEAST_IMAGES == 40
    assert measured(images[few], labels[few], poses[few]) == {}


def test_a_dimension_that_stands_still_does_no_harm(noise) -> None:
    images, labels, poses = noise
    poses = poses.copy()
    poses[:, 3] = widths(images)
    poses[:, 4] = 0.25
    poses[:, 7] = poses[:, 3] / 2
    assert measured(images, labels, poses)["width_r2_all_dimensions"] == pytest.approx(1)


def test_classes_of_one_width_are_left_out(noise) -> None:
    images, labels, poses = noise
    equal = np.zeros((60, 1, 16, 16), np.uint8)
    equal[:, 0, 3:13, 4:9] = np.random.default_rng(4).integers(1, 256, (60, 10, 1))
    assert np.ptp(widths(equal)) < 1e-9
    assert measured(equal, np.zeros(60, int), poses[:60]) == {}
    # In every other image only: the rest alone cannot say how much is explained, nor be fitted.
    for start in (0, 1):
        half = equal.copy()
        half[start::2] = images[:30]
        assert measured(half, np.zeros(60, int), poses[:60]) == {}
    both = np.concatenate([images, equal])
    more = measured(both, np.append(labels, [3] * 60), np.concatenate([poses, poses[:60]]))
    assert more == pytest.approx(measured(images, labels, poses))


def test_a_capsnet_can_be_measured() -> None:
    images = small_capsnets.random_images(100)
    split = small_capsnets.stored(images, np.arange(100) % 2)
    found = measure_width(small_capsnets.capsnet(), split)
    assert len(found) == 3
    assert found["width_r2_best_dimension_lowest"] <= found["width_r2_best_dimension"] <= 1
