"""Prepared files, their manifest, and preparing as a whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from capsrepro.data import DATASETS, prepared
from capsrepro.data.dataset import Split
from capsrepro.data.preparation import dataset_state, prepare_dataset
from capsrepro.data.sources import SOURCES
from capsrepro.errors import CapsreproError, UsageError

PARAMETERS = {"seed": 0}


def toy_splits(count: int = 6):
    images = np.arange(count * 2 * 3 * 4, dtype=np.uint8).reshape(count, 2, 3, 4)
    labels = np.arange(count * 5, dtype=np.uint8).reshape(count, 5)
    return {"train": Split(images, labels), "test": Split(images[::-1], labels[::-1])}


def write_toy(root: Path, splits=None, parameters=PARAMETERS, copy: Path | None = None):
    return prepared.write_prepared(
        "toy", (splits or toy_splits()).items(), "ab", parameters, SOURCES["mnist"], root, copy
    )


@pytest.fixture
def tiny(monkeypatch):
    """A data set in the table that counts how often it is prepared."""
    calls = []

    def prepare(raw_root, parameters):
        calls.append(dict(parameters))
        time.sleep(0.02)
        return toy_splits(parameters["count"]).items()

    row = replace(
        DATASETS["digits"], name="tiny", prepare=prepare, parameters={"count": 6, "scale": 1.0}
    )
    monkeypatch.setitem(DATASETS, "tiny", row)
    return calls


def test_what_is_written_is_read(tmp_path):
    manifest = write_toy(tmp_path)
    assert manifest == prepared.read_manifest("toy", tmp_path)
    assert manifest == prepared.verify("toy", tmp_path)
    assert manifest["splits"]["train"]["count"] == 6
    assert manifest["splits"]["train"]["image_shape"] == [2, 3, 4]
    assert manifest["splits"]["train"]["label_shape"] == [5]
    assert manifest["sources"]["mnist/t10k-labels-idx1-ubyte.gz"].startswith("f7ae60f9")
    for split, written in toy_splits().items():
        read = prepared.load_split("toy", split, tmp_path)
        np.testing.assert_array_equal(read.images, written.images)
        np.testing.assert_array_equal(read.labels, written.labels)
        assert read.factors is None
        assert read.notes is None


def test_factors_and_notes_are_kept(tmp_path):
    factors = np.arange(12, dtype=np.uint8).reshape(6, 2)
    whole = toy_splits()["train"]._replace(factors=factors, notes={"overlap_pct": 79.0})
    manifest = write_toy(tmp_path, {"train": whole})
    assert prepared.read_manifest("toy", tmp_path) == manifest
    read = prepared.load_split("toy", "train", tmp_path)
    np.testing.assert_array_equal(read.factors, factors)
    assert read.notes == {"overlap_pct": 79.0}
    digests = {
        write_toy(tmp_path / str(index), {"train": split})["digest"]
        for index, split in enumerate(
            [whole, whole._replace(factors=factors + 1), whole._replace(notes={"overlap_pct": 80})]
        )
    }
    assert len(digests) == 3


def test_bytes_and_manifest_are_the_same_every_time(tmp_path):
    first, second = write_toy(tmp_path / "a"), write_toy(tmp_path / "b")
    assert first == second
    # Frozen, for numpy and Python versions to come; the arrays are in `digest` besides.
    assert first["splits"]["train"]["sha256"] == (
        "53e35e058fcd74a263db519c2ddd37cdf15adaab286582662d90eb2c2d4bdb87"
    )
    assert first["digest"] == "cca7348db8e78515429b86afafcbbf568a812a2b659ce3395ea1dcc091c29148"


def test_digest_follows_content_and_parameters_only(tmp_path):
    def digest_of(name, **changes):
        return write_toy(tmp_path / name, **changes)["digest"]

    original = digest_of("original")
    pixel = toy_splits()
    pixel["test"][0][0, 0, 0, 0] += 1
    flat = {
        split: Split(s.images.reshape(-1, 2, 4, 3), s.labels) for split, s in toy_splits().items()
    }
    swapped = dict(zip(("test", "train"), toy_splits().values(), strict=True))
    assert digest_of("elsewhere") == original
    for name, splits in (("pixel", pixel), ("shape", flat), ("swapped", swapped)):
        assert digest_of(name, splits=splits) != original
    assert digest_of("seed", parameters={"seed": 1}) != original


def test_manifest_is_put_in_git_too(tmp_path):
    copy = tmp_path / "results/datasets/toy.json"
    manifest = write_toy(tmp_path, copy=copy)
    assert json.loads(copy.read_text()) == manifest


@pytest.mark.fault
def test_flipped_byte_is_named(tmp_path):
    manifest = write_toy(tmp_path)
    path = tmp_path / "prepared/toy/train.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for act in (prepared.verify, lambda n, r: prepared.load_split(n, "train", r)):
        with pytest.raises(CapsreproError) as caught:
            act("toy", tmp_path)
        assert str(caught.value) == (
            f"{path} has changed since it was prepared: its SHA-256 is "
            f"{prepared.sha256_of_file(path)} instead of {manifest['splits']['train']['sha256']}; "
            "run `capsrepro datasets prepare toy` to make it again."
        )


@pytest.mark.fault
def test_missing_parts_are_named(tmp_path):
    with pytest.raises(CapsreproError, match=r"toy is not prepared in .*datasets prepare toy"):
        prepared.load_split("toy", "train", tmp_path)
    write_toy(tmp_path)
    with pytest.raises(UsageError, match="no split valid; choose one of train, test"):
        prepared.load_split("toy", "valid", tmp_path)
    (tmp_path / "prepared/toy/test.npz").unlink()
    with pytest.raises(CapsreproError, match=r"test\.npz: No such file.*datasets prepare toy"):
        prepared.verify("toy", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"splits": 1}', "\udcff", "edited"])
@pytest.mark.fault
def test_damaged_manifest_is_named(text, tmp_path):
    write_toy(tmp_path)
    path = prepared.manifest_path("toy", tmp_path)
    edited = path.read_text().replace('"count": 6', '"count": 7')
    path.write_text(edited if text == "edited" else text, errors="surrogateescape")
    with pytest.raises(CapsreproError, match=r"manifest\.json is no manifest .*prepare toy"):
        prepared.read_manifest("toy", tmp_path)


def test_arrays_of_another_type_are_refused(tmp_path):
    images, labels, *_ = toy_splits()["train"]
    for wrong in ((images / 255, labels), (images, labels[:, 0]), (images[:3], labels)):
        with pytest.raises(ValueError, match=r"toy/train\.npz must"):
            write_toy(tmp_path, splits={"train": Split(*wrong)})


def test_prepare_twice_does_it_once(tiny, tmp_path):
    copy = tmp_path / "copy.json"
    first = prepare_dataset("tiny", {}, tmp_path)
    assert prepare_dataset("tiny", {"count": 6}, tmp_path, manifest_copy=copy) == first
    assert tiny == [{"count": 6, "scale": 1.0}]
    assert json.loads(copy.read_text()) == first


def test_prepare_again_when_something_changed(tiny, tmp_path, monkeypatch):
    prepare_dataset("tiny", {}, tmp_path)
    assert prepare_dataset("tiny", {"count": 4}, tmp_path)["splits"]["train"]["count"] == 4
    monkeypatch.setitem(DATASETS, "tiny", replace(DATASETS["tiny"], version=2))
    assert prepare_dataset("tiny", {"count": 4}, tmp_path)["version"] == 2
    (tmp_path / "prepared/tiny/train.npz").write_bytes(b"")
    assert dataset_state("tiny", tmp_path) == "broken"
    prepare_dataset("tiny", {"count": 4}, tmp_path)
    assert dataset_state("tiny", tmp_path) == "prepared"
    assert len(tiny) == 4


def test_many_callers_prepare_once(tiny, tmp_path):
    threads = [
        threading.Thread(target=prepare_dataset, args=("tiny", {}, tmp_path)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tiny) == 1


@pytest.mark.fault
def test_leftovers_are_removed(tiny, tmp_path):
    folder = tmp_path / "prepared/tiny"
    folder.mkdir(parents=True)
    for name in (".train.npz.abc.tmp", "valid.npz"):
        (folder / name).write_bytes(b"left")
    prepare_dataset("tiny", {}, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "test.npz", "train.npz"]


def test_states(tmp_path, monkeypatch):
    source = replace(SOURCES["mnist"][0], dataset="tiny", name="file", size_bytes=3)
    monkeypatch.setitem(
        DATASETS, "tiny", replace(DATASETS["digits"], name="tiny", sources=(source,))
    )
    assert dataset_state("tiny", tmp_path) == "absent"
    (tmp_path / "raw/tiny").mkdir(parents=True)
    (tmp_path / "raw/tiny/file").write_bytes(b"ab")
    assert dataset_state("tiny", tmp_path) == "absent"
    (tmp_path / "raw/tiny/file").write_bytes(b"abc")
    assert dataset_state("tiny", tmp_path) == "fetched"


def test_unknown_name_lists_the_known():
    for act in (dataset_state, lambda n, r: prepare_dataset(n, {}, r)):
        with pytest.raises(UsageError, match="no data set imagenet; choose one of digits, mnist"):
            act("imagenet", Path())


PREPARE_IN_A_CHILD = """
import os, resource, signal, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from capsrepro.data import DATASETS
from capsrepro.data.preparation import prepare_dataset
from capsrepro.data.dataset import Split
from capsrepro.errors import CapsreproError

def prepare(raw_root, parameters):
    arrays = np.zeros((100, 1, 32, 32), np.uint8), np.zeros((100, 1), np.uint8)
    return {"train": Split(*arrays), "test": Split(*arrays)}.items()

fsync, left = os.fsync, [int(sys.argv[2])]

def dying_fsync(descriptor):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = dying_fsync
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
DATASETS["tiny"] = replace(DATASETS["digits"], name="tiny", prepare=prepare, parameters={})
try:
    prepare_dataset("tiny", {}, Path(sys.argv[1]))
except CapsreproError as error:
    sys.exit(str(error))
"""


def prepare_in_a_child(root: Path, fsyncs: int = 99, limit: int = 1_000_000):
    command = [sys.executable, "-c", PREPARE_IN_A_CHILD, str(root), str(fsyncs), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.fault
def test_full_disk(tmp_path):
    child = prepare_in_a_child(tmp_path, limit=50_000)
    assert child.stderr.startswith(f"cannot write {tmp_path}/prepared/tiny/train.npz: File too")
    assert child.stderr.count("\n") == 1
    assert list((tmp_path / "prepared/tiny").iterdir()) == []


@pytest.mark.parametrize("fsyncs", [0, 2, 4])
@pytest.mark.fault
def test_kill_9_while_preparing(fsyncs, tiny, tmp_path):
    """Killed before the first, second and third file is in place; two fsyncs belong to each."""
    child = prepare_in_a_child(tmp_path, fsyncs)
    assert child.returncode == -signal.SIGKILL
    assert dataset_state("tiny", tmp_path) == "absent"
    prepare_dataset("tiny", {}, tmp_path)
    assert dataset_state("tiny", tmp_path) == "prepared"
    assert len(list((tmp_path / "prepared/tiny").iterdir())) == 3


def test_import_is_light():
    check = "import sys, capsrepro.data; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    heavy = {"torch", "torchvision", "sklearn", "pooch", "requests", "tqdm"}
    assert not heavy & set(done.stdout.split())
    assert "capsrepro.data" in done.stdout
