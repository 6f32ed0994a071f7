"""The reader of the MATLAB files, and 80 real digits."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from official_files import matlab_variable, random_split, svhn_variables, write_matlab, write_svhn
from scipy.io import savemat

from capsrepro.data.svhn import DATASET, prepare, read_mat
from capsrepro.errors import CapsreproError

SAMPLE = (
    Path(__file__).parents[3] / "shared/datasets/svhn-sample/svhn_test_LOSSLESS_80_unlabelled.npz"
)
COUNT = 20
REMEDY = "; delete it and run `capsrepro datasets fetch svhn`."

real_sample = pytest.mark.skipif(not SAMPLE.is_file(), reason=f"{SAMPLE} is not there")


def written(path: Path, variables, **settings) -> Path:
    savemat(path, variables, **{"do_compression": True} | settings)
    return path


def variables(**changes):
    return {
        name: value
        for name, value in (svhn_variables(*random_split(COUNT)) | changes).items()
        if value is not None
    }


def assert_refused(path: Path, reason: str, count: int = COUNT) -> None:
    with pytest.raises(CapsreproError, match=reason) as caught:
        read_mat(path, count)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert str(caught.value).endswith(REMEDY)
    assert "\n" not in str(caught.value)


def test_official_format(tmp_path):
    images, labels = random_split(COUNT)
    split = read_mat(write_svhn(tmp_path, "train", images, labels), COUNT)
    assert split.images.dtype == split.labels.dtype == np.uint8
    assert split.images.flags.c_contiguous
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)


def test_ten_is_the_digit_zero_and_x_has_rows_columns_colours_images(tmp_path):
    X = np.zeros((32, 32, 3, COUNT), np.uint8)
    X[5, 7, 2, 4] = 99
    y = np.full((COUNT, 1), 3, np.uint8)
    y[[0, 1], 0] = 10, 1
    split = read_mat(written(tmp_path / "x.mat", {"X": X, "y": y}), COUNT)
    assert np.argwhere(split.images).tolist() == [[4, 2, 5, 7]]
    assert split.labels[:3, 0].tolist() == [0, 1, 3]


@pytest.mark.parametrize("do_compression", [True, False])
def test_labels_saved_as_doubles(do_compression, tmp_path):
    doubles = variables(y=variables()["y"].astype(float))
    path = written(tmp_path / "x.mat", doubles, do_compression=do_compression)
    labels = read_mat(path, COUNT).labels
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, random_split(COUNT)[1])


def test_labels_of_class_double_stored_as_bytes(tmp_path):
    """As MATLAB does with small whole numbers, official or not."""
    X, y = variables().values()
    path = tmp_path / "x.mat"
    write_matlab(path, matlab_variable("X", X), matlab_variable("y", y, matlab_class=6))
    split = read_mat(path, COUNT)
    np.testing.assert_array_equal(split.images, random_split(COUNT)[0])
    np.testing.assert_array_equal(split.labels, random_split(COUNT)[1])


RANGE = "its y holds other labels than 1 to 10"


def label(value, dtype=np.uint8):
    y = variables()["y"].astype(dtype)
    y[3, 0] = value
    return y


WANTED = r", and should hold 'X' \(32, 32, 3, 20\), 'y' \(20, 1\) once"
FAULTS = {
    "images first": (
        {"X": random_split(COUNT)[0]},
        r"it holds 'X' \(20, 3, 32, 32\)" + WANTED,
    ),
    "count of X": (
        {"X": variables()["X"][..., :-1]},
        r"it holds 'X' \(32, 32, 3, 19\)" + WANTED,
    ),
    "count of y": ({"y": variables()["y"][:-1]}, r"it holds 'y' \(19, 1\)" + WANTED),
    "row of labels": ({"y": variables()["y"].T}, r"it holds 'y' \(1, 20\)" + WANTED),
    "no X": ({"X": None}, "it holds no 'X'"),
    "no y": ({"y": None}, "it holds no 'y'"),
    "nothing": ({"X": None, "y": None}, "it holds no 'X'"),
    "other name": ({"y": None, "Y": variables()["y"]}, r"it holds 'Y' \(20, 1\)" + WANTED),
    "one more": ({"z": np.zeros(3)}, r"it holds 'z' \(1, 3\)" + WANTED),
    "X of int8": ({"X": variables()["X"].astype(np.int8)}, "its X is int8 instead of uint8"),
    "X of int16": (
        {"X": variables()["X"].astype(np.int16)},
        "its X is int16 instead of uint8",
    ),
    "X of cells": (
        {"X": variables()["X"][:2, :2].astype(object)},
        "it holds a variable that is no array of real numbers with 2 to 8 axes",
    ),
    "X of doubles": (
        {"X": variables()["X"].astype(float)},
        "it unpacks to more than 127,136 bytes",
    ),
    "y of letters": ({"y": "abcdefghijklmnopqrst"}, r"holds 'y' \(1, 20\)|no array"),
    "label 0": ({"y": label(0)}, RANGE),
    "label 11": ({"y": label(11)}, RANGE),
    "label -1": ({"y": label(-1, np.int8)}, RANGE),
    "label 2.5": ({"y": label(2.5, float)}, RANGE),
    "label NaN": ({"y": label(np.nan, float)}, RANGE),
    "label complex": (
        {"y": label(1 + 1j, complex)},
        "it holds a variable that is no array of real numbers with 2 to 8 axes",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault
def test_other_content_is_one_sentence(fault, tmp_path):
    changes, reason = FAULTS[fault]
    assert_refused(written(tmp_path / "x.mat", variables(**changes)), reason)


@pytest.mark.fault
def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(CapsreproError, match=r"train_32x32\.mat: No such file or directory; del"):
        list(prepare(tmp_path, {}))


@pytest.mark.slow
def test_full_size(tmp_path):
    splits = {split: random_split(count) for split, count in DATASET.counts.items()}
    for split, arrays in splits.items():
        write_svhn(tmp_path, split, *arrays)
    tracemalloc.start()
    try:
        for split, arrays in prepare(tmp_path, {}):
            # X as scipy gives it and as it is wanted: 225 MB each for the larger split.
            assert tracemalloc.get_traced_memory()[1] < 500_000_000
            assert arrays.images.shape == (DATASET.counts[split], *DATASET.image_shape)
            assert (arrays.images == splits[split][0]).all()
            assert (arrays.labels == splits[split][1]).all()
            tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()


@pytest.mark.real_data
@real_sample
def test_real_digits_come_back_equal(tmp_path):
    with np.load(SAMPLE, allow_pickle=False) as arrays:
        images = arrays["x_test"].transpose(0, 3, 1, 2)
    labels = np.arange(80, dtype=np.uint8)[:, None] % 10
    split = read_mat(write_svhn(tmp_path, "test", images, labels), 80)
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
