"""Test error against a count by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.running.assembly import build_model

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CPU = torch.device("cpu")


class Lookup(nn.Module):
    """Scores by the value of the first pixel; notes what it is shown."""

    def __init__(self, scores: list[list[float]]) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)
        self.shown: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        self.shown.append(images)
        return self.scores[(images[:, 0, 0, 0] * 255).round().long()]


def split_of(labels: list[list[int]], batch_size: int = 4) -> EvaluationSplit:
    """Image i has the value i everywhere."""
    images = np.arange(len(labels), dtype=np.uint8).repeat(4).reshape(-1, 1, 2, 2)
    return EvaluationSplit(
        StoredExamples(images, np.array(labels, np.uint8), CPU), batch_size=batch_size
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5, 250])
def test_error_is_counted_once_per_image(batch_size: int) -> None:
    model = Lookup([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0.1, 0.2, 0.3]]).train()
    found = measure_accuracy(model, split_of([[0], [1], [1], [2], [2]], batch_size))
    assert found == {"test_error_pct": 40.0, "test_errors": 2, "test_images": 5}


def test_two_labels_must_both_be_right() -> None:
    scores = [[0.9, 0.8, 0.1], [0.9, 0.1, 0.8], [0.1, 0.8, 0.9], [0.9, 0.8, 0.1]]
    found = measure_accuracy(Lookup(scores), split_of([[0, 1], [0, 1], [1, 2], [1, 0]]))
    assert (found["test_errors"], found["test_error_pct"]) == (1, 25.0)


def test_images_are_shown_as_they_are() -> None:
    model = Lookup([[1, 0]] * 10)
    measure_accuracy(model, split_of([[0]] * 10))
    expected = torch.arange(10).repeat_interleave(4).view(10, 1, 2, 2) / 255
    assert torch.equal(torch.cat(model.shown), expected)


@pytest.mark.parametrize("name", ["cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon"])
def test_a_network_is_judged_the_same_in_any_batch_size(name: str) -> None:
    model = build_model(resolve_run(PARAMS, f"digits/{name}/seed-0"), CPU).train()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 1, 8, 8), np.uint8)
    with torch.no_grad():
        scores = model.eval()(torch.from_numpy(images) / 255)
    # Half of the labels are what the network says, so that right and wrong are both met.
    labels = scores.argmax(1).numpy().astype(np.uint8)
    labels[::2] = (labels[::2] + 1) % 10
    for batch_size in (1, 7, 60):
        split = EvaluationSplit(StoredExamples(images, labels[:, None], CPU), batch_size=batch_size)
        found = measure_accuracy(model.train(), split)
        assert found == {"test_error_pct": 50.0, "test_errors": 30, "test_images": 60}
