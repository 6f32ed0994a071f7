"""The IDX reader and the real MNIST files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from capsrepro.data import DATASETS
from capsrepro.data.mnist import IMAGES_MAGIC, LABELS_MAGIC, prepare, read_idx
from capsrepro.data.preparation import dataset_state, prepare_dataset
from capsrepro.data.prepared import load_split
from capsrepro.data.sources import SOURCES
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import sha256_of_file

DATASETS_FOLDER = Path(__file__).parents[3] / "shared/datasets"
IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
IDX = struct.pack(">iiii", 2051, 2, 3, 4) + IMAGES.tobytes()

real_mnist = pytest.mark.skipif(
    not (DATASETS_FOLDER / "mnist").is_dir(), reason=f"{DATASETS_FOLDER}/mnist is not there"
)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_images_in_the_official_format(tmp_path):
    array = read_idx(written(tmp_path / "x.gz", gzip.compress(IDX)), IMAGES_MAGIC, (2, 3, 4))
    assert array.dtype == np.uint8
    assert array.flags.writeable
    np.testing.assert_array_equal(array, IMAGES)


def test_labels_in_the_official_format(tmp_path):
    content = struct.pack(">ii", 2049, 3) + bytes([7, 2, 1])
    array = read_idx(written(tmp_path / "x.gz", gzip.compress(content)), LABELS_MAGIC, (3,))
    assert array.tolist() == [7, 2, 1]


WHOLE = gzip.compress(IDX)
FAULTS = {
    "magic": (gzip.compress(struct.pack(">i", 2049) + IDX[4:]), "starts with 00000801, not with"),
    "shape": (
        gzip.compress(struct.pack(">iiii", 2051, 2, 4, 3) + IDX[16:]),
        r"its shape is \(2, 4, 3\) instead of \(2, 3, 4\)",
    ),
    "empty": (gzip.compress(b""), "starts with , not with 00000803"),
    "header cut": (gzip.compress(IDX[:10]), r"its shape is \(2,\) instead of"),
    "short": (gzip.compress(IDX[:-1]), "should unpack to 40 bytes and ends at 39 bytes"),
    "long": (gzip.compress(IDX + b"x"), "should unpack to 40 bytes and has bytes left over"),
    "bomb": (gzip.compress(IDX + bytes(50_000_000)), "has bytes left over"),
    "gzip cut": (WHOLE[:-12], "ended before the end-of-stream"),
    "gzip checksum": (WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:], "CRC check failed"),
    "gzip body": (WHOLE[:12] + b"\xff\xff" + WHOLE[14:], "Error -3 while decompressing"),
    "not gzip": (IDX, "Not a gzipped file"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault
def test_damaged_file_is_one_sentence(fault, tmp_path):
    content, reason = FAULTS[fault]
    path = written(tmp_path / "x.gz", content)
    with pytest.raises(CapsreproError, match=reason) as caught:
        read_idx(path, IMAGES_MAGIC, (2, 3, 4))
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert str(caught.value).endswith("; delete it and run `capsrepro datasets fetch mnist`.")


@pytest.mark.fault
def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(CapsreproError, match=r"train-images-idx3-ubyte\.gz: No such file"):
        list(prepare(tmp_path, {}))


def test_unknown_parameter_is_refused(tmp_path):
    with pytest.raises(UsageError, match="data set mnist has no parameter crop; remove it"):
        prepare_dataset("mnist", {"crop": 24}, tmp_path)


@pytest.mark.real_data
@real_mnist
def test_sources_name_the_real_files():
    for source in SOURCES["mnist"]:
        path = DATASETS_FOLDER / source.key
        assert sha256_of_file(path) == source.sha256
        assert path.stat().st_size == source.size_bytes


@pytest.mark.slow
@pytest.mark.real_data
@real_mnist
def test_reader_agrees_with_torchvision(tmp_path):
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    splits = dict(prepare(DATASETS_FOLDER, {}))
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels, *_ = splits[split]
        for array, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            packed = DATASETS_FOLDER / "mnist" / f"{prefix}-{kind}-ubyte.gz"
            path = written(tmp_path / kind, gzip.decompress(packed.read_bytes()))
            theirs = read_sn3_pascalvincent_tensor(str(path)).numpy()
            np.testing.assert_array_equal(array.reshape(theirs.shape), theirs)


@pytest.mark.real_data
@real_mnist
def test_prepare_the_real_files(tmp_path):
    assert dataset_state("mnist", tmp_path) == "absent"
    manifest = prepare_dataset("mnist", {}, tmp_path, mirror=str(DATASETS_FOLDER))
    # Frozen: it is in every record of a run on MNIST.
    assert manifest["digest"] == "4b78b52630beae174eceae67c6a24108e9eabe88adb3949015e72b521df2428a"
    assert dataset_state("mnist", tmp_path) == "prepared"
    for split, count in DATASETS["mnist"].counts.items():
        images, labels, *_ = load_split("mnist", split, tmp_path)
        assert images.shape == (count, 1, 28, 28)
        assert labels.shape == (count, 1)
    assert np.bincount(labels[:, 0]).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert labels[:5, 0].tolist() == [7, 2, 1, 0, 4]
