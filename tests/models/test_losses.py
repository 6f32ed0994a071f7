import pytest
import torch

from capsrepro.models.losses import (
    cross_entropy,
    margin_loss,
    present,
    reconstruction_sse,
)
from capsrepro.models.predictions import correct


def test_margin_loss_by_hand() -> None:
    lengths = torch.tensor([[0.8, 0.3, 0.05], [0.95, 0.1, 0.1]], dtype=torch.float64)
    labels = present(torch.tensor([[0], [0]]), 3).double()
    # (0.9-0.8)² + 0.5·(0.3-0.1)²; the second image is past both margins.
    expected = torch.tensor([0.01 + 0.5 * 0.04, 0.0], dtype=torch.float64)
    torch.testing.assert_close(margin_loss(lengths, labels), expected)


def test_authors_reduction_is_a_twentieth_of_the_sum_for_ten_classes() -> None:
    lengths = torch.rand(5, 10)
    labels = present(torch.randint(0, 10, (5, 1)), 10)
    torch.testing.assert_close(
        margin_loss(lengths, labels, "half-mean"), margin_loss(lengths, labels, "sum") / 20
    )


def test_equal_lengths_have_the_loss_of_the_paper_specification() -> None:
    # paper_spec A1: all lengths 0.245 give 0.524 in the scale of Eq. 4 and 0.0262 in the authors'.
    lengths, labels = torch.full((1, 10), 0.245), present(torch.tensor([[3]]), 10)
    assert margin_loss(lengths, labels, "sum").item() == pytest.approx(0.524, abs=5e-4)
    assert margin_loss(lengths, labels, "half-mean").item() == pytest.approx(0.0262, abs=5e-5)


def test_margin_loss_counts_both_digits_of_two() -> None:
    lengths = torch.tensor([[0.9, 0.9, 0.1]])
    assert margin_loss(lengths, present(torch.tensor([[0, 1]]), 3)).item() == 0
    assert margin_loss(lengths, present(torch.tensor([[0, 2]]), 3)).item() > 0.5


def test_cross_entropy_agrees_with_torch() -> None:
    logits, labels = torch.randn(6, 10), torch.randint(0, 10, (6,))
    torch.testing.assert_close(
        cross_entropy(logits, present(labels[:, None], 10)),
        torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
    )


def test_reconstruction_is_a_sum_not_a_mean() -> None:
    zeros, ones = torch.zeros(2, 1, 1, 28, 28), torch.ones(2, 1, 1, 28, 28)
    assert reconstruction_sse(zeros, ones).tolist() == [784, 784]


@pytest.mark.parametrize(
    ("labels", "right"),
    [([[2]], True), ([[1]], False), ([[1, 2]], True), ([[2, 1]], True), ([[0, 2]], False)],
)
def test_correct_needs_every_label(labels: list[list[int]], right: bool) -> None:
    scores = torch.tensor([[0.1, 0.5, 0.9, 0.2]])
    assert correct(scores, torch.tensor(labels)).tolist() == [right]
