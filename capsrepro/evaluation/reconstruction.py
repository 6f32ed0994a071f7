"""What the decoder draws: DR17 Figures 3, 4 and 5, and numbers for what they show.

Shape suffixes: B images, K classes, D pose dimensions, L labels per image, C channels, H rows,
W columns, S steps of a perturbation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capsrepro.data.batches import EvaluationSplit
from capsrepro.models.predictions import correct
from capsrepro.models.routing import length

Arrays = Mapping[str, NDArray[Any]]

PERTURBATIONS = tuple(step / 20 for step in range(-5, 6))
"""DR17 §5.1: −0.25 to 0.25 in steps of 0.05, added to one dimension of the class capsule."""


def measure_reconstruction(model: Any, split: EvaluationSplit) -> dict[str, float]:
    """Reconstruction errors of present and of absent digits over a whole split.

    Args:
        model: A CapsNet with a decoder.
        split: Test images.

    Returns:
        Means over images and their digits, in squared pixel values summed over a picture:
        `digit_sse`, of the true digit's picture against its target; `target_energy`, of
        the target; `present_energy` and `absent_energy`, of what is drawn for a digit that is in
        the image and for each digit that is not. DR17 Fig. 5 says that absent digits come out
        near empty; `absent_energy_pct` is their share of a present digit's energy.
    """
    model.eval()
    sums = dict.fromkeys(("sse", "target", "present", "absent"), 0.0)
    labels_seen = absent_seen = 0
    with torch.inference_mode():
        for batch in split:
            capsules_BKD = model.class_capsules(batch.images)
            K = capsules_BKD.shape[1]
            classes_BK = torch.arange(K, device=batch.labels.device).expand(len(batch.labels), K)
            drawn_BKCHW = model.decoder(capsules_BKD, classes_BK)
            energy_BK = drawn_BKCHW.square().flatten(2).sum(2).double()
            present_BK = torch.zeros_like(energy_BK).scatter(1, batch.labels, 1.0)
            drawn_BLCHW = _chosen(drawn_BKCHW, batch.labels)
            difference = (drawn_BLCHW - batch.targets).square().double()
            sums["sse"] += float(difference.sum())
            sums["target"] += float(batch.targets.square().double().sum())
            sums["present"] += float((energy_BK * present_BK).sum())
            sums["absent"] += float((energy_BK * (1 - present_BK)).sum())
            labels_seen += batch.labels.numel()
            absent_seen += int((1 - present_BK).sum())
    present, absent = sums["present"] / labels_seen, sums["absent"] / absent_seen
    return {
        "digit_sse": sums["sse"] / labels_seen,
        "target_energy": sums["target"] / labels_seen,
        "present_energy": present,
        "absent_energy": absent,
        "absent_energy_pct": 100 * absent / present,
    }


def _chosen(drawn_BKCHW: Tensor, labels_BL: Tensor) -> Tensor:
    """Of what is drawn for every class, the pictures of these labels: shape (B, L, C, H, W)."""
    every = torch.arange(len(labels_BL), device=labels_BL.device).unsqueeze(1)
    return drawn_BKCHW[every, labels_BL]


def draw_examples(model: Any, split: EvaluationSplit, right: int, wrong: int) -> Arrays:
    """The first images that are classified right and the first that are not (DR17 Figs 3 and 5).

    Args:
        model: A CapsNet with a decoder.
        split: Test images, in order.
        right: How many that are classified right, each of other labels while there are any.
        wrong: How many that are not; fewer when the model makes fewer errors.

    Returns:
        uint8 pictures and labels: `images` (N, C, H, W), `labels` and `predictions` (N, L),
        `targets`, `drawn_labels`, `drawn_predictions` and `drawn_absent` (N, L, C, H, W), the
        last for the `absent` classes (N, L): neither label nor prediction, each the next class
        after a label that is neither.
    """
    model.eval()
    found: dict[bool, list[tuple[Tensor, ...]]] = {True: [], False: []}
    seen: set[tuple[int, ...]] = set()
    wanted = {True: right, False: wrong}
    with torch.inference_mode():
        for batch in split:
            capsules_BKD = model.class_capsules(batch.images)
            scores_BK = length(capsules_BKD)
            hits = correct(scores_BK, batch.labels).tolist()
            predictions_BL = scores_BK.topk(batch.labels.shape[1], dim=1).indices
            for item, hit in enumerate(hits):
                key = tuple(sorted(batch.labels[item].tolist()))
                if len(found[hit]) >= wanted[hit] or (hit and key in seen):
                    continue
                seen.add(key)
                parts = (*batch, capsules_BKD, predictions_BL)
                found[hit].append(tuple(part[item : item + 1] for part in parts))
            if all(len(found[hit]) >= wanted[hit] for hit in wanted):
                break
        return _pictures(model, [*found[True], *found[False]])


def _pictures(model: Any, examples: Sequence[tuple[Tensor, ...]]) -> Arrays:
    parts = (torch.cat(part) for part in zip(*examples, strict=True))
    images, labels, targets, capsules, predictions = parts
    absent = _absent(labels, predictions, capsules.shape[1])
    return {
        "images": as_bytes(images),
        "labels": labels.to(torch.uint8).cpu().numpy(),
        "predictions": predictions.to(torch.uint8).cpu().numpy(),
        "absent": absent.to(torch.uint8).cpu().numpy(),
        "targets": as_bytes(targets),
        "drawn_labels": as_bytes(model.decoder(capsules, labels)),
        "drawn_predictions": as_bytes(model.decoder(capsules, predictions)),
        "drawn_absent": as_bytes(model.decoder(capsules, absent)),
    }


def _absent(labels_BL: Tensor, predictions_BL: Tensor, classes: int) -> Tensor:
    """For every label the next class that is neither label nor prediction nor chosen already."""
    rows = []
    for labels, predictions in zip(labels_BL.tolist(), predictions_BL.tolist(), strict=True):
        taken = {*labels, *predictions}
        row = []
        for label in labels:
            after = ((label + step) % classes for step in range(1, classes))
            row.append(next(other for other in after if other not in taken))
            taken.add(row[-1])
        rows.append(row)
    return torch.tensor(rows, device=labels_BL.device)


def draw_perturbations(model: Any, split: EvaluationSplit, digits: Sequence[int]) -> Arrays:
    """Change one dimension of a capsule at a time and draw (DR17 §5.1, Fig. 4).

    Args:
        model: A CapsNet with a decoder.
        split: Test images of one label each.
        digits: Classes; the n-th mention of one takes its n-th correctly classified image.

    Returns:
        `perturbed` (N, D, S, C, H, W) uint8, every dimension in every step of `PERTURBATIONS`;
        `perturbed_labels` (N,); `perturbed_inputs` (N, C, H, W).
    """
    model.eval()
    images_BCHW, labels_B = _first_right(model, split, digits)
    with torch.inference_mode():
        capsules_BKD = model.class_capsules(images_BCHW)
        D = capsules_BKD.shape[2]
        S = len(PERTURBATIONS)
        steps_S = torch.tensor(PERTURBATIONS, device=capsules_BKD.device)
        # One dimension up or down, for every dimension and every step.
        offsets_DSD = steps_S.view(1, S, 1) * torch.eye(D, device=steps_S.device).unsqueeze(1)
        pictures = []
        for capsules_KD, label in zip(capsules_BKD, labels_B, strict=True):
            moved = capsules_KD.expand(D * S, -1, -1).clone()
            moved[:, label] += offsets_DSD.reshape(D * S, D)
            drawn = model.decoder(moved, label.expand(D * S, 1))
            pictures.append(as_bytes(drawn[:, 0]).reshape(D, S, *drawn.shape[2:]))
    return {
        "perturbed": np.stack(pictures),
        "perturbed_labels": labels_B.to(torch.uint8).cpu().numpy(),
        "perturbed_inputs": as_bytes(images_BCHW),
    }


def _first_right(
    model: Any, split: EvaluationSplit, digits: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The first correctly classified images of these classes, and their labels."""
    missing = list(digits)
    found: dict[int, list[Tensor]] = {digit: [] for digit in digits}
    with torch.inference_mode():
        for batch in split:
            hits = correct(model(batch.images), batch.labels)
            for item in torch.nonzero(hits)[:, 0].tolist():
                label = int(batch.labels[item, 0])
                if label in missing:
                    missing.remove(label)
                    found[label].append(batch.images[item])
            if not missing:
                break
    kept = [digit for digit in digits if found[digit]]
    # A class of which nothing was recognised is left out.
    order = [(found[digit].pop(0), digit) for digit in kept if found[digit]]
    images = torch.stack([image for image, _ in order])
    return images, torch.tensor([digit for _, digit in order], device=images.device)


def as_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """Pixels of 0..1 as bytes, rounded to the nearest."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
