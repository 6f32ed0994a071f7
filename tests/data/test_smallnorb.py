"""The reader of NORB's matrices, the halved images, the splits by viewpoint."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from smallnorb_files import (
    OFFICIAL_NAMES,
    matrix,
    official_metadata,
    write_matrix,
    write_split,
)

from capsrepro.data import DATASETS, norb_format
from capsrepro.data.norb_format import BYTES, INTEGERS, read_blocks, read_matrix
from capsrepro.data.smallnorb import (
    AZIMUTH,
    DATASET,
    ELEVATION,
    MONOCULAR,
    average,
    every_second,
    familiar_viewpoints,
    take_apart,
)
from capsrepro.errors import CapsreproError, UsageError

SAMPLE = Path(__file__).parents[3] / "shared/datasets/smallnorb-sample"
REFUSAL = "; delete it and run `capsrepro datasets fetch smallnorb`."
DEGREES = {
    "azimuth": (2, 10, 0, {300, 320, 340, 0, 20, 40}),
    "elevation": (1, 5, 30, {30, 35, 40}),
}

real_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"{SAMPLE} is not there")


def noise(*shape: int, seed: int = 0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def averaged(images):
    """The same as `average`, in floating point: quarters are exact."""
    *front, height, width = images.shape
    blocks = images.reshape(*front, height // 2, 2, width // 2, 2)
    return np.floor(blocks.mean(axis=(-3, -1), dtype=np.float64) + 0.5)


def viewed_from_the_familiar(info, by):
    """Which rows EM18 trains on, told by the degrees in its text."""
    column, step, first, familiar = DEGREES[by]
    return np.array([first + step * code in familiar for code in info[:, column].tolist()])


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3), (6, 2, 3, 4)])
@pytest.mark.parametrize("magic", [BYTES, INTEGERS])
def test_every_rank_and_type(magic, shape, tmp_path):
    array = noise(*shape)
    if magic == INTEGERS:
        array = array * np.int32(-70_000)
    write_matrix(tmp_path / "x.gz", array)
    read = read_matrix(tmp_path / "x.gz", magic, shape)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("block_bytes", "rows"), [(1, [1] * 7), (24, [1] * 7), (80, [3, 3, 1]), (1000, [7])]
)
def test_blocks_follow_one_another(block_bytes, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(norb_format, "BLOCK_BYTES", block_bytes)
    images = noise(7, 2, 3, 4)
    write_matrix(tmp_path / "x.gz", images)
    blocks = list(read_blocks(tmp_path / "x.gz", BYTES, images.shape))
    assert [len(block) for block in blocks] == rows
    np.testing.assert_array_equal(np.concatenate(blocks), images)


MATRIX = matrix(noise(5, 2, 3, 4))
PACKED = gzip.compress(MATRIX)
FAULTS = {
    "magic": (gzip.compress(b"\x54" + MATRIX[1:]), "starts with 544c3d1e, not with 554c3d1e"),
    "big-endian": (gzip.compress(MATRIX[3::-1] + MATRIX[4:]), "starts with 1e3d4c55, not with"),
    "axes": (
        gzip.compress(matrix(noise(5, 2, 12))),
        # Without a fourth size, pixels stand there.
        r"axes and sizes are \(3, 5, 2, 12, -?\d+\) instead of \(4, 5, 2, 3, 4\)",
    ),
    "sizes": (
        gzip.compress(matrix(noise(5, 2, 4, 3))),
        r"axes and sizes are \(4, 5, 2, 4, 3\) instead of \(4, 5, 2, 3, 4\)",
    ),
    "empty": (gzip.compress(b""), "starts with , not with 554c3d1e"),
    "header cut": (gzip.compress(MATRIX[:14]), r"axes and sizes are \(4, 5\) instead of"),
    "short": (gzip.compress(MATRIX[:-1]), "unpacks to 143 bytes instead of 144"),
    "long": (gzip.compress(MATRIX + b"x"), "has bytes left over behind its matrix"),
    "gzip cut": (PACKED[:-12], "ended before the end-of-stream"),
    "gzip checksum": (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "CRC check failed"),
    "gzip body": (PACKED[:12] + b"\xff\xff" + PACKED[14:], "Error -3 while decompressing"),
    "behind gzip": (PACKED + b"x", "Not a gzipped file"),
    "not gzip": (MATRIX, "Not a gzipped file"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault
def test_damaged_file_is_one_sentence(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(norb_format, "BLOCK_BYTES", 48)
    content, reason = FAULTS[fault]
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(CapsreproError, match=reason) as caught:
        read_matrix(path, BYTES, (5, 2, 3, 4))
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert str(caught.value).endswith(REFUSAL)


@pytest.mark.fault
def test_padding_of_a_vector_must_be_one(tmp_path):
    content = bytearray(matrix(np.arange(6)))
    content[12] = 2
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    with pytest.raises(CapsreproError, match=r"are \(1, 6, 2, 1\) instead of \(1, 6, 1, 1\)"):
        read_matrix(tmp_path / "x.gz", INTEGERS, (6,))


@pytest.mark.fault
def test_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(MATRIX + bytes(50_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(CapsreproError, match="has bytes left over"):
            read_matrix(path, BYTES, (5, 2, 3, 4))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.fault
def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(CapsreproError, match=r"cannot read .*: Is a directory; delete it"):
        read_matrix(tmp_path, BYTES, (5,))


def test_halving_rounds_half_up():
    blocks = np.array([[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1], [255] * 4, [254, 254, 255, 255]])
    images = blocks.astype(np.uint8).reshape(5, 2, 2)
    assert average(images).ravel().tolist() == [0, 1, 1, 255, 255]


def test_halving_averages_neighbours():
    images = noise(3, 2, 8, 6)
    halved = average(images)
    assert halved.dtype == np.uint8
    np.testing.assert_array_equal(halved, averaged(images))


def test_other_halving_is_what_tensorflow_1_makes_of_bilinear():
    """Its `resize_bilinear` without half-pixel centres: sample at 2·row and 2·column, no more."""
    images = noise(3, 2, 8, 6)
    expected = np.array(
        [[images[..., 2 * row, 2 * column] for column in range(3)] for row in range(4)]
    )
    np.testing.assert_array_equal(every_second(images), np.moveaxis(expected, (0, 1), (2, 3)))


def test_unknown_halving(tmp_path):
    with pytest.raises(UsageError, match="halving of smallNORB is 'thirds'; set it to average or "):
        list(DATASET.prepare(tmp_path, {"halving": "thirds"}))


def test_writer_makes_the_official_metadata():
    """So what is read in these tests is what the authors published, header, order and all.

    Packed by `gzip` at its usual level, and dated 8 October 2005, 21:31:12 UTC, these bytes are
    the official -cat.mat.gz and -info.mat.gz, whose SHA-256 TensorFlow Datasets pins.
    """
    cat, info = (hashlib.sha256(matrix(array)).hexdigest() for array in official_metadata("test"))
    assert cat == "591ed90c090cb6724593e8de28180bd602095ee8ec82bd1a5ca30b488cd1d06e"
    assert info == "318f817236b7c97af03cd90e07a9cbb4346e20ef83a1118a61eeb50e3b96db7e"


@pytest.mark.parametrize("by", ["azimuth", "elevation"])
def test_a_third_is_familiar(by):
    for split in OFFICIAL_NAMES:
        _, info = official_metadata(split)
        familiar = familiar_viewpoints(info.astype(np.uint8), by)
        np.testing.assert_array_equal(familiar, viewed_from_the_familiar(info, by))
        assert familiar.sum() == 8_100


def test_pairs_are_taken_apart_and_can_be_put_together_again():
    images, labels, factors = noise(5, 2, 4, 6), noise(5, 1, seed=1), noise(5, 4, seed=2)
    apart = take_apart((images, labels, factors))
    assert {array.dtype for array in apart[:3]} == {np.dtype(np.uint8)}
    assert apart.images.shape == (10, 1, 4, 6)
    for pair in range(5):
        for camera in (0, 1):
            at = 2 * pair + camera
            np.testing.assert_array_equal(apart.images[at, 0], images[pair, camera])
            assert apart.labels[at].tolist() == labels[pair].tolist()
            assert apart.factors[at].tolist() == [*factors[pair].tolist(), camera]
    left, right = (apart.images[apart.factors[:, -1] == camera, 0] for camera in (0, 1))
    np.testing.assert_array_equal(np.stack([left, right], axis=1), images)


def test_taking_pairs_apart_copies_no_image():
    images, factors = noise(3, 2, 48, 48), noise(3, 4)
    apart = take_apart((images, factors[:, :1], factors))
    assert np.shares_memory(apart.images, images)


def test_single_views_are_the_same_pictures_under_another_name():
    assert MONOCULAR.image_shape == (1, 48, 48)
    assert MONOCULAR.counts == {"train": 48_600, "test": 48_600}
    assert MONOCULAR.factors == ("instance", "elevation", "azimuth", "lighting", "camera")
    assert (MONOCULAR.sources, MONOCULAR.classes) == (DATASET.sources, DATASET.classes)
    assert DATASETS["smallnorb-monocular"] is MONOCULAR


def metadata_faults():
    """Per fault: which value of the official metadata becomes which, and what is said of it."""
    cat, info = "cat", "info"
    return {
        "category": (cat, 7, 5, r"0 to 4 occur \[4860, 4860, 4859, 4860, 4860\] times, not 4,860"),
        "unbalanced": (cat, 7, 1, r"occur \[4860, 4861, 4859, 4860, 4860\] times"),
        "negative": (cat, 7, -1, r"occur \[4860, 4860, 4859,"),
        "instance of the test": (info, (7, 0), 5, r"the instance 5, not one of \(4, 6, 7, 8, 9\)"),
        "elevation": (info, (7, 1), 9, "it holds the elevation 9, not one of"),
        "azimuth odd": (info, (7, 2), 3, "it holds the azimuth 3, not one of"),
        "azimuth": (info, (7, 2), 36, "it holds the azimuth 36, not one of"),
        "lighting": (info, (7, 3), 6, "it holds the lighting 6, not one of"),
        "more than a byte": (info, (7, 3), 256, "it holds the lighting 256, not one of"),
        "twice": (info, (7, 3), 0, "with its -cat file it tells 24,299 pictures apart instead of"),
    }


@pytest.mark.parametrize("dataset", [DATASET, AZIMUTH, ELEVATION], ids=lambda row: row.name)
@pytest.mark.parametrize("fault", metadata_faults())
@pytest.mark.fault
def test_other_metadata_is_refused(fault, dataset, tmp_path):
    kind, place, value, reason = metadata_faults()[fault]
    metadata = dict(zip(("cat", "info"), official_metadata("train"), strict=True))
    metadata[kind][place] = value
    for name, array in metadata.items():
        write_matrix(tmp_path / "smallnorb" / OFFICIAL_NAMES["train"].format(name), array)
    with pytest.raises(CapsreproError, match=reason) as caught:
        list(dataset.prepare(tmp_path, dataset.parameters))
    path = tmp_path / "smallnorb" / OFFICIAL_NAMES["train"].format(kind)
    assert str(caught.value).startswith(f"cannot read {path}: ")
    assert str(caught.value).endswith(REFUSAL)


@pytest.mark.parametrize("missing", ["cat", "info", "dat"])
@pytest.mark.fault
def test_missing_file_is_one_sentence(missing, tmp_path):
    """The metadata are looked at before the 450 MB of pixels."""
    cat, info = official_metadata("train")
    write_split(tmp_path / "smallnorb", "train", noise(1, 2, 96, 96), cat, info)
    path = tmp_path / "smallnorb" / OFFICIAL_NAMES["train"].format(missing)
    path.unlink()
    with pytest.raises(CapsreproError) as caught:
        list(DATASET.prepare(tmp_path, DATASET.parameters))
    assert str(caught.value) == f"cannot read {path}: No such file or directory{REFUSAL}"


def write_real_pairs(folder: Path):
    """The 12 real pairs, 6 per split, as official files; returns them by split."""
    with np.load(SAMPLE / "smallnorb_LOSSLESS_6train_6test_pairs.npz") as sample:
        pairs = {
            split: (sample[f"x_{split}"], sample[f"y_{split}"], sample[f"info_{split}_as_stored"])
            for split in OFFICIAL_NAMES
        }
    for split, (images, cat, info) in pairs.items():
        write_split(folder, split, images, cat.astype(np.int32), info.astype(np.int32))
    return pairs


@pytest.mark.real_data
@real_sample
def test_real_pairs(tmp_path):
    for split, (images, cat, info) in write_real_pairs(tmp_path).items():
        dat, cats, infos = (
            tmp_path / OFFICIAL_NAMES[split].format(k) for k in ("dat", "cat", "info")
        )
        read = read_matrix(dat, BYTES, (6, 2, 96, 96))
        np.testing.assert_array_equal(read, images)
        np.testing.assert_array_equal(average(read), averaged(images))
        np.testing.assert_array_equal(read_matrix(cats, INTEGERS, (6,)), cat)
        np.testing.assert_array_equal(read_matrix(infos, INTEGERS, (6, 4)), info)
        # Both cameras see the same toy: turned, not another picture.
        left, right = average(read).reshape(6, 2, -1).astype(float).transpose(1, 0, 2)
        alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(left, right, strict=True)]
        assert min(alike) > 0.5


@pytest.mark.real_data
@real_sample
@pytest.mark.parametrize("split", OFFICIAL_NAMES)
def test_real_categories(split, tmp_path):
    packed = tmp_path / OFFICIAL_NAMES[split].format("cat")
    content = (SAMPLE / packed.stem).read_bytes()
    packed.write_bytes(gzip.compress(content))
    cat = read_matrix(packed, INTEGERS, (24_300,))
    assert cat.tobytes() == content[20:]
    assert np.bincount(cat).tolist() == [4_860] * 5
    np.testing.assert_array_equal(cat, official_metadata(split)[0])


PREPARE_IN_A_CHILD = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from capsrepro.data.smallnorb import prepare

start, seconds = time.perf_counter(), 0.0
for name, split in prepare(Path(sys.argv[1]), {"halving": "average"}):
    seconds += time.perf_counter() - start
    np.savez(Path(sys.argv[1]) / name, **{k: v for k, v in split._asdict().items() if k != "notes"})
    start = time.perf_counter()
# Not ru_maxrss: a child starts with that of pytest.
status = Path("/proc/self/status").read_text()
peak_mb = int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1024
print(json.dumps({"seconds": seconds, "peak_mb": peak_mb}))
"""


@pytest.fixture(scope="module")
def full_size():
    """Noise in official files of the real size, some of its pairs, and the figures of the child."""
    with TemporaryDirectory() as folder:
        root, some = Path(folder), {}
        for seed, split in enumerate(OFFICIAL_NAMES):
            images = noise(24_300, 2, 96, 96, seed=seed)
            write_split(root / "smallnorb", split, images, *official_metadata(split), 0)
            some[split] = images[::997].copy()
            del images
        command = [sys.executable, "-c", PREPARE_IN_A_CHILD, str(root)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield root, some, json.loads(done.stdout)


@pytest.mark.slow
def test_limits_at_full_size(full_size):
    _, _, figures = full_size
    print(figures)
    assert figures["seconds"] < 60
    # Two splits of 112 MB, the modules, and no room for a whole file of 448 MB.
    assert figures["peak_mb"] < 400


@pytest.mark.slow
@pytest.mark.parametrize("split", OFFICIAL_NAMES)
def test_full_size(split, full_size):
    root, some, _ = full_size
    cat, info = official_metadata(split)
    with np.load(root / f"{split}.npz") as arrays:
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint8)}
        assert arrays["images"].shape == (DATASET.counts[split], *DATASET.image_shape)
        np.testing.assert_array_equal(arrays["images"][::997], averaged(some[split]))
        np.testing.assert_array_equal(arrays["labels"], cat[:, None])
        np.testing.assert_array_equal(arrays["factors"], info)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "dataset"), [("azimuth", AZIMUTH), ("elevation", ELEVATION)])
def test_viewpoints_at_full_size(by, dataset, full_size):
    root, *_ = full_size
    splits = dict(dataset.prepare(root, dataset.parameters))
    assert {name: len(split.images) for name, split in splits.items()} == dataset.counts
    for name, split in splits.items():
        with np.load(root / ("train.npz" if name == "train" else "test.npz")) as arrays:
            chosen = viewed_from_the_familiar(arrays["factors"], by) == (name != "novel")
            for key, whole in arrays.items():
                np.testing.assert_array_equal(getattr(split, key), whole[chosen])


@pytest.mark.slow
def test_single_views_at_full_size(full_size):
    root, *_ = full_size
    prepared = MONOCULAR.prepare(root, MONOCULAR.parameters)
    for name, split in prepared:
        with np.load(root / f"{name}.npz") as pairs:
            assert split.images.shape == (MONOCULAR.counts[name], *MONOCULAR.image_shape)
            assert split.factors.shape == (MONOCULAR.counts[name], len(MONOCULAR.factors))
            for camera in (0, 1):
                seen = split.factors[:, 4] == camera
                np.testing.assert_array_equal(split.images[seen, 0], pairs["images"][:, camera])
                np.testing.assert_array_equal(split.labels[seen], pairs["labels"])
                np.testing.assert_array_equal(split.factors[seen, :4], pairs["factors"])
