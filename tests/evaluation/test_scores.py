"""The class scores that are kept: which, how exactly, and how many images they get wrong."""

from __future__ import annotations

import numpy as np
import torch
from small_capsnets import CPU, capsnet, random_images, stored
from torch import nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.scores import measure_scores


class Told(nn.Module):
    """Gives the scores that it is told; the brightness of an image is its place among them."""

    def __init__(self, scores_NK):
        super().__init__()
        self.scores_NK = torch.tensor(scores_NK, dtype=torch.float32)

    def forward(self, images):
        return self.scores_NK[(images[:, 0, 0, 0] * 255).round().long()]


def places(count, labels):
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    labels = np.array(labels, np.uint8).reshape(count, -1)
    return EvaluationSplit(StoredExamples(images, labels, CPU), batch_size=2)


def test_every_image_in_order_and_rounded():
    scores = np.random.default_rng(0).uniform(0, 1, (7, 3))
    labels = [0, 1, 2, 0, 1, 2, 0]
    model = Told(scores).train()
    metrics, arrays = measure_scores(model, places(7, labels))
    assert {name: array.dtype for name, array in arrays.items()} == {
        "scores": np.float16,
        "labels": np.uint8,
    }
    np.testing.assert_array_equal(arrays["scores"], scores.astype(np.float32).astype(np.float16))
    np.testing.assert_array_equal(arrays["labels"][:, 0], labels)
    assert not model.training
    wrong = int((scores.argmax(1) != labels).sum())
    assert metrics == {
        "test_error_pct": 100 * wrong / 7,
        "test_errors": wrong,
        "test_images": 7,
        "tied_images": 0,
    }


def test_a_real_network_errs_as_often_as_in_its_test():
    images = random_images(60)
    split = stored(images, np.arange(60) % 10)
    model = capsnet()
    with torch.no_grad():
        model.transforms_KEID /= 10  # lengths close to 1 would be equal when rounded
    metrics, arrays = measure_scores(model, split)
    tested = measure_accuracy(model, split)
    assert metrics["tied_images"] == 0
    assert {name: metrics[name] for name in tested} == tested
    assert 0 < metrics["test_errors"] < 60
    assert 0 <= arrays["scores"].min() < arrays["scores"].max() < 1


def test_rounding_alone_makes_ties_and_they_are_counted():
    """Half a spacing of float16 at 0.75 apart: the lower class is taken, wrongly."""
    close = [0.75, 0.75 + 2**-13, 0.1]
    split = places(3, [1, 1, 0])
    model = Told([close, [0.1, 0.9, 0.2], close])
    assert measure_accuracy(model, split)["test_errors"] == 1
    metrics, _ = measure_scores(model, split)
    assert (metrics["test_errors"], metrics["tied_images"]) == (1, 2)
    metrics, _ = measure_scores(model, places(3, [1, 1, 1]))
    assert (metrics["test_errors"], metrics["tied_images"]) == (2, 2)


def test_two_labels():
    model = Told([[0.9, 0.1, 0.8], [0.1, 0.5, 0.5], [0.5, 0.5, 0.5]])
    metrics, arrays = measure_scores(model, places(3, [[2, 0], [0, 1], [0, 1]]))
    assert arrays["labels"].shape == (3, 2)
    assert (metrics["test_errors"], metrics["tied_images"]) == (1, 1)
