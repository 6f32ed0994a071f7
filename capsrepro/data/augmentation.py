"""What a network sees of an image: shifts, crops, flips, brightness, contrast, standardisation.

Every operation is a function of the pixels and of one random number per image, and runs on the
device. In training a crop is random and a flip, brightness or contrast may happen; in evaluation
crops are central and only what is not random stays (`central`).

Sources: DR17 §5 (shift), §7 (crops); DR17-code and EM18-code use TensorFlow's image operations,
whose arithmetic this follows: one brightness change per image, contrast about the mean of every
channel, no clipping after either, standardisation over all channels together.

Shape suffixes: B images, C channels, H rows, W columns; R and S rows and columns of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from capsrepro.data.counters import mix, uniform
from capsrepro.schema.augmentation import Brightness, Contrast, Crop, Flip, Operation, Standardise


def windows(
    images_NCHW: Tensor, items_B: Tensor, top_B: Tensor, left_B: Tensor, R: int, S: int
) -> Tensor:
    """Cut windows out of images.

    Args:
        images_NCHW: Any type.
        items_B: Which image each window is cut from, int64.
        top_B: First row of each window, int64, 0..H-R.
        left_B: First column, 0..W-S.
        R: Rows.
        S: Columns.

    Returns:
        Shape (B, C, R, S), contiguous.
    """
    # Every window there is, as a view: indexing it copies whole rows, five times as fast as
    # gathering pixels.
    every_NCPQRS = images_NCHW.unfold(2, R, 1).unfold(3, S, 1)
    return every_NCPQRS[items_B, :, top_B, left_B].contiguous()


def shift(images_BCHW: Tensor, shift_px: int, numbers_B: Tensor) -> Tensor:
    """Move every image by a whole number of pixels along each axis and fill with black.

    Args:
        images_BCHW: Any type.
        shift_px: Largest shift; all (2·shift_px + 1)² of them are equally likely.
        numbers_B: One random number in [0, 2^63) per image.
    """
    if shift_px == 0:
        return images_BCHW
    choices = 2 * shift_px + 1
    place_B = numbers_B % choices**2
    padded = F.pad(images_BCHW, [shift_px] * 4)
    H, W = images_BCHW.shape[2:]
    return windows(padded, _all(images_BCHW), place_B // choices, place_B % choices, H, W)


def _all(images_BCHW: Tensor) -> Tensor:
    """Every image of a batch, once."""
    return torch.arange(len(images_BCHW), device=images_BCHW.device)


def _crop(images_BCHW: Tensor, crop: Crop, numbers_B: Tensor) -> Tensor:
    size = crop.size_px
    H, W = images_BCHW.shape[2:]
    place_B = numbers_B % ((H - size + 1) * (W - size + 1))
    top_B, left_B = place_B // (W - size + 1), place_B % (W - size + 1)
    return windows(images_BCHW, _all(images_BCHW), top_B, left_B, size, size)


def _flip(images_BCHW: Tensor, _: Flip, numbers_B: Tensor) -> Tensor:
    flipped_B111 = (numbers_B % 2).bool().view(-1, 1, 1, 1)
    return torch.where(flipped_B111, images_BCHW.flip(3), images_BCHW)


def _brighten(images_BCHW: Tensor, brightness: Brightness, numbers_B: Tensor) -> Tensor:
    delta_B = (2 * uniform(numbers_B) - 1) * float(brightness.max_delta)
    return images_BCHW + delta_B.view(-1, 1, 1, 1)


def _contrast(images_BCHW: Tensor, contrast: Contrast, numbers_B: Tensor) -> Tensor:
    factor_B = contrast.lower + (contrast.upper - contrast.lower) * uniform(numbers_B)
    mean_BC11 = images_BCHW.mean((2, 3), keepdim=True)
    return (images_BCHW - mean_BC11) * factor_B.view(-1, 1, 1, 1) + mean_BC11


def _standardise(images_BCHW: Tensor, *_: object) -> Tensor:
    mean_B111, deviation_B111 = _moments(images_BCHW)
    return (images_BCHW - mean_B111) / deviation_B111


def _moments(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every image, each of shape (B, 1, 1, 1)."""
    pixels = images_BCHW[0].numel()
    variance_B111, mean_B111 = torch.var_mean(images_BCHW, (1, 2, 3), correction=0, keepdim=True)
    # TensorFlow's guard against images of one colour, for pixels of 0..255; ours are 0..1.
    least = 1 / (255 * pixels**0.5)
    return mean_B111, variance_B111.sqrt().clamp(min=least)


_OPERATIONS: dict[type, Callable[[Tensor, Any, Tensor], Tensor]] = {
    Crop: _crop,
    Flip: _flip,
    Brightness: _brighten,
    Contrast: _contrast,
    Standardise: _standardise,
}


def augment(images_BCHW: Tensor, operations: Sequence[Operation], numbers_B: Tensor) -> Tensor:
    """Apply the operations in their order, as in training.

    Args:
        images_BCHW: float32 in [0, 1].
        operations: In the order of the reading.
        numbers_B: One random number in [0, 2^63) per image; each operation derives its own.

    Returns:
        float32, shape (B, C, R, S): a crop has made R and S smaller.
    """
    for place, operation in enumerate(operations, start=1):
        images_BCHW = _OPERATIONS[type(operation)](images_BCHW, operation, mix(numbers_B + place))
    return images_BCHW


def central(
    images_BCHW: Tensor, operations: Sequence[Operation], offset_px: tuple[int, int] = (0, 0)
) -> Tensor:
    """Apply what is left of the operations at test time: central crops and standardisation.

    Args:
        images_BCHW: float32 in [0, 1].
        operations: Those of the training.
        offset_px: How far below and right of the centre to crop, in pixels.

    Returns:
        float32, shape (B, C, R, S).

    Raises:
        ValueError: There is no crop to move, or it would leave the image.
    """
    if any(offset_px) and not any(isinstance(operation, Crop) for operation in operations):
        raise ValueError("they are not cropped")
    for operation in operations:
        if isinstance(operation, Crop):
            images_BCHW = _cut(images_BCHW, operation.size_px, offset_px)
        elif isinstance(operation, Standardise):
            images_BCHW = _standardise(images_BCHW)
    return images_BCHW


def black_and_white(images_BCHW: Tensor, operations: Sequence[Operation]) -> tuple[Tensor, Tensor]:
    """Where `central` takes a black and a white pixel of each image, each of shape (B, 1, 1, 1).

    Args:
        images_BCHW: float32 in [0, 1].
        operations: Those of the training.
    """
    black_B111 = torch.zeros_like(images_BCHW[:, :1, :1, :1])
    white_B111 = black_B111 + 1
    for operation in operations:
        if isinstance(operation, Standardise):
            mean_B111, deviation_B111 = _moments(images_BCHW)
            black_B111 = (black_B111 - mean_B111) / deviation_B111
            white_B111 = (white_B111 - mean_B111) / deviation_B111
        images_BCHW = central(images_BCHW, [operation])
    return black_B111, white_B111


def _cut(images_BCHW: Tensor, size: int, offset_px: tuple[int, int]) -> Tensor:
    """The window at this offset from the central one."""
    H, W = images_BCHW.shape[2:]
    top, left = (H - size) // 2 + offset_px[0], (W - size) // 2 + offset_px[1]
    if not (0 <= top <= H - size and 0 <= left <= W - size):
        raise ValueError(f"no window of {size} pixels lies {offset_px} off the centre of {H}×{W}")
    return images_BCHW[:, :, top : top + size, left : left + size].contiguous()


def seen_shape(
    image_shape: tuple[int, int, int], operations: Sequence[Operation]
) -> tuple[int, int, int]:
    """Shape (channels, height, width) of an image after the operations.

    Raises:
        ValueError: A crop is larger than the image.
    """
    channels, height, width = image_shape
    for operation in operations:
        if isinstance(operation, Crop):
            if operation.size_px > min(height, width):
                raise ValueError(f"{height}×{width} pixels have no window of {operation.size_px}")
            height = width = operation.size_px
    return channels, height, width
