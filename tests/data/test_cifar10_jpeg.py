"""The reader of the JPEG archive, and the real one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from official_files import cifar10_jpeg_members, jpeg, random_split, write_cifar10_jpeg, write_tar

from capsrepro.data import cifar10
from capsrepro.data.cifar10_jpeg import DATASET, JPEG_MOST_BYTES, prepare, read_jpegs
from capsrepro.errors import CapsreproError

DATASETS_FOLDER = Path(__file__).parents[3] / "shared/datasets"
ARCHIVE = "cifar10-jpeg75/cifar10_jpegs_official_order.tar.xz"
COUNTS = {"train": 20, "test": 10}

real_archive = pytest.mark.skipif(
    not (DATASETS_FOLDER / ARCHIVE).is_file(), reason=f"{DATASETS_FOLDER / ARCHIVE} is not there"
)


def smooth_split(count: int, seed: int):
    """Colour gradients, which JPEG hardly changes."""
    corners = np.random.default_rng(seed).integers(0, 256, (count, 3, 2, 2))
    ramp = np.linspace([1, 0], [0, 1], 32)
    images = np.einsum("nckl,yk,xl->ncyx", corners, ramp, ramp).round().astype(np.uint8)
    return images, random_split(count, seed)[1]


def small_splits():
    return {"train": smooth_split(20, seed=1), "test": smooth_split(10, seed=2)}


def decoded(content: bytes):
    """The pixels by Pillow's usual entrance, shape (3, height, width)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)


def grey(image) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "JPEG")
    return file.getvalue()


def png(image) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()


def claiming_huge(content: bytes) -> bytes:
    """The same JPEG with 65,500×65,500 pixels in its header: 12.9 GB when decoded."""
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + bytes([0xFF, 0xDC] * 2) + content[start + 4 :]


def test_images_and_labels_in_their_places(tmp_path):
    written = small_splits()
    members = cifar10_jpeg_members(written)
    path = write_tar(tmp_path / "x.tar.xz", reversed(members.items()))
    splits = read_jpegs(path, COUNTS)
    assert list(splits) == ["train", "test"]
    for split, (images, labels) in written.items():
        np.testing.assert_array_equal(splits[split].labels, labels)
        difference = splits[split].images.astype(int) - images
        assert np.abs(difference).mean() < 4  # lossy, and every channel in its place
        for index in (0, 1, len(images) - 1):
            expected = decoded(members[f"{split}/{index:05}.jpg"])
            np.testing.assert_array_equal(splits[split].images[index], expected)


IMAGE = smooth_split(1, seed=3)[0][0]
FAULTS = {
    "other size": (
        {"test/00003.jpg": jpeg(IMAGE[:, :, :31])},
        "its member 'test/00003.jpg': a JPEG of 31×32 pixels in mode RGB",
    ),
    "huge": (
        {"test/00003.jpg": claiming_huge(jpeg(IMAGE))},
        "its member 'test/00003.jpg': a JPEG of 65500×65500 pixels in mode RGB",
    ),
    "grey": (
        {"test/00003.jpg": grey(IMAGE)},
        "its member 'test/00003.jpg': a JPEG of 32×32 pixels in mode L",
    ),
    "no JPEG": ({"test/00003.jpg": png(IMAGE)}, "its member 'test/00003.jpg': not a JPEG file"),
    "cut": (
        {"test/00003.jpg": jpeg(IMAGE)[:-40]},
        "its member 'test/00003.jpg': image file is truncated",
    ),
    "empty": (
        {"test/00003.jpg": b""},
        "its member 'test/00003.jpg' has 0 bytes instead of 1 to 4,096",
    ),
    "too large": (
        {"test/00003.jpg": bytes(JPEG_MOST_BYTES + 1)},
        "its member 'test/00003.jpg' has 4,097 bytes instead of 1 to 4,096",
    ),
    "missing": (
        {"test/00003.jpg": None},
        "it has no member 'test/00003.jpg'",
    ),
    "labels missing": ({"test_labels.txt": None}, "it has no member 'test_labels.txt'"),
    "label too few": (
        {"test_labels.txt": b"0\n1\n2\n3\n4\n5\n6\n7\n8\n"},
        "its member 'test_labels.txt' has 18 bytes instead of 20",
    ),
    "two digits": (
        {"test_labels.txt": b"0\n1\n2\n3\n4\n5\n6\n7\n10\n\n"},
        "its member 'test_labels.txt': not one digit per line",
    ),
    "other separator": (
        {"test_labels.txt": b"0\n1\n2\n3\n4 5\n6\n7\n8\n9\n"},
        "its member 'test_labels.txt': not one digit per line",
    ),
    "letter": (
        {"test_labels.txt": b"0\n1\n2\n3\n4\n5\n6\n7\n8\nx\n"},
        "its member 'test_labels.txt': not one digit per line",
    ),
    "other classes": (
        {"test_labels.txt": b"0\n1\n2\n3\n4\n5\n6\n7\n8\n8\n"},
        "2 images of 10 are of class ship, not 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault
def test_archive_with_a_fault_is_one_sentence(fault, tmp_path):
    changes, reason = FAULTS[fault]
    members = cifar10_jpeg_members(small_splits()) | changes
    path = write_tar(
        tmp_path / "x.tar.xz", [item for item in members.items() if item[1] is not None]
    )
    with pytest.raises(CapsreproError, match=reason) as caught:
        read_jpegs(path, COUNTS)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert str(caught.value).endswith(
        "; delete it and run `capsrepro datasets fetch cifar10-jpeg`."
    )
    assert "\n" not in str(caught.value)


@pytest.mark.fault
def test_damage_inside_a_jpeg_is_one_sentence_or_other_pixels(tmp_path):
    members = cifar10_jpeg_members(small_splits())
    whole = members["test/00003.jpg"]
    refused = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        members["test/00003.jpg"] = bytes(damaged)
        path = write_tar(tmp_path / "x.tar.xz", members.items(), level=0)
        try:
            read_jpegs(path, COUNTS)
        except CapsreproError as error:
            refused += 1
            assert "its member 'test/00003.jpg': " in str(error)
            assert "\n" not in str(error)
    assert refused > 10


@pytest.mark.fault
def test_archive_of_another_size_is_refused(tmp_path):
    write_cifar10_jpeg(tmp_path, small_splits())
    with pytest.raises(CapsreproError, match=r"train_labels\.txt' has 40 bytes instead of 100,000"):
        list(prepare(tmp_path, {}))


def test_it_never_passes_for_cifar10():
    assert DATASET.optional
    assert DATASET.title == "CIFAR-10 (JPEG q75)"
    assert DATASET.name != cifar10.DATASET.name


@pytest.mark.slow
@pytest.mark.real_data
@real_archive
def test_the_real_archive():
    splits = dict(prepare(DATASETS_FOLDER, {}))
    for split, count in DATASET.counts.items():
        assert splits[split].images.shape == (count, 3, 32, 32)
        assert np.bincount(splits[split].labels[:, 0]).tolist() == [count // 10] * 10
    # The first labels of the official files: frog, truck, truck, deer and cat, ship, ship, plane.
    assert splits["train"].labels[:4, 0].tolist() == [6, 9, 9, 4]
    assert splits["test"].labels[:4, 0].tolist() == [3, 8, 8, 0]
    # The mean colour of the official training images, as every CIFAR-10 recipe subtracts it.
    mean = splits["train"].images.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(mean, np.array([0.4914, 0.4822, 0.4465]) * 255, atol=0.5)
    compared = 0
    with tarfile.open(DATASETS_FOLDER / ARCHIVE, "r|xz") as archive:
        for member in archive:
            split, _, name = member.name.partition("/")
            if name.endswith("00.jpg"):
                pixels = splits[split].images[int(name.removesuffix(".jpg"))]
                content = archive.extractfile(member).read()
                np.testing.assert_array_equal(pixels, decoded(content))
                compared += 1
    assert compared == 600
