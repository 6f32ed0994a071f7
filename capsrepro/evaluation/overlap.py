"""Two digits in one image: segmentation, error by overlap, and crowding (DR17 §6).

Shape suffixes: B composites, K classes, L = 2 labels, C channels, H rows, W columns, P pairs of
digits of one class.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from capsrepro.data.batches import EvaluationSplit
from capsrepro.models.routing import length

INK = 0.5
"""A pixel, drawn or true, belongs to a digit when it is at least this bright. The paper says
non-zero intensity, but a sigmoid is never zero."""

OVERLAP_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
"""Bounds of the groups by `ink_overlap`: each from its lower bound to below the upper, the last
with 1."""


def ink_overlap(targets_BLCHW: Tensor) -> Tensor:
    """Share of the smaller digit's pixels that the other digit covers too, shape (B,).

    Finer than the overlap of 20×20 boxes that the paper states: it is the pixels that decide
    whether a digit can still be read. 0 where a digit has no pixel of `INK`.
    """
    first, second = (targets_BLCHW >= INK).flatten(2).unbind(1)
    shared = (first & second).sum(1).double()
    return shared / torch.minimum(first.sum(1), second.sum(1)).clamp(min=1)


def intersection_over_union(drawn_BLCHW: Tensor, targets_BLCHW: Tensor) -> Tensor:
    """Overlap of drawn and true pixels of each digit, shape (B, L); 0 where both are empty."""
    drawn, true = ((x >= INK).flatten(2) for x in (drawn_BLCHW, targets_BLCHW))
    both, either = (drawn & true).sum(2).double(), (drawn | true).sum(2).double()
    return both / either.clamp(min=1)


def measure_overlap(
    model: Any, split: EvaluationSplit
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Error per composite and per label, and how the error grows with the overlap.

    Args:
        model: Returns class scores_BK.
        split: Test composites.

    Returns:
        Metrics: `test_error_pct`, both labels must be right, which is the authors' metric and
        ours; `both_wrong_pct`; `label_error_pct`, the mean of the two, which is the share of
        labels that are missed and what others report. Curves, one entry per group of
        `OVERLAP_EDGES` that has any composite: `overlap_from`, `overlap_to`, `composites`,
        `error_pct`.
    """
    model.eval()
    hits, overlaps = [], []
    with torch.inference_mode():
        for batch in split:
            winners_BL = model(batch.images).topk(2, dim=1).indices
            hits.append(_among(batch.labels, winners_BL).sum(1).cpu())
            overlaps.append(ink_overlap(batch.targets).cpu())
    hits_B, overlap_B = torch.cat(hits), torch.cat(overlaps)
    not_both, none = _share_pct(hits_B < 2), _share_pct(hits_B == 0)
    metrics = {
        "test_error_pct": not_both,
        "label_error_pct": (not_both + none) / 2,
        "both_wrong_pct": none,
    }
    return metrics, _by_overlap(hits_B == 2, overlap_B, OVERLAP_EDGES)


def _among(labels_BL: Tensor, winners_BL: Tensor) -> Tensor:
    """Which labels are among the winners: booleans of shape (B, L)."""
    return (labels_BL.unsqueeze(2) == winners_BL.unsqueeze(1)).any(2)


def _share_pct(chosen_B: Tensor) -> float:
    return 100 * int(chosen_B.sum()) / len(chosen_B)


def _by_overlap(
    right_B: Tensor, overlap_B: Tensor, edges: Sequence[float]
) -> dict[str, list[float]]:
    curves: dict[str, list[float]] = {
        key: [] for key in ("overlap_from", "overlap_to", "composites", "error_pct")
    }
    inner = torch.tensor(edges[1:-1], dtype=torch.float64)
    group_B = torch.bucketize(overlap_B, inner, right=True)
    for group, (low, high) in enumerate(itertools.pairwise(edges)):
        chosen = group_B == group
        if chosen.any():
            curves["overlap_from"].append(low)
            curves["overlap_to"].append(high)
            curves["composites"].append(float(chosen.sum()))
            curves["error_pct"].append(_share_pct(~right_B[chosen]))
    return curves


def measure_segmentation(model: Any, split: EvaluationSplit) -> dict[str, float]:
    """Intersection over union of the two winners' pictures with the true digits.

    DR17 §6 decodes each of the two longest capsules and assigns a pixel to every digit whose
    picture has ink there.

    Args:
        model: A CapsNet with a decoder.
        split: Test composites.

    Returns:
        `segmentation_iou`, the mean over all true digits, 0 for one that is not among the winners;
        `segmentation_iou_found`, the mean over those that are, 0 when none is.
    """
    model.eval()
    total, digits, found_digits = 0.0, 0, 0
    with torch.inference_mode():
        for batch in split:
            capsules_BKD = model.class_capsules(batch.images)
            found_BL = _among(batch.labels, length(capsules_BKD).topk(2, dim=1).indices)
            drawn_BLCHW = model.decoder(capsules_BKD, batch.labels)
            iou_BL = intersection_over_union(drawn_BLCHW, batch.targets) * found_BL
            total += float(iou_BL.sum())
            digits += iou_BL.numel()
            found_digits += int(found_BL.sum())
    return {
        "segmentation_iou": total / digits,
        "segmentation_iou_found": total / max(found_digits, 1),
    }


def measure_crowding(model: Any, split: EvaluationSplit) -> dict[str, float]:
    """Two digits of one class in an image, which one capsule per class cannot tell apart (DR17 §2).

    Args:
        model: A CapsNet; of another network the scores are taken for lengths.
        split: Test composites, of whose digits `same_class_composites` makes others.

    Returns:
        `crowded_top1_pct`, how often the longest capsule is the class; `crowded_length`, the mean
        length of the longest; `crowded_second_length`, that of the runner-up, which should be
        short; `separate_second_length`, that of the runner-up on the split itself, two different
        digits, for comparison. The first three are left out when no two digits can be paired.
    """
    model.eval()
    with torch.inference_mode():
        separate = [model(batch.images).topk(2, dim=1).values[:, 1] for batch in split]
        metrics = {"separate_second_length": float(torch.cat(separate).mean())}
        hits, longest = [], []
        for images_PCHW, labels_P in same_class_composites(split):
            winners = model(images_PCHW).topk(2, dim=1)
            hits.append(winners.indices[:, 0] == labels_P)
            longest.append(winners.values)
    if hits:
        first, second = torch.cat(longest).mean(0).tolist()
        crowded = {"crowded_length": first, "crowded_second_length": second}
        metrics |= {"crowded_top1_pct": _share_pct(torch.cat(hits)), **crowded}
    return metrics


def same_class_composites(split: EvaluationSplit) -> Iterator[tuple[Tensor, Tensor]]:
    """Overlay the n-th first digit of each class with the n-th second digit of that class.

    First and second digits keep their places, so that these composites overlap as those of the
    split do, however it places digits. No digit of a composite is used twice. By chance one pair in
    1,000, the test digits of a class, is of the same image at two places.

    Args:
        split: Test composites; its order alone decides the pairs, not its batches.

    Yields:
        Images (P, C, H, W), cut off at 1, and their one class (P,).
    """
    waiting: list[tuple[Tensor, Tensor]] = []
    for batch in split:
        sides = list(zip(batch.labels.unbind(1), batch.targets.unbind(1), strict=True))
        if waiting:
            joined = zip(waiting, sides, strict=True)
            sides = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in joined]
        (first_labels, first_singles), (second_labels, second_singles) = sides
        ones_P, others_P = same_class_pairs(first_labels, second_labels)
        if len(ones_P):
            images_PCHW = first_singles[ones_P] + second_singles[others_P]
            yield images_PCHW.clamp(max=1), first_labels[ones_P]
        waiting = []
        for (labels, singles), used_P in zip(sides, (ones_P, others_P), strict=True):
            left = torch.ones_like(labels, dtype=torch.bool).scatter(0, used_P, False)
            waiting.append((labels[left], singles[left]))


def same_class_pairs(first_A: Tensor, second_B: Tensor) -> Tensor:
    """Pair the n-th of each class in one list with the n-th of that class in the other.

    Args:
        first_A: Classes, int64, at least one.
        second_B: Classes, int64.

    Returns:
        Places in the first list and in the second, int64, shape (2, P).
    """
    places = []
    for label in sorted(set(first_A.tolist())):
        ones, others = ((labels == label).nonzero()[:, 0] for labels in (first_A, second_B))
        count = min(len(ones), len(others))
        places.append(torch.stack([ones[:count], others[:count]]))
    return torch.cat(places, 1)
