"""Test error when every image is classified by several crops of it (Hinton et al. 2018, EM18 §5).

EM18 does not say which crops. Its authors' program has thirteen: the central one and those moved
by ±1, ±2 and ±3 pixels along both diagonals. The activations of each crop are divided by their sum
and added up over the crops; the highest sum is the prediction.

Shape suffixes: N images, B of a batch, K classes, L labels per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, product

import torch
from torch import Tensor, nn

from capsrepro.data.batches import EvaluationSplit
from capsrepro.errors import CapsreproError
from capsrepro.models.predictions import correct

Offset = tuple[int, int]


def crop_rings(offsets_px: Sequence[int]) -> Iterator[list[Offset]]:
    """The central crop, then for each distance the four on the diagonals.

    Args:
        offsets_px: Distances in rows and in columns; EM18-code: 1, 2, 3.
    """
    yield [(0, 0)]
    for offset in offsets_px:
        yield [(down * offset, right * offset) for down, right in product((-1, 1), repeat=2)]


def measure_crops(
    model: nn.Module, split: EvaluationSplit, offsets_px: Sequence[int]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Classify every image by more and more of its crops, unaugmented otherwise.

    Args:
        model: Returns class activations_BK, none negative.
        split: Test images with a crop among their operations.
        offsets_px: See `crop_rings`.

    Returns:
        Metrics: `test_error_pct` by all crops, `test_images`, and `central_errors`, a count by the
        central crop alone. Curves: `crops`, how many, and their `test_error_pct`.

    Raises:
        CapsreproError: The images are not cropped, or a crop would leave them.
    """
    rings = list(crop_rings(offsets_px))
    for offset in chain.from_iterable(rings):
        _check(split.moved(offset))
    model.eval()
    wrong: list[int] = []
    sums_NK = torch.zeros(())
    for ring in rings:
        for offset in ring:
            shares_NK, labels_NL = _shares(model, split.moved(offset))
            sums_NK = sums_NK + shares_NK
        wrong.append(split.items - int(correct(sums_NK, labels_NL).sum()))
    errors_pct = [100 * count / split.items for count in wrong]
    metrics: dict[str, float] = {
        "test_error_pct": errors_pct[-1],
        "test_images": split.items,
        "central_errors": wrong[0],
    }
    crops = [float(1 + 4 * n) for n in range(len(rings))]
    return metrics, {"crops": crops, "test_error_pct": errors_pct}


def _shares(model: nn.Module, split: EvaluationSplit) -> tuple[Tensor, Tensor]:
    """Activations_NK divided by their sum, and labels_NL.

    In float64, so that the division never makes two activations equal that are not.
    """
    with torch.inference_mode():
        parts = [(model(batch.images).double(), batch.labels) for batch in split]
    activations_NK, labels_NL = (torch.cat(part) for part in zip(*parts, strict=True))
    least = torch.finfo(activations_NK.dtype).tiny
    return activations_NK / activations_NK.sum(1, keepdim=True).clamp(min=least), labels_NL


def _check(split: EvaluationSplit) -> None:
    """Try the first images, before anything takes long."""
    try:
        next(iter(split))
    except ValueError as error:
        raise CapsreproError(
            f"the images cannot be classified by several crops: {error}; ask for smaller offsets "
            "in the `crops` of a protocol whose images are cropped."
        ) from error
