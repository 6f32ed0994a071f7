"""Writes CIFAR-10 and SVHN in their official formats, of any size, for tests to read.

A split is a pair of images, uint8 (count, 3, 32, 32), and labels, uint8 (count, 1).
"""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = tuple[NDArray, NDArray]
Member: TypeAlias = tuple[str | tarfile.TarInfo, bytes]

CIFAR10_NAMES = (
    b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"  # as in the archive
)
CIFAR10_README = (
    b'<meta HTTP-EQUIV="REFRESH" content="0; url=http://www.cs.toronto.edu/~kriz/cifar.html">\n'
)


def random_split(count: int, seed: int = 0) -> Arrays:
    """Random pixels, and ten classes of the same size in random order."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3, 32, 32), np.uint8)
    labels = generator.permutation(np.arange(count) % 10).astype(np.uint8)
    return images, labels[:, None]


def write_tar(path: Path, members: Iterable[Member], level: int = 1) -> Path:
    """Write a tar archive.

    Args:
        path: Ends in `.gz` or `.xz`.
        members: Names, those of folders with `/` at the end, or ready headers; and contents.
        level: Of compression; 0 is quickest by far on noise.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    setting = "preset" if path.suffix == ".xz" else "compresslevel"
    with tarfile.open(path, f"w:{path.suffix[1:]}", **{setting: level}) as archive:
        for member, content in members:
            archive.addfile(_header(member, len(content)), io.BytesIO(content))
    return path


def _header(member: str | tarfile.TarInfo, size: int) -> tarfile.TarInfo:
    if isinstance(member, tarfile.TarInfo):
        return member
    info = tarfile.TarInfo(member)
    info.type, info.size = (tarfile.DIRTYPE, 0) if member.endswith("/") else (info.type, size)
    return info


def cifar10_members(splits: Mapping[str, Arrays]) -> dict[str, bytes]:
    """The members of the official archive, in its order; `train` is cut into five batches."""
    images, labels = splits["train"]
    batches = [
        _records(*arrays) for arrays in zip(np.split(images, 5), np.split(labels, 5), strict=True)
    ]
    contents = {
        "": b"",
        "data_batch_1.bin": batches[0],
        "batches.meta.txt": CIFAR10_NAMES,
        "data_batch_3.bin": batches[2],
        "data_batch_4.bin": batches[3],
        "test_batch.bin": _records(*splits["test"]),
        "readme.html": CIFAR10_README,
        "data_batch_5.bin": batches[4],
        "data_batch_2.bin": batches[1],
    }
    return {f"cifar-10-batches-bin/{name}": content for name, content in contents.items()}


def _records(images: NDArray, labels: NDArray) -> bytes:
    return np.concatenate([labels, images.reshape(len(images), -1)], axis=1).tobytes()


def write_cifar10(raw_root: Path, splits: Mapping[str, Arrays], level: int = 0) -> Path:
    """Write `cifar10/cifar-10-binary.tar.gz` below `raw_root`."""
    path = raw_root / "cifar10/cifar-10-binary.tar.gz"
    return write_tar(path, cifar10_members(splits).items(), level)


def jpeg(image: NDArray) -> bytes:
    """One image, (3, height, width), as a JPEG of quality 75 with colour at half resolution."""
    from PIL import Image

    file = io.BytesIO()
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    Image.fromarray(pixels).save(file, "JPEG", quality=75, subsampling="4:2:0")
    return file.getvalue()


def cifar10_jpeg_members(splits: Mapping[str, Arrays]) -> dict[str, bytes]:
    """The members of the JPEG archive, in its order."""
    members = {}
    for split, (images, labels) in splits.items():
        members[f"{split}_labels.txt"] = b"".join(b"%d\n" % label for label in labels[:, 0])
        members |= {f"{split}/{i:05d}.jpg": jpeg(image) for i, image in enumerate(images)}
    return members


def write_cifar10_jpeg(raw_root: Path, splits: Mapping[str, Arrays]) -> Path:
    """Write `cifar10-jpeg75/cifar10_jpegs_official_order.tar.xz` below `raw_root`."""
    path = raw_root / "cifar10-jpeg75/cifar10_jpegs_official_order.tar.xz"
    return write_tar(path, cifar10_jpeg_members(splits).items())


def svhn_variables(images: NDArray, labels: NDArray) -> dict[str, NDArray]:
    """`X` and `y` of the official files: images last, and 10 for the digit 0."""
    return {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)}


def write_svhn(raw_root: Path, split: str, images: NDArray, labels: NDArray) -> Path:
    """Write `svhn/<split>_32x32.mat` below `raw_root`."""
    from scipy.io import savemat

    path = raw_root / f"svhn/{split}_32x32.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, svhn_variables(images, labels), do_compression=True)
    return path


def matlab_variable(
    name: str, array: NDArray, stored_type: int = 2, matlab_class: int = 9
) -> bytes:
    """What MATLAB writes for an array, before it is compressed; 2 and 9 stand for uint8."""
    parts = [
        struct.pack("<IIII", 6, 8, matlab_class, 0),
        struct.pack(f"<II{array.ndim}i", 5, 4 * array.ndim, *array.shape),
        struct.pack("<HH4s", 1, len(name), name.encode()),
        struct.pack("<II", stored_type, array.nbytes) + array.tobytes("F"),
    ]
    content = b"".join(part + bytes(-len(part) % 8) for part in parts)
    return struct.pack("<II", 14, len(content)) + content


def write_matlab(path: Path, *variables: bytes) -> Path:
    """Write a MATLAB 5 file, every variable compressed."""
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    packed = [zlib.compress(variable) for variable in variables]
    elements = [struct.pack("<II", 15, len(stream)) + stream for stream in packed]
    path.write_bytes(header + b"".join(elements))
    return path
