"""The reader of the official binary archive."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from official_files import CIFAR10_NAMES, cifar10_members, random_split, write_cifar10, write_tar

from capsrepro.data.cifar10 import DATASET, prepare, read_batches
from capsrepro.errors import CapsreproError

FOLDER = "cifar-10-batches-bin"


def small_splits():
    return {"train": random_split(100, seed=1), "test": random_split(20, seed=2)}


def test_batches_are_read_in_their_order(tmp_path):
    written = small_splits()
    splits = read_batches(write_cifar10(tmp_path, written), 20)
    assert list(splits) == ["train", "test"]
    for split, (images, labels) in written.items():
        assert splits[split].images.dtype == splits[split].labels.dtype == np.uint8
        np.testing.assert_array_equal(splits[split].images, images)
        np.testing.assert_array_equal(splits[split].labels, labels)


def test_record_is_label_then_red_green_blue_rows(tmp_path):
    members = cifar10_members(small_splits())
    record = bytearray(members[f"{FOLDER}/data_batch_2.bin"][:3073])
    record[1], record[2], record[1 + 32], record[1 + 1024], record[1 + 2048] = 11, 22, 33, 44, 55
    members[f"{FOLDER}/data_batch_2.bin"] = (
        bytes(record) + members[f"{FOLDER}/data_batch_2.bin"][3073:]
    )
    train = read_batches(write_tar(tmp_path / "x.tar.gz", members.items()), 20)["train"]
    assert train.images[20, :, 0, 0].tolist() == [11, 44, 55]
    assert train.images[20, 0, :2, :2].tolist() == [[11, 22], [33, record[1 + 33]]]
    assert train.labels[20, 0] == record[0]


def relabelled(members, batch, change):
    """The same batch with one label changed."""
    content = bytearray(members[f"{FOLDER}/{batch}"])
    content[-3073] = change(content[-3073])
    return members | {f"{FOLDER}/{batch}": bytes(content)}


def without(members, name):
    return {key: value for key, value in members.items() if key != f"{FOLDER}/{name}"}


FAULTS = {
    "label": (
        lambda m: relabelled(m, "test_batch.bin", lambda label: 10),
        "it holds the label 10, and labels end at 9",
    ),
    "classes of the train split": (
        lambda m: relabelled(m, "data_batch_5.bin", lambda label: (label + 1) % 10),
        r"(9|11) images of 100 are of class \w+, not 10",
    ),
    "classes of the test split": (
        lambda m: relabelled(m, "test_batch.bin", lambda label: (label + 1) % 10),
        r"(1|3) images of 20 are of class \w+, not 2",
    ),
    "missing batch": (
        lambda m: without(m, "data_batch_3.bin"),
        f"it has no member '{FOLDER}/data_batch_3.bin'",
    ),
    "missing names": (
        lambda m: without(m, "batches.meta.txt"),
        f"it has no member '{FOLDER}/batches.meta.txt'",
    ),
    "short batch": (
        lambda m: m | {f"{FOLDER}/test_batch.bin": bytes(61_459)},
        f"its member '{FOLDER}/test_batch.bin' has 61,459 bytes instead of 61,460",
    ),
    "long batch": (
        lambda m: m | {f"{FOLDER}/test_batch.bin": bytes(61_461)},
        f"its member '{FOLDER}/test_batch.bin' has 61,461 bytes instead of 61,460",
    ),
    "other names": (
        lambda m: m | {f"{FOLDER}/batches.meta.txt": CIFAR10_NAMES.replace(b"cat", b"\xffat")},
        f"its member '{FOLDER}/batches.meta.txt' names the classes .*'\ufffdat'.*, not .*'cat'",
    ),
    "other order of names": (
        lambda m: m | {f"{FOLDER}/batches.meta.txt": b"\n".join(CIFAR10_NAMES.split()[::-1])},
        r"names the classes \['truck', .*\], not \['airplane'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault
def test_archive_with_a_fault_is_one_sentence(fault, tmp_path):
    change, reason = FAULTS[fault]
    path = write_tar(tmp_path / "x.tar.gz", change(cifar10_members(small_splits())).items())
    with pytest.raises(CapsreproError, match=reason) as caught:
        read_batches(path, 20)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert str(caught.value).endswith("; delete it and run `capsrepro datasets fetch cifar10`.")
    assert "\n" not in str(caught.value)


@pytest.mark.fault
def test_missing_archive_is_one_sentence(tmp_path):
    with pytest.raises(CapsreproError, match=r"cifar-10-binary\.tar\.gz: No such file") as caught:
        list(prepare(tmp_path, {}))
    assert str(caught.value).endswith("; delete it and run `capsrepro datasets fetch cifar10`.")


@pytest.mark.fault
def test_archive_of_another_size_is_refused(tmp_path):
    write_cifar10(tmp_path, small_splits())
    with pytest.raises(CapsreproError, match="has 61,460 bytes instead of 30,730,000"):
        list(prepare(tmp_path, {}))


@pytest.mark.slow
def test_full_size(tmp_path):
    written = {"train": random_split(50_000, seed=1), "test": random_split(10_000, seed=2)}
    write_cifar10(tmp_path, written)
    tracemalloc.start()
    try:
        splits = dict(prepare(tmp_path, {}))
        # The arrays are 184 MB; a batch of 31 MB is read while the one before is put in place.
        assert tracemalloc.get_traced_memory()[1] < 260_000_000
    finally:
        tracemalloc.stop()
    for split, count in DATASET.counts.items():
        assert splits[split].images.shape == (count, *DATASET.image_shape)
        np.testing.assert_array_equal(splits[split].images, written[split][0])
        np.testing.assert_array_equal(splits[split].labels, written[split][1])
