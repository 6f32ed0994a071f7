"""What the decoder draws: DR17 Figures 3, 4 and 5, and numbers for what they show.

Shape suffixes: B images, N chosen images, K classes, D pose dimensions, L labels per image,
C channels, H rows, W columns, S steps of a perturbation, X = N·D·S.
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
Parts = tuple[Tensor, ...]

PERTURBATIONS = tuple(step / 20 for step in range(-5, 6))
"""DR17 §5.1: −0.25 to 0.25 in steps of 0.05, added to one dimension of the class capsule."""


def measure_reconstruction(model: Any, split: EvaluationSplit) -> dict[str, float]:
    """Reconstruction errors of present digits, and what is drawn for absent ones.

    Args:
        model: A CapsNet with a decoder.
        split: Test images that do not show every class.

    Returns:
        In squared pixel values summed over a picture: `digit_sse`, of a true digit's picture
        against its target, `target_energy`, of the target, and `present_energy`, of what is drawn,
        all three means over the true digits of all images; `absent_energy`, of what is drawn for a
        class that is not in the image, the mean over all those. DR17 Fig. 5 says that absent digits
        come out near empty: `absent_energy_pct` is 100 · absent / present.

        No decoder ever learned to draw nothing: `empty_energy` is that of its picture of a capsule
        of zeros. `present_change` and `absent_change` are what a capsule adds to that picture, the
        squared differences from it; `absent_change_pct` is 100 · absent / present of these.
    """
    model.eval()
    names = ("sse", "target", "present", "absent", "present_change", "absent_change")
    sums = dict.fromkeys(names, 0.0)
    labels_seen = absent_seen = 0
    with torch.inference_mode():
        for batch in split:
            capsules_BKD = model.class_capsules(batch.images)
            B, K, _ = capsules_BKD.shape
            classes_BK = torch.arange(K, device=batch.labels.device).expand(B, K)
            drawn_BKCHW = model.decoder(capsules_BKD, classes_BK)
            energy_BK = drawn_BKCHW.square().flatten(2).sum(2).double()
            present_BK = torch.zeros_like(energy_BK).scatter(1, batch.labels, 1.0)
            every_B1 = torch.arange(B, device=batch.labels.device).unsqueeze(1)
            difference_BLCHW = drawn_BKCHW[every_B1, batch.labels] - batch.targets
            sums["sse"] += float(difference_BLCHW.square().double().sum())
            sums["target"] += float(batch.targets.square().double().sum())
            sums["present"] += float((energy_BK * present_BK).sum())
            sums["absent"] += float((energy_BK * (1 - present_BK)).sum())
            # The same for every class and batch.
            empty_CHW = model.decoder(torch.zeros_like(capsules_BKD[:1]), classes_BK[:1, :1])[0, 0]
            change_BK = (drawn_BKCHW - empty_CHW).square().flatten(2).sum(2).double()
            sums["present_change"] += float((change_BK * present_BK).sum())
            sums["absent_change"] += float((change_BK * (1 - present_BK)).sum())
            labels_seen += batch.labels.numel()
            absent_seen += int((1 - present_BK).sum())
    present, absent = sums["present"] / labels_seen, sums["absent"] / absent_seen
    added = sums["present_change"] / labels_seen, sums["absent_change"] / absent_seen
    return {
        "digit_sse": sums["sse"] / labels_seen,
        "target_energy": sums["target"] / labels_seen,
        "present_energy": present,
        "absent_energy": absent,
        "absent_energy_pct": 100 * absent / present,
        "empty_energy": float(empty_CHW.square().double().sum()),
        "present_change": added[0],
        "absent_change": added[1],
        "absent_change_pct": 100 * added[1] / added[0],
    }


def draw_examples(model: Any, split: EvaluationSplit, right: int, wrong: int) -> Arrays:
    """The first images that are classified right and the first that are not (DR17 Figs 3 and 5).

    Args:
        model: A CapsNet with a decoder.
        split: Test images, in order.
        right: How many that are classified right: the first of each label (with two, each pair),
            then, if that is not enough, the first of the others; fewer when fewer are right.
        wrong: How many that are not, whatever their labels; fewer when the model errs less often.

    Returns:
        uint8 pictures and classes, the right before the wrong: `images` (N, C, H, W), `labels` and
        `predictions` (N, L), the latter longest capsule first; `targets`, `drawn_labels`,
        `drawn_predictions` and `drawn_absent` (N, L, C, H, W), the last for the `absent` classes
        (N, L): for each label the next class that is neither label nor prediction.
    """
    model.eval()
    firsts: list[Parts] = []
    others: list[Parts] = []
    wrongs: list[Parts] = []
    seen: set[frozenset[int]] = set()
    with torch.inference_mode():
        for batch in split:
            capsules_BKD = model.class_capsules(batch.images)
            scores_BK = length(capsules_BKD)
            predictions_BL = scores_BK.topk(batch.labels.shape[1], dim=1).indices
            parts = (*batch, capsules_BKD, predictions_BL)
            none = tuple(part[:0] for part in parts)
            for item, hit in enumerate(correct(scores_BK, batch.labels).tolist()):
                key = frozenset(batch.labels[item].tolist())
                found, wanted = wrongs, wrong
                if hit:
                    found, wanted = others if key in seen else firsts, right
                    seen.add(key)
                if len(found) < wanted:
                    found.append(tuple(part[[item]] for part in parts))
            if len(firsts) >= right and len(wrongs) >= wrong:
                break
        return _pictures(model, [none, *[*firsts, *others][:right], *wrongs])


def _pictures(model: Any, examples: Sequence[Parts]) -> Arrays:
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
    """For every label the next class that is neither label nor prediction nor chosen already.

    There must be three classes or more for each label.
    """
    chosen = torch.empty_like(labels_BL)
    for row, (labels, predictions) in enumerate(
        zip(labels_BL.tolist(), predictions_BL.tolist(), strict=True)
    ):
        taken = {*labels, *predictions}
        for place, label in enumerate(labels):
            after = ((label + step) % classes for step in range(1, classes))
            chosen[row, place] = other = next(name for name in after if name not in taken)
            taken.add(other)
    return chosen


def draw_perturbations(model: Any, split: EvaluationSplit, digits: Sequence[int]) -> Arrays:
    """Change one dimension of a capsule at a time and draw (DR17 §5.1, Fig. 4).

    Args:
        model: A CapsNet with a decoder.
        split: Test images of one label each.
        digits: Classes; the n-th mention of one takes its n-th correctly classified image, and is
            left out when there is none.

    Returns:
        `perturbed` (N, D, S, C, H, W) uint8, every dimension in every step of `PERTURBATIONS`;
        `perturbed_labels` (N,); `perturbed_inputs` (N, C, H, W).
    """
    model.eval()
    with torch.inference_mode():
        images_NCHW, labels_N = _first_right(model, split, digits)
        capsules_NKD = model.class_capsules(images_NCHW)
        N, _, D = capsules_NKD.shape
        S = len(PERTURBATIONS)
        every_N = torch.arange(N, device=labels_N.device)
        steps_S1 = torch.tensor(PERTURBATIONS, device=capsules_NKD.device).unsqueeze(1)
        # One dimension up or down, for every dimension and every step.
        offsets_DSD = steps_S1 * torch.eye(D, device=capsules_NKD.device).unsqueeze(1)
        moved_NDSKD = capsules_NKD[:, None, None].repeat(1, D, S, 1, 1)
        moved_NDSKD[every_N, :, :, labels_N] += offsets_DSD
        repeated_X1 = labels_N.repeat_interleave(D * S).unsqueeze(1)
        drawn_X1CHW = model.decoder(moved_NDSKD.flatten(0, 2), repeated_X1)
        return {
            "perturbed": as_bytes(drawn_X1CHW).reshape(N, D, S, *drawn_X1CHW.shape[2:]),
            "perturbed_labels": labels_N.to(torch.uint8).cpu().numpy(),
            "perturbed_inputs": as_bytes(images_NCHW),
        }


def _first_right(
    model: Any, split: EvaluationSplit, digits: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The first correctly classified images of these classes, in their order, and their labels."""
    missing = dict(enumerate(digits))
    found: dict[int, Tensor] = {}
    for batch in split:
        none = batch.images[:0]
        for item in correct(model(batch.images), batch.labels).nonzero()[:, 0].tolist():
            label = int(batch.labels[item, 0])
            place = next((place for place, digit in missing.items() if digit == label), None)
            if place is not None:
                del missing[place]
                found[place] = batch.images[[item]]
        if not missing:
            break
    places = sorted(found)
    images_NCHW = torch.cat([none, *(found[place] for place in places)])
    labels = [digits[place] for place in places]
    return images_NCHW, torch.tensor(labels, dtype=torch.int64, device=images_NCHW.device)


def as_bytes(pictures: Tensor) -> NDArray[np.uint8]:
    """Pixels of 0..1 as bytes, rounded to the nearest; values beyond are cut off."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
