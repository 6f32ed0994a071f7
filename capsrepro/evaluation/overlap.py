"""Two digits in one image: segmentation, error by overlap, and crowding (DR17 §6).

Shape suffixes: B composites, K classes, L = 2 labels, C channels, H rows, W columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from capsrepro.data.batches import Batch, EvaluationSplit
from capsrepro.models.predictions import correct
from capsrepro.models.routing import length

INK = 0.5
"""A pixel belongs to a digit when it is at least this bright. The paper says non-zero intensity,
but a sigmoid is never zero."""

OVERLAP_EDGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
"""Bounds of the groups by overlap of ink, see `ink_overlap`."""


def ink_overlap(targets_BLCHW: Tensor) -> Tensor:
    """Share of the smaller digit's ink that lies on the other digit, shape (B,).

    Finer than the overlap of 20×20 boxes that the paper states: it is the pixels that decide
    whether a digit can still be read.
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
        ours; `label_error_pct`, the mean over labels, about half of it, which others report;
        `both_wrong_pct`. Curves, one entry per group of `OVERLAP_EDGES` that has any composite:
        `overlap_from`, `overlap_to`, `composites`, `error_pct`.
    """
    model.eval()
    exact, hits, overlaps = [], [], []
    with torch.inference_mode():
        for batch in split:
            scores_BK = model(batch.images)
            predictions_BL = scores_BK.topk(2, dim=1).indices
            found_BL = (batch.labels.unsqueeze(2) == predictions_BL.unsqueeze(1)).any(2)
            exact.append(correct(scores_BK, batch.labels).cpu())
            hits.append(found_BL.sum(1).cpu())
            overlaps.append(ink_overlap(batch.targets).cpu())
    right_B, hits_B, overlap_B = (torch.cat(x) for x in (exact, hits, overlaps))
    metrics = {
        "test_error_pct": 100 * float((~right_B).double().mean()),
        "label_error_pct": 100 * float(1 - hits_B.double().mean() / 2),
        "both_wrong_pct": 100 * float((hits_B == 0).double().mean()),
    }
    return metrics, _by_overlap(right_B, overlap_B, OVERLAP_EDGES)


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
            curves["error_pct"].append(100 * float((~right_B[chosen]).double().mean()))
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
        `segmentation_iou_found`, over those that are.
    """
    model.eval()
    total, digits, found_digits = 0.0, 0, 0
    with torch.inference_mode():
        for batch in split:
            capsules_BKD = model.class_capsules(batch.images)
            predictions_BL = length(capsules_BKD).topk(2, dim=1).indices
            found_BL = (batch.labels.unsqueeze(2) == predictions_BL.unsqueeze(1)).any(2)
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

    Composites are made of the first digits of neighbouring test composites of the same class.

    Args:
        model: A CapsNet.
        split: Test composites; its order decides the pairs.

    Returns:
        `crowded_top1_pct`, how often the longest capsule is the class; `crowded_length`, its mean
        length; `crowded_second_length`, that of the runner-up, which should be short;
        `separate_second_length`, that of the second winner on two different digits, for
        comparison.
    """
    model.eval()
    top1, longest, second, separate = [], [], [], []
    with torch.inference_mode():
        for batch in split:
            separate.append(model(batch.images).topk(2, dim=1).values[:, 1])
            images_BCHW, labels_B = same_class_pairs(batch)
            if len(labels_B):
                lengths = model(images_BCHW).topk(2, dim=1)
                top1.append((lengths.indices[:, 0] == labels_B).double())
                longest.append(lengths.values[:, 0])
                second.append(lengths.values[:, 1])
    return {
        "crowded_top1_pct": 100 * float(torch.cat(top1).mean()),
        "crowded_length": float(torch.cat(longest).mean()),
        "crowded_second_length": float(torch.cat(second).mean()),
        "separate_second_length": float(torch.cat(separate).mean()),
    }


def same_class_pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Overlay the first digits of neighbouring composites of one class.

    Returns:
        Images (P, C, H, W), cut off at 1, and their one class (P,).
    """
    labels_B, singles_BCHW = batch.labels[:, 0], batch.targets[:, 0]
    order = labels_B.argsort(stable=True)
    first, second = order[:-1], order[1:]
    same = labels_B[first] == labels_B[second]
    # Every digit in one pair at most, so that pairs are independent of each other.
    rank = torch.arange(len(first), device=order.device)
    start = torch.searchsorted(labels_B[order].contiguous(), labels_B[first].contiguous())
    same &= (rank - start) % 2 == 0
    images = (singles_BCHW[first[same]] + singles_BCHW[second[same]]).clamp(max=1)
    return images, labels_B[first[same]]
