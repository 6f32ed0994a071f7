"""The generated data set of solids: its grid, its splits by viewpoint, its bytes."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from smallnorb_files import OFFICIAL_INSTANCES, official_metadata

from capsrepro.data import DATASETS, smallnorb, solids
from capsrepro.data.dataset import Split
from capsrepro.data.preparation import prepare_dataset
from capsrepro.data.prepared import load_split
from capsrepro.data.smallnorb import average
from capsrepro.data.solids import AZIMUTH, DATASET, ELEVATION, make_solid, prepare
from capsrepro.data.solids_shapes import SIZES_PX
from capsrepro.data.solids_view import brightness, face_map
from capsrepro.errors import UsageError

SMALL = {"instances": 1, "lightings": 2, "seed": 0}
FEWER = {"instances": 1, "lightings": 1, "seed": 0}
FAMILIAR_DEG = {"azimuth": {300, 320, 340, 0, 20, 40}, "elevation": {30, 35, 40}}
DIGEST = "521abf86a5065bcd1e581e97507d26e0de4e8e7f9009eb8c3f6f97c4733c6c55"
"""Of the default parameters; a record of a run holds it."""
NAMES = ("solids", "solids-azimuth", "solids-elevation")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return dict(prepare(tmp_path_factory.mktemp("raw"), SMALL))


def chosen(split: Split, mask) -> list:
    return [split.images[mask], split.labels[mask], split.factors[mask]]


def is_familiar(factors, by):
    """Which rows EM18 trains on, told by the degrees in its text."""
    _, elevation, azimuth, _ = factors.T.astype(int)
    degrees = azimuth * 10 if by == "azimuth" else 30 + elevation * 5
    return np.array([value in FAMILIAR_DEG[by] for value in degrees.tolist()])


def digest_of(splits) -> str:
    found = hashlib.sha256()
    for name, split in splits.items():
        found.update(name.encode())
        for array in split[:3]:
            assert array.dtype == np.uint8
            found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def test_grid_is_that_of_smallnorb_in_its_order(small):
    for name, split in small.items():
        labels, factors = official_metadata(name)
        kept = (factors[:, 0] == OFFICIAL_INSTANCES[name][0]) & (factors[:, 3] < 2)
        np.testing.assert_array_equal(split.labels, labels[kept, None])
        np.testing.assert_array_equal(split.factors, factors[kept])
        assert split.images.shape == (810 * 2, 2, 48, 48)


def test_pictures_are_what_labels_and_factors_say(small):
    """The front at 350°; lighting, elevation, camera and solid as coded."""
    for name, split in small.items():
        for index in range(7, 1620, 101):
            instance, elevation, azimuth, lighting = map(int, split.factors[index])
            solid = make_solid(DATASET.classes[split.labels[index, 0]], instance, 0)
            heading = azimuth * 10 - 350
            levels = brightness(solid, heading)[lighting]
            for camera, beside in enumerate((-3, 3)):
                faces = face_map(solid, heading + beside, 30 + 5 * elevation)
                np.testing.assert_array_equal(split.images[index, camera], average(levels[faces]))
        assert len(np.unique(split.images.reshape(1620, -1), axis=0)) == 1620, name


@pytest.mark.parametrize("dataset", [AZIMUTH, ELEVATION], ids=lambda row: row.name)
def test_viewpoints_part_the_same_pairs(dataset, small, tmp_path):
    """And a picture does not depend on how many lightings there are."""
    by = dataset.name.removeprefix("solids-")
    splits = dict(dataset.prepare(tmp_path, FEWER))
    assert list(splits) == list(dataset.counts)
    assert {name: len(split.images) for name, split in splits.items()} == {
        name: count // 30 for name, count in dataset.counts.items()
    }
    for name, split in splits.items():
        whole = small["train" if name == "train" else "test"]
        first = whole.factors[:, 3] == 0
        seen = is_familiar(whole.factors, by)
        expected = chosen(whole, first & (seen if name != "novel" else ~seen))
        for array, wanted in zip(split[:3], expected, strict=True):
            np.testing.assert_array_equal(array, wanted)


def test_every_instance_and_seed_is_another_solid():
    made = [make_solid(shape, code, 0) for shape in DATASET.classes for code in range(10)]
    made += [make_solid(shape, 0, seed) for shape in DATASET.classes for seed in (1, -1, 1 << 40)]
    pictures = [face_map(solid, 30, 40) > 0 for solid in made]
    assert len({picture.tobytes() for picture in pictures}) == len(made) == 65
    again = make_solid("cross", 7, 0)
    assert again == make_solid("cross", 7, 0) == made[4 * 10 + 7]


def test_no_number_is_drawn_for_two_solids():
    drawn = set()
    for shape, code in itertools.product(DATASET.classes, range(10)):
        solid = make_solid(shape, code, 0)
        for plane, (low, high) in zip((0, 2, 4), SIZES_PX, strict=True):
            size = 2 * max(part[plane][3] for part in solid)
            drawn.add(round((size - low) / (high - low), 6))
    assert len(drawn) == 3 * 50
    assert 0 <= min(drawn) < max(drawn) < 1


def test_proportions_are_drawn_evenly():
    """Half the boxes of many seeds are longer than the middle of the range, and so on."""
    lengths = [
        2 * make_solid("channel", code, seed)[0][0][3] for code in range(10) for seed in range(40)
    ]
    counts, _ = np.histogram(lengths, bins=4, range=(24, 32))
    assert counts.sum() == 400
    assert counts.min() > 70


def test_bytes_are_frozen(small):
    """They must be the same under every numpy and on every machine."""
    assert digest_of(small) == ("bd89d3ffa55fe7c7d149e95d6fa1b6048e9d6b9ecf69108eb3c5d497b506b8ff")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("key", "value", "most"),
    [("instances", 0, 5), ("instances", 6, 5), ("lightings", -1, 6), ("lightings", 7, 6)],
)
def test_impossible_parameter_is_one_sentence(name, key, value, most, tmp_path):
    with pytest.raises(UsageError) as caught:
        prepare_dataset(name, {key: value}, tmp_path)
    assert str(caught.value) == (
        f"{key} of the data set of solids is {value}; set it between 1 and {most}."
    )


def test_rows_mirror_those_of_smallnorb():
    for ours, theirs in zip(
        (DATASET, AZIMUTH, ELEVATION),
        (smallnorb.DATASET, smallnorb.AZIMUTH, smallnorb.ELEVATION),
        strict=True,
    ):
        assert ours.name == theirs.name.replace("smallnorb", "solids")
        assert DATASETS[ours.name] is ours
        assert ours.image_shape == theirs.image_shape
        assert (ours.counts, ours.factors) == (theirs.counts, theirs.factors)
        assert len(ours.classes) == len(theirs.classes)
        assert "generated, not smallNORB" in ours.title
    assert "enter no verdict" in solids.__doc__


PREPARE_IN_A_CHILD = """
import json, re, sys, time
from pathlib import Path
from capsrepro.data.preparation import prepare_dataset
start = time.process_time()
manifest = prepare_dataset("solids", {}, Path(sys.argv[1]))
# Not ru_maxrss: a child starts with that of pytest.
status = Path("/proc/self/status").read_text()
peak_mb = int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1024
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "digest": manifest["digest"]}))
"""


@pytest.mark.slow
def test_full_size(tmp_path):
    command = [sys.executable, "-c", PREPARE_IN_A_CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print(figures)
    assert figures["digest"] == DIGEST
    assert figures["seconds"] < 60
    assert figures["peak_mb"] < 900
    seen = set()
    for name in ("train", "test"):
        split = load_split("solids", name, tmp_path)
        labels, factors = official_metadata(name)
        np.testing.assert_array_equal(split.labels, labels[:, None])
        np.testing.assert_array_equal(split.factors, factors)
        seen |= {hashlib.sha256(pair.data).digest() for pair in split.images}
    # No pair stands twice, so none is of two classes or in both splits.
    assert len(seen) == 48_600
