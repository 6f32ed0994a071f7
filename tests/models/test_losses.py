import math

import pytest
import torch

from capsrepro.models.losses import (
    CLASSIFICATION_LOSSES,
    cross_entropy,
    halved_sigmoid_cross_entropy,
    logit_difference,
    margin_loss,
    present,
    reconstruction_sse,
    sigmoid_cross_entropy,
    spread_loss,
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


def test_sigmoid_cross_entropy_by_hand() -> None:
    # σ(0) = 1/2 and σ(ln 3) = 3/4: ln 2 for either answer, ln 4/3 and ln 4 for the two answers.
    logits = torch.tensor([[0.0, math.log(3), math.log(3)]], dtype=torch.float64)
    labels = present(torch.tensor([[0, 1]]), 3).double()
    expected = math.log(2) + math.log(4 / 3) + math.log(4)
    assert sigmoid_cross_entropy(logits, labels).tolist() == pytest.approx([expected])


def test_authors_sigmoid_halves_the_targets_and_takes_the_mean() -> None:
    logits = torch.tensor([[0.0, math.log(3), math.log(3)]], dtype=torch.float64)
    labels = present(torch.tensor([[0, 1]]), 3).double()
    half = (math.log(4 / 3) + math.log(4)) / 2
    expected = (math.log(2) + half + math.log(4)) / 3
    assert halved_sigmoid_cross_entropy(logits, labels).tolist() == pytest.approx([expected])


def test_authors_sigmoid_is_least_at_one_half() -> None:
    labels = present(torch.tensor([[2, 7]]), 10)
    least = halved_sigmoid_cross_entropy(40 * (labels - 1), labels)
    assert least.item() == pytest.approx(2 * math.log(2) / 10)
    assert halved_sigmoid_cross_entropy(40 * (labels - 0.5), labels).item() > least.item()
    # The two whose classes are present may still be the highest.
    assert correct(40 * (labels - 1), torch.tensor([[7, 2]])).tolist() == [True]


def test_logit_difference_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.2, 0.6], [30.0, 10.0, 20.0]])
    one = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert logit_difference(scores, one).tolist() == pytest.approx([-0.5, 0.4, 10.0])
    # Of two labels the lower counts, against the best of those that are absent.
    both = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    assert logit_difference(scores, both).tolist() == pytest.approx([-0.2, -0.1, 10.0])
    wrong = logit_difference(scores, one) > 0
    assert wrong.tolist() == [False, True, True]


def test_losses_by_name() -> None:
    assert {
        "margin": margin_loss,
        "spread": spread_loss,
        "cross-entropy": cross_entropy,
        "sigmoid-cross-entropy": sigmoid_cross_entropy,
        "sigmoid-cross-entropy-halved": halved_sigmoid_cross_entropy,
    } == CLASSIFICATION_LOSSES


def test_no_loss_mixes_the_images_of_a_batch() -> None:
    scores, labels = torch.rand(4, 10), present(torch.randint(0, 10, (4, 2)), 10)
    for loss in CLASSIFICATION_LOSSES.values():
        together = loss(scores, labels)
        assert together.shape == (4,)
        alone = [loss(s[None], p[None]) for s, p in zip(scores, labels, strict=True)]
        torch.testing.assert_close(together, torch.cat(alone))


def test_reconstruction_is_a_sum_not_a_mean() -> None:
    zeros, ones = torch.zeros(2, 1, 1, 28, 28), torch.ones(2, 1, 1, 28, 28)
    assert reconstruction_sse(zeros, ones).tolist() == [784, 784]


def test_reconstructions_of_two_digits_are_added() -> None:
    zeros, targets = torch.zeros(1, 2, 1, 36, 36), torch.ones(1, 2, 1, 36, 36)
    targets[:, 1] = 2
    assert reconstruction_sse(zeros, targets).tolist() == [1296 + 4 * 1296]


@pytest.mark.parametrize(
    ("labels", "right"),
    [([[2]], True), ([[1]], False), ([[1, 2]], True), ([[2, 1]], True), ([[0, 2]], False)],
)
def test_correct_needs_every_label(labels: list[list[int]], right: bool) -> None:
    scores = torch.tensor([[0.1, 0.5, 0.9, 0.2]])
    assert correct(scores, torch.tensor(labels)).tolist() == [right]
