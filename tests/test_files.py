from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsrepro.errors import CapsreproError
from capsrepro.files import digest, sha256_of_file, write_atomically, write_json, write_text


def test_writes_the_whole_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "ε = 8/255\n")
    assert path.read_bytes() == "ε = 8/255\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644
    write_text(path, "shorter")
    assert path.read_text() == "shorter"


class _StopError(Exception):
    pass


@pytest.mark.parametrize("error", [_StopError(), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_content(tmp_path, error):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail_half_way(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail_half_way)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_content(tmp_path):
    """The kernel's limit on file sizes stands for the disk: root may write past any permission."""
    path = tmp_path / "file.txt"
    write_text(path, "old")
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from capsrepro.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(Path(sys.argv[1]), 'x' * 2000)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True
    )
    said = done.stderr.splitlines()[-1]
    assert said == (
        f"capsrepro.errors.CapsreproError: cannot write {path}: File too large; free space or make "
        f"{tmp_path} writable, then run the same command again."
    )
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "blocked").write_text("")
    for path in (tmp_path / "blocked" / "file", tmp_path / "blocked" / "deeper" / "file"):
        with pytest.raises(CapsreproError, match=rf"^cannot write {path}: (File exists|Not a dir)"):
            write_text(path, "new")


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(CapsreproError, match="Is a directory"):
        write_text(tmp_path / "file", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_keeps_the_order_of_keys_and_every_bit_of_a_number(tmp_path):
    path = tmp_path / "file.json"
    document = {"b": 0.1 + 0.2, "a": [1, None, "é"], "tiny": 5e-324}
    write_json(path, document)
    assert json.loads(path.read_text()) == document
    assert list(json.loads(path.read_text())) == ["b", "a", "tiny"]
    assert path.read_text().endswith("}\n")
    assert "é" in path.read_text()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_not_written(tmp_path, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"a": number})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": number})
    assert not list(tmp_path.iterdir())


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), _VALUES, max_size=5))
def test_digest_is_of_the_content_alone(document):
    backwards = dict(reversed(document.items()))
    assert digest(document) == digest(backwards) == digest(json.loads(json.dumps(document)))
    assert digest(document) != digest({**document, "one": "more"}) or "one" in document


def test_digest_is_frozen():
    assert digest({"b": [1, 0.5], "a": "ε"}) == (
        "fc3256467c7794fd0656c776ccdb6420f582de218f6708bea88bb8eb382094aa"
    )
    assert digest({"a": 1}) != digest({"a": 1.0})


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of_file(tmp_path / "empty") == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
