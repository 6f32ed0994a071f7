"""CIFAR-10 after JPEG at quality 75: for trying code on photographs where the official is not.

The same 60,000 images in the same order, but the pixels are lossy (mean PSNR 30.5 dB, colour at
half resolution). A number from it is "CIFAR-10 (JPEG q75)", never CIFAR-10, and enters no verdict.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.archives import read_members, unreadable
from capsrepro.data.cifar10 import CLASSES, COUNTS, check_labels, empty_split
from capsrepro.data.dataset import Dataset, Labels, Parameter, Split, Splits
from capsrepro.data.sources import SOURCES
from capsrepro.errors import CapsreproError

NAME = "cifar10-jpeg"
JPEG_MOST_BYTES = 4_096  # 1,124 in the real archive


def prepare(raw_root: Path, parameters: Mapping[str, Parameter]) -> Splits:
    """Read the archive and decode every image.

    Args:
        raw_root: Folder that holds `cifar10-jpeg75/` with the archive.
        parameters: None are known; the mapping is empty.

    Yields:
        `train` and `test`, in the official order: images (count, 3, 32, 32) 0..255, whose
        channels are red, green, blue, and labels (count, 1) 0..9.

    Raises:
        CapsreproError: The archive is missing or is not what it should be, or Pillow is missing.
    """
    path = raw_root / "cifar10-jpeg75" / "cifar10_jpegs_official_order.tar.xz"
    yield from read_jpegs(path, COUNTS).items()


def read_jpegs(path: Path, counts: Mapping[str, int]) -> dict[str, Split]:
    """Read an archive of `<split>/<index>.jpg` and `<split>_labels.txt`, in whatever order.

    Args:
        path: The `.tar.xz` file.
        counts: Images per split, multiples of 10.

    Returns:
        Every split; arrays as in `prepare`.

    Raises:
        CapsreproError: The archive is missing, damaged, or has other members; an image is not a
            colour JPEG of 32×32 pixels; labels are not as in CIFAR-10; or Pillow is missing.
    """
    splits = {split: empty_split(count) for split, count in counts.items()}
    labels = {f"{split}_labels.txt": split for split in counts}
    places = {
        f"{split}/{index:05}.jpg": (split, index)
        for split, count in counts.items()
        for index in range(count)
    }
    sizes = dict.fromkeys(places, (1, JPEG_MOST_BYTES))
    sizes |= {name: (2 * counts[split], 2 * counts[split]) for name, split in labels.items()}
    for name, content in read_members(path, sizes, NAME):
        try:
            if name in labels:
                splits[labels[name]].labels[:] = _parse_labels(content)
            else:
                split, index = places[name]
                splits[split].images[index] = _decode(content)
        except (OSError, SyntaxError, ValueError) as error:
            raise unreadable(path, f"its member {name!r}: {error}", NAME) from error
    for arrays in splits.values():
        check_labels(path, arrays.labels, NAME)
    return splits


def _parse_labels(content: bytes) -> Labels:
    """One digit per line, as an array of shape (lines, 1)."""
    if content[1::2].strip(b"\n") or not content[::2].isdigit():
        raise ValueError("not one digit per line")
    return np.frombuffer(content, np.uint8)[::2, None] - ord("0")


def _decode(content: bytes) -> NDArray[np.uint8]:
    """The pixels of a JPEG, shape (3, 32, 32)."""
    try:
        from PIL.JpegImagePlugin import JpegImageFile
    except ImportError as error:
        raise CapsreproError(
            f"data set {NAME} needs Pillow, which is not installed; run `uv sync --extra train`."
        ) from error
    # Pillow tells the size before it decodes: a JPEG of 1 KB may claim four gigapixels. The
    # decoder of torchvision gives the same pixels in half the time, but is soon to be removed.
    image = JpegImageFile(io.BytesIO(content))
    if image.size != (32, 32) or image.mode != "RGB":
        width, height = image.size
        raise ValueError(f"a JPEG of {width}×{height} pixels in mode {image.mode}")
    return np.asarray(image).transpose(2, 0, 1)


DATASET = Dataset(
    name=NAME,
    title="CIFAR-10 (JPEG q75)",
    sources=SOURCES[NAME],
    prepare=prepare,
    parameters={},
    image_shape=(3, 32, 32),
    classes=CLASSES,
    counts=COUNTS,
    licence=SOURCES[NAME][0].licence,
    citation=SOURCES[NAME][0].citation,
    optional=True,
)
