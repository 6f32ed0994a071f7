"""The embedded digits and their split."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from capsrepro.data import DATASETS, digits
from capsrepro.data.digits import held_out, prepare
from capsrepro.data.preparation import prepare_dataset
from capsrepro.errors import CapsreproError, UsageError

PARAMETERS = DATASETS["digits"].parameters


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return dict(prepare(tmp_path_factory.mktemp("raw"), PARAMETERS))


def test_sizes_and_range(splits):
    for split, count in DATASETS["digits"].counts.items():
        images, labels, *_ = splits[split]
        assert images.shape == (count, *DATASETS["digits"].image_shape)
        assert labels.shape == (count, 1)
        assert images.dtype == labels.dtype == np.uint8
        assert (images.min(), images.max()) == (0, 255)


def test_pixels_are_scaled_to_the_nearest_byte(splits):
    from sklearn.datasets import load_digits

    original = load_digits()
    test = held_out(original.target.astype(np.uint8), 500, 0)
    expected = np.rint(original.data[test] * 255 / 16).reshape(-1, 1, 8, 8)
    np.testing.assert_array_equal(splits["test"][0], expected)
    np.testing.assert_array_equal(splits["test"][1][:, 0], original.target[test])


def test_every_class_is_held_out_in_proportion(splits):
    train, test = (np.bincount(splits[split][1][:, 0]) for split in ("train", "test"))
    exact = (train + test) * 500 / 1797
    assert np.abs(test - exact).max() < 1


def test_every_item_is_in_exactly_one_split():
    labels = np.repeat(np.arange(3, dtype=np.uint8), (10, 20, 5))
    test = held_out(labels, 7, 0)
    assert len(set(test.tolist())) == 7
    assert test.tolist() == sorted(test.tolist())
    assert np.bincount(labels[test]).tolist() == [2, 4, 1]


def test_split_covers_all_1797_items(splits):
    from sklearn.datasets import load_digits

    items = sorted(row.tobytes() for split in splits.values() for row in split[0])
    images = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert items == sorted(row.tobytes() for row in images)


def test_split_is_frozen(tmp_path):
    """It is in every record of a run on digits, and must survive numpy and scikit-learn."""
    manifest = prepare_dataset("digits", {}, tmp_path)
    assert manifest["digest"] == "013c68c44c4339334050dbc5a2740be31bf4b933fee5b615464ca0c045e9d501"


def test_another_seed_is_another_split():
    labels = np.zeros(100, np.uint8)
    assert held_out(labels, 10, 0).tolist() != held_out(labels, 10, 1).tolist()


@pytest.mark.parametrize("count", [-1, 0, 1797])
def test_impossible_count_is_refused(count, tmp_path):
    with pytest.raises(UsageError, match=f"test_count .* is {count}; set it between 1 and 1796"):
        prepare_dataset("digits", {"test_count": count}, tmp_path)


@pytest.mark.parametrize("value", [0.3, "500", True])
def test_parameter_of_another_type_is_refused(value, tmp_path):
    with pytest.raises(UsageError, match=r"test_count of data set digits is .*of type int"):
        prepare_dataset("digits", {"test_count": value}, tmp_path)


def test_other_digits_are_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "CONTENT_SHA256", "0" * 64)
    with pytest.raises(CapsreproError, match="carries other digits"):
        list(prepare(tmp_path, PARAMETERS))


def test_missing_scikit_learn_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CapsreproError, match="run `uv sync --extra train`"):
        list(prepare(tmp_path, PARAMETERS))
