"""The reader of MATLAB 5 files: MATLAB's own, damaged ones, and such as mean harm."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from official_files import matlab_variable, write_matlab
from scipy.io import loadmat, savemat

from capsrepro.data.matlab_format import read_arrays
from capsrepro.errors import CapsreproError

SCIPY_FILES = Path(loadmat.__code__.co_filename).parent / "tests/data"
SHAPES = {"X": (3, 2, 5), "y": (5, 1)}
X = np.arange(30, dtype=np.uint8).reshape(SHAPES["X"])
Y = np.arange(5, dtype=np.uint8)[:, None]
MOST_BYTES = 10_000


def read(path: Path, shapes=SHAPES, most_bytes: int = MOST_BYTES):
    return read_arrays(path, shapes, most_bytes, "toy")


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(CapsreproError) as caught:
        read(path)
    assert str(caught.value) == (
        f"cannot read {path}: {reason}; delete it and run `capsrepro datasets fetch toy`."
    )


@pytest.mark.skipif(not SCIPY_FILES.is_dir(), reason=f"scipy has no {SCIPY_FILES}")
@pytest.mark.parametrize(
    "name",
    [
        f"test{kind}_{version}_GLNX86.mat"
        for kind in ("3dmatrix", "double", "matrix", "minus")
        for version in ("6.5.1", "7.1", "7.4")
    ]
    + ["testmulti_7.1_GLNX86.mat", "testmulti_7.4_GLNX86.mat"],
)
def test_files_that_matlab_wrote(name):
    """Uncompressed before version 7; names and numbers of at most four bytes among them."""
    theirs = {
        key: array for key, array in loadmat(SCIPY_FILES / name).items() if not key.startswith("__")
    }
    ours = read(SCIPY_FILES / name, {key: array.shape for key, array in theirs.items()})
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].dtype == array.dtype
        np.testing.assert_array_equal(ours[key], array)


@pytest.mark.parametrize("do_compression", [True, False])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_files_that_scipy_wrote(dtype, do_compression, tmp_path):
    path = tmp_path / "x.mat"
    savemat(path, {"X": X.astype(dtype), "y": Y}, do_compression=do_compression)
    arrays = read(path)
    assert arrays["X"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(arrays["X"], X)
    np.testing.assert_array_equal(arrays["y"], Y)


VARIABLES = [matlab_variable("X", X), matlab_variable("y", Y)]
NO_ARRAY = "it holds a variable that is no array of real numbers with 2 to 8 axes"
NOT_ITSELF = "it holds a variable that is no array, or not of its own size"
ONCE = "and should hold 'X' (3, 2, 5), 'y' (5, 1) once"


def with_word(variable: bytes, position: int, word: int) -> bytes:
    """The same variable with four of its bytes changed."""
    return variable[:position] + struct.pack("<i", word) + variable[position + 4 :]


# Of `y`: 0 type and size, 8 flags, 24 sizes, 40 name, 48 type and size of the numbers.
DAMAGED = {
    "twice": ([*VARIABLES, VARIABLES[1]], f"it holds 'y' (5, 1), {ONCE}"),
    "no array": ([with_word(VARIABLES[1], 0, 13)], NOT_ITSELF),
    "larger than its stream": ([with_word(VARIABLES[1], 4, 10**9)], NOT_ITSELF),
    "smaller than its stream": ([with_word(VARIABLES[1], 4, 8)], NOT_ITSELF),
    "size of a part": ([with_word(VARIABLES[1], 12, 10**9)], "it holds a variable that ends early"),
    "axes": ([with_word(VARIABLES[1], 32, 7)], "it holds 5 bytes of numbers for the shape (7, 1)"),
    "negative axes": (
        [with_word(with_word(VARIABLES[1], 32, -5), 36, -1)],
        "it holds 5 bytes of numbers for the shape (-5, -1)",
    ),
    "unknown type": ([with_word(VARIABLES[1], 48, 8)], NO_ARRAY),
    "type out of scipy's table": ([with_word(VARIABLES[1], 48, 2050)], NO_ARRAY),
    "type of larger numbers": (
        [with_word(VARIABLES[1], 48, 4)],
        "it holds 5 bytes of numbers for the shape (5, 1)",
    ),
    "nothing inside": ([struct.pack("<II", 14, 0)], NO_ARRAY),
    "not even a tag": ([b"1234"], "it ends early"),
    "half a part": ([struct.pack("<III", 14, 4, 6)], "it ends early"),
    "many parts": ([struct.pack("<II", 14, 8_000) + bytes(8_000)], NO_ARRAY),
    "many axes": ([matlab_variable("y", Y.reshape(5, *[1] * 9))], NO_ARRAY),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.fault
def test_damaged_variable_is_one_sentence(damage, tmp_path):
    variables, reason = DAMAGED[damage]
    assert_refused(write_matlab(tmp_path / "x.mat", *variables), reason)


# Cut off at their ends: had one been read on, that would be the message.
BOMBS = {
    "one variable": [matlab_variable("X", np.zeros((1000, 1000, 20), np.uint8))],
    "name": [struct.pack("<10I", 14, 2**31, 6, 8, 9, 0, 5, 8, 1, 1) + bytes(20_000_000)],
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.fault
def test_bomb_is_stopped_early(bomb, tmp_path):
    path = write_matlab(tmp_path / "x.mat", *BOMBS[bomb])
    path.write_bytes(path.read_bytes()[:-1])
    tracemalloc.start()
    try:
        assert_refused(path, "it unpacks to more than 10,000 bytes")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.fault
def test_variables_share_the_limit(tmp_path):
    column = np.zeros((6_000, 1), np.uint8)
    path = write_matlab(
        tmp_path / "x.mat", matlab_variable("X", column), matlab_variable("y", column)
    )
    shapes = {"X": column.shape, "y": column.shape}
    assert read(path, shapes, 2 * (6_000 + 56)).keys() == shapes.keys()
    with pytest.raises(CapsreproError, match="unpacks to more than 12,111 bytes"):
        read(path, shapes, 2 * (6_000 + 56) - 1)


@pytest.mark.fault
def test_stream_without_its_checksum_is_refused(tmp_path):
    path = write_matlab(tmp_path / "x.mat", VARIABLES[0])
    stream = zlib.compress(VARIABLES[1])[:-4]
    path.write_bytes(path.read_bytes() + struct.pack("<II", 15, len(stream)) + stream)
    assert_refused(path, "it ends early")


@pytest.mark.fault
def test_millions_of_parts_take_no_memory(tmp_path):
    size = 8 * 10**6
    path = write_matlab(tmp_path / "x.mat", struct.pack("<II", 14, size) + bytes(size))
    tracemalloc.start()
    try:
        with pytest.raises(CapsreproError, match="no array of real numbers"):
            read(path, most_bytes=2 * size)
        assert tracemalloc.get_traced_memory()[1] < 4 * size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [14, 15])
@pytest.mark.fault
def test_claimed_size_takes_no_memory(kind, tmp_path):
    path = write_matlab(tmp_path / "x.mat")
    path.write_bytes(path.read_bytes() + struct.pack("<II", kind, 2**32 - 1) + bytes(100))
    tracemalloc.start()
    try:
        with pytest.raises(CapsreproError, match=r"ends early|unknown compression"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>" * 100,
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 64,
        b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + bytes(64),
    ],
    ids=["empty", "page", "version 7.3", "big-endian"],
)
@pytest.mark.fault
def test_what_is_no_matlab_5_file_is_refused(content, tmp_path):
    path = tmp_path / "x.mat"
    path.write_bytes(content)
    assert_refused(path, "it does not start like a MATLAB 5 file")


@pytest.mark.fault
def test_missing_file_is_one_sentence(tmp_path):
    assert_refused(tmp_path / "x.mat", "No such file or directory")


@pytest.mark.parametrize("do_compression", [True, False])
@pytest.mark.fault
def test_every_flipped_byte_and_every_cut(do_compression, tmp_path):
    """Every cut is refused; a flip too, where a checksum guards it."""
    path = tmp_path / "x.mat"
    savemat(path, {"X": X, "y": Y}, do_compression=do_compression)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position])
        with pytest.raises(CapsreproError):
            read(path)
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        path.write_bytes(flipped)
        try:
            arrays = read(path)
        except CapsreproError as error:
            assert "\n" not in str(error)
        else:
            assert position < 124 or not do_compression  # the header starts with a free text
            assert {name: array.shape for name, array in arrays.items()} == SHAPES
