"""affNIST's reader, the check of its digits against MNIST's, and the shifted digits."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from scipy.stats import chisquare

from capsrepro.data import affnist
from capsrepro.data.affnist_format import read_transformed
from capsrepro.data.dataset import Split
from capsrepro.errors import CapsreproError

DATASETS_FOLDER = Path(__file__).parents[3] / "shared/datasets"
REFUSAL = "; delete it and run `capsrepro datasets fetch affnist`."
COUNT = 20
LIMIT = 128 + COUNT * 2_048

real_mnist = pytest.mark.skipif(
    not (DATASETS_FOLDER / "mnist").is_dir(), reason=f"{DATASETS_FOLDER}/mnist is not there"
)


def fields(images, labels):
    """The eight fields in their order; the names of the two matrices are a guess."""
    count = len(images)
    return {
        "affine_trans": np.zeros((9, count)),
        "affine_trans_inverse": np.zeros((9, count)),
        "image": images.reshape(count, -1).T,
        "id": np.arange(1.0, count + 1)[None],
        "label_one_of_n": (np.arange(10)[:, None] == labels.ravel()).astype(np.uint8),
        "label_int": labels.reshape(1, count),
        "human_readable_transform": np.zeros((6, count)),
        "original_id": np.ones((1, count)),
    }


def mat(record, *, compressed=False, name="affNISTdata"):
    file = io.BytesIO()
    savemat(file, {name: record}, do_compression=compressed)
    return file.getvalue()


def zipped(content, member="test.mat", method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(member, content)
    return file.getvalue()


def noise():
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 40, 40), np.uint8)
    return images, np.arange(COUNT, dtype=np.uint8)[:, None] % 10


IMAGES, LABELS = noise()
FIELDS = fields(IMAGES, LABELS)
MAT = mat(FIELDS)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_the_official_format(compressed, method, dtype, tmp_path):
    content = mat(FIELDS | {"label_int": LABELS.T.astype(dtype)}, compressed=compressed)
    path = tmp_path / "test.mat.zip"
    path.write_bytes(zipped(content, method=method))
    images, labels = read_transformed(path, COUNT)
    assert images.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def changed(**values):
    return zipped(mat(FIELDS | values))


def spoiled(content, offset, value):
    return content[:offset] + value + content[offset + len(value) :]


def in_stream(element):
    """A MATLAB file with one zlib stream."""
    packed = zlib.compress(element, 9)
    return MAT[:128] + struct.pack("<II", 15, len(packed)) + packed


def bomb(size):
    """A MATLAB file with two zlib streams of zeros."""
    file = in_stream(bytes(size))
    return file + file[128:]


WHOLE = zipped(MAT)
DIRECTORY = WHOLE.index(b"PK\1\2")
TOO_MUCH = f"it unpacks to more than {LIMIT:,} bytes"
NO_STRUCT = r"its test\.mat holds no struct affNISTdata with image and label_int"
FAULTS = {
    "empty": (b"", "File is not a zip file"),
    "not a zip": (MAT, "File is not a zip file"),
    "zip cut": (WHOLE[:-40], "File is not a zip file"),
    "zip cut inside": (
        WHOLE[:2_000] + WHOLE[DIRECTORY:],
        "Invalid argument|Bad magic number|Overlapped",
    ),
    "no member": (zipped(MAT, member="train.mat"), r"it has no member 'test\.mat'"),
    "in a folder": (zipped(MAT, member="a/test.mat"), r"it has no member 'test\.mat'"),
    "checksum": (spoiled(WHOLE, 5_000, b"\0\1\2\3"), "Bad CRC-32 for file 'test.mat'"),
    "deflate": (
        spoiled(zipped(MAT, method=zipfile.ZIP_DEFLATED), 5_000, bytes(range(64))),
        "Bad CRC-32|Error -3 while decompressing",
    ),
    "longer than the file": (
        spoiled(WHOLE, DIRECTORY + 20, struct.pack("<II", 40_000, 40_000)),
        "it ends too early|Bad CRC-32|Overlapped",
    ),
    "encrypted": (
        spoiled(spoiled(WHOLE, 6, b"\1"), DIRECTORY + 8, b"\1"),
        "is encrypted, password required",
    ),
    "method": (
        spoiled(spoiled(WHOLE, 8, b"\x63"), DIRECTORY + 10, b"\x63"),
        "compression method is not supported",
    ),
    "bomb": (zipped(bytes(50_000_000), method=zipfile.ZIP_DEFLATED), TOO_MUCH),
    "bomb inside": (zipped(bomb(16 << 20), method=zipfile.ZIP_DEFLATED), TOO_MUCH),
    "not MATLAB": (zipped(IMAGES.tobytes()), "does not start like a MATLAB 5 file"),
    "short MATLAB": (zipped(MAT[:100]), "does not start like a MATLAB 5 file"),
    "cut MATLAB": (zipped(MAT[:9_000]), "could not read bytes"),
    "cut stream": (zipped(mat(FIELDS, compressed=True)[:9_000]), "could not read bytes"),
    "another name": (zipped(mat(FIELDS, name="mnist")), NO_STRUCT),
    "no struct": (zipped(mat(IMAGES[:, 0])), NO_STRUCT),
    "no images": (zipped(mat({"label_int": LABELS.T})), NO_STRUCT),
    "left over": (zipped(in_stream(MAT[128:] + bytes(8))), "an miCOMPRESSED element; delete"),
    "two structs": (
        zipped(mat(np.zeros(2, [("image", "u1"), ("label_int", "u1")]))),
        "can only convert an array of size 1",
    ),
    "rows": (
        changed(image=FIELDS["image"].T),
        rf"its images are uint8 of shape \({COUNT}, 1600\) and not uint8 of shape \(1600, {COUNT}",
    ),
    "fewer": (
        zipped(mat(fields(IMAGES[1:], LABELS[1:]))),
        rf"of shape \(1600, {COUNT - 1}\) and not",
    ),
    "signed": (changed(image=FIELDS["image"].astype(np.int8)), "its images are int8 of shape"),
    "doubles": (changed(image=FIELDS["image"][:160] / 255), "its images are float64 of shape"),
    "labels missing": (changed(label_int=LABELS.T[:, 1:]), f"its labels are {COUNT - 1} uint8"),
    "labels as text": (changed(label_int="0" * COUNT), "its labels are 1 <U20 and not 20"),
    "label 10": (changed(label_int=LABELS.T + 1), "holds other labels than the digits 0 to 9"),
    "half a label": (changed(label_int=LABELS.T * 0.5), "holds other labels than the digits"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault
def test_damaged_file_is_one_sentence(fault, tmp_path):
    content, reason = FAULTS[fault]
    path = tmp_path / "test.mat.zip"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CapsreproError, match=reason) as caught:
        read_transformed(path, COUNT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"cannot read {path}: ")
    assert message.endswith(REFUSAL)
    assert len(message) > len(f"cannot read {path}: {REFUSAL}") + 10
    assert "\n" not in message
    assert peak < 5_000_000


@pytest.mark.fault
def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(CapsreproError, match=r"test\.mat\.zip: No such file or directory; delete"):
        read_transformed(tmp_path / "test.mat.zip", COUNT)
    with pytest.raises(CapsreproError, match=r"ubyte\.gz: No such file.*datasets fetch mnist"):
        list(affnist.prepare(tmp_path, {}))


def bars():
    """Upright bars, 6 wide and 10 to 20 high, here and there in 28×28 pixels; two are nines."""
    images = np.zeros((11, 1, 28, 28), np.uint8)
    for index, image in enumerate(images[:, 0]):
        image[index // 2 : index // 2 + 10 + index, index : index + 6] = 200
    return Split(images, np.minimum(np.arange(11, dtype=np.uint8), 9)[:, None])


def versions(originals):
    """32 shifted versions of each, in another order than one after the other."""
    images = np.concatenate([originals.images] * 32)
    return affnist.placed(images), np.concatenate([originals.labels] * 32)


ORIGINALS = bars()


def test_versions_of_the_originals_are_accepted(tmp_path):
    affnist.check_against_mnist(tmp_path, *versions(ORIGINALS), ORIGINALS)


@pytest.mark.fault
def test_swapped_rows_and_columns_are_refused(tmp_path):
    images, labels = versions(ORIGINALS)
    for wrong in (images.swapaxes(2, 3), np.zeros_like(images)):
        with pytest.raises(CapsreproError, match=r"do not stand as MNIST's do") as caught:
            affnist.check_against_mnist(tmp_path, wrong, labels, ORIGINALS)
        assert str(caught.value).endswith(REFUSAL)


@pytest.mark.fault
def test_other_counts_of_digits_are_refused(tmp_path):
    images, labels = versions(ORIGINALS)
    labels[labels == 8] = 7
    with pytest.raises(
        CapsreproError, match=r"occur \[32, .*, 64, 0, 64\] times, and not 32"
    ) as caught:
        affnist.check_against_mnist(tmp_path, images, labels, ORIGINALS)
    assert str(caught.value).endswith(REFUSAL)


def test_tallness_is_the_difference_of_variances():
    heights = np.arange(10, 21)
    expected = (heights**2 - 6**2) / 12  # of a uniform distribution over n places: (n² − 1) / 12
    expected = np.append(expected[:9], expected[9:].mean())
    np.testing.assert_allclose(affnist.tallness(ORIGINALS.images, ORIGINALS.labels), expected)
    wide = affnist.tallness(ORIGINALS.images.swapaxes(2, 3), ORIGINALS.labels)
    np.testing.assert_allclose(wide, -expected)


def first_ink(images, axis):
    """First row (axis 2) or column (axis 3) with ink."""
    return (images > 0).any(axis=(1, 5 - axis)).argmax(1)


def sha256(images):
    return hashlib.sha256(images.tobytes()).hexdigest()


@pytest.mark.real_data
@real_mnist
def test_shifted_digits_of_the_real_mnist():
    digits = dict(affnist.mnist.prepare(DATASETS_FOLDER, {}))
    splits = dict(affnist.shifted_digits(digits))
    train, expanded = splits["train"].images, splits["expanded"].images
    assert {name: len(split.images) for name, split in splits.items()} == {
        "train": 60_000,
        "expanded": 10_000,
    }
    np.testing.assert_array_equal(train[:, :, 6:34, 6:34], digits["train"].images)
    assert train.sum() == digits["train"].images.sum()
    np.testing.assert_array_equal(splits["train"].labels, digits["train"].labels)
    np.testing.assert_array_equal(splits["expanded"].labels, digits["test"].labels)

    originals = digits["test"].images
    down, right = (first_ink(expanded, axis) - first_ink(originals, axis) for axis in (2, 3))
    for moved, original, top, left in zip(expanded, originals, down, right, strict=True):
        np.testing.assert_array_equal(moved[:, top : top + 28, left : left + 28], original)
    assert expanded.sum() == originals.sum()
    counts = np.bincount(down * 13 + right, minlength=169)
    assert (len(counts), down.min(), right.min()) == (169, 0, 0)
    assert 0.01 < chisquare(counts).pvalue < 0.99
    # Frozen: `expanded` is what both models are matched on.
    assert sha256(expanded) == "48058817730dfbc1f27be545649843c3401b9b2cab427fc76db5a8d0dd0acced"
    assert sha256(train) == "7aa12354662bf32547e9f4e405444de65051bfd57365273a78af8e77621c0e17"


PREPARE_IN_A_CHILD = """
import hashlib, json, re, sys
from pathlib import Path
from capsrepro.data.affnist import prepare

found = {}
for name, split in prepare(Path(sys.argv[1]), {}):
    found[name] = [list(split.images.shape), hashlib.sha256(split.images).hexdigest()]
    found["labels"] = hashlib.sha256(split.labels).hexdigest()
    del split
status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory
found["peak_GB"] = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1e6
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.real_data
@real_mnist
def test_official_file_of_full_size(tmp_path):
    """Versions of the real test digits, by shifts, since the official file is not here."""
    test = dict(affnist.mnist.prepare(DATASETS_FOLDER, {}))["test"]
    images, labels = versions(test)
    (tmp_path / "mnist").symlink_to(DATASETS_FOLDER / "mnist")
    (tmp_path / "affnist").mkdir()
    with (
        zipfile.ZipFile(tmp_path / "affnist/test.mat.zip", "w", 8, compresslevel=1) as archive,
        archive.open("test.mat", "w", force_zip64=True) as file,
    ):
        file.write(mat(fields(images, labels)))
    command = [sys.executable, "-c", PREPARE_IN_A_CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["test"] == [[320_000, 1, 40, 40], sha256(images)]
    assert found["labels"] == hashlib.sha256(labels).hexdigest()
    assert found["expanded"][0] == [10_000, 1, 40, 40]
    assert found["peak_GB"] < 2
