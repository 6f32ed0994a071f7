"""The written subset of MultiMNIST: what evaluation sees, hashed, and mended when damaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from capsrepro.data import DATASETS
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.dataset import Split
from capsrepro.data.loading import load_examples
from capsrepro.data.materialize import materialize, verify_subsets
from capsrepro.data.preparation import prepare_dataset
from capsrepro.errors import CapsreproError, UsageError

NAME = "pairs"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data set of 1,300 random digits, prepared."""

    def prepare(raw_root, parameters):
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (1_300, 1, 28, 28), np.uint8)
        labels = random.integers(0, 10, (1_300, 1), np.uint8)
        for split in ("train", "test"):
            yield split, Split(images, labels)

    row = replace(
        DATASETS["multimnist"],
        name=NAME,
        prepare=prepare,
        sources=(),
        counts={"train": 1_300_000, "test": 1_300_000},
    )
    monkeypatch.setitem(DATASETS, NAME, row)
    prepare_dataset(NAME, {}, tmp_path)
    return tmp_path


def test_subset_is_what_evaluation_sees(root):
    path = materialize(NAME, 2_000, root)
    examples = load_examples(NAME, "test", root, torch.device("cpu"))
    seen = next(iter(EvaluationSplit(examples, batch_size=2_000, count=2_000)))
    with np.load(path, allow_pickle=False) as arrays:
        assert {key: arrays[key].dtype for key in arrays} == dict.fromkeys(arrays, np.uint8)
        for key in ("images", "targets"):
            written = torch.from_numpy(arrays[key]).float() / 255
            assert torch.equal(written, getattr(seen, key))
        np.testing.assert_array_equal(arrays["labels"], seen.labels.numpy())


def test_many_batches_give_the_same_as_one(root, monkeypatch):
    whole = materialize(NAME, 2_000, root).read_bytes()
    (root / "prepared" / NAME / "composites" / "test-2000.json").unlink()
    monkeypatch.setattr("capsrepro.data.materialize._BATCH", 300)
    assert materialize(NAME, 2_000, root).read_bytes() == whole


def test_written_once_and_verified(root):
    assert verify_subsets(NAME, root) == 0
    path = materialize(NAME, 100, root)
    before = path.stat().st_mtime_ns
    assert materialize(NAME, 100, root) == path
    assert path.stat().st_mtime_ns == before
    materialize(NAME, 50, root)
    assert verify_subsets(NAME, root) == 2


@pytest.mark.fault
def test_flipped_byte_is_named_and_mended(root):
    path = materialize(NAME, 100, root)
    content = bytearray(path.read_bytes())
    whole = bytes(content)
    content[5_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CapsreproError, match=r"test-100\.npz is not what .*--materialize 100` to"):
        verify_subsets(NAME, root)
    assert materialize(NAME, 100, root).read_bytes() == whole
    assert verify_subsets(NAME, root) == 1


@pytest.mark.fault
def test_other_data_make_it_stale(root):
    materialize(NAME, 100, root)
    prepare_dataset(NAME, {"shift_px": 5}, root)
    with pytest.raises(CapsreproError, match="or was made from other data"):
        verify_subsets(NAME, root)


@pytest.mark.parametrize("count", [0, -1, 1_300_001])
def test_impossible_counts(root, count):
    with pytest.raises(UsageError, match=f"cannot write {count} composites of pairs; choose betw"):
        materialize(NAME, count, root)


def test_data_sets_without_composites(root):
    with pytest.raises(UsageError, match="data set digits has no composites; leave --materialize"):
        materialize("digits", 10, root)
