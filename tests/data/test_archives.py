"""Archives that mean harm, that broke on the way, and good ones."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from official_files import write_tar

from capsrepro.data.archives import OTHERS_BYTES, read_members
from capsrepro.errors import CapsreproError

SIZES = {"a/one": (3, 3), "a/two": (1, 4)}
GOOD = [("a/", b""), ("a/one", b"ONE"), ("a/readme", b"read me"), ("a/two", b"TW")]
COMPRESS = {".gz": gzip.compress, ".xz": partial(lzma.compress, preset=0)}
both = pytest.mark.parametrize("suffix", COMPRESS)


def read(path: Path, sizes=SIZES) -> dict[str, bytes]:
    return dict(read_members(path, sizes, "toy"))


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, link
    return header


def claiming(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One header whose content does not follow."""
    header = special(name, kind)
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT)


def plain_tar(*members) -> bytes:
    """An uncompressed archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def packed(path: Path, content: bytes) -> Path:
    path.write_bytes(COMPRESS[path.suffix](content))
    return path


def assert_refused(path: Path, reason: str, sizes=SIZES) -> None:
    """One sentence with the reason, and nothing new anywhere around the archive."""
    before = sorted(path.parents[1].rglob("*"))
    with pytest.raises(CapsreproError) as caught:
        read(path, sizes)
    assert str(caught.value) == (
        f"cannot read {path}: {reason}; delete it and run `capsrepro datasets fetch toy`."
    )
    assert sorted(path.parents[1].rglob("*")) == before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two levels down, and the current folder, so that `../x` would be seen."""
    folder = tmp_path / "outer/inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@both
def test_wanted_members_come_in_the_order_of_the_archive(suffix, folder):
    path = write_tar(folder / f"x.tar{suffix}", reversed(GOOD))
    assert list(read_members(path, SIZES, "toy")) == [("a/two", b"TW"), ("a/one", b"ONE")]
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar(form, folder):
    path = folder / "x.tar.gz"
    with tarfile.open(path, "w:gz", format=form, pax_headers={"comment": "global"}) as archive:
        for name, content in GOOD[1:]:
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), 1234567890
            if form == tarfile.PAX_FORMAT:
                header.mtime += 0.5  # such a time makes a pax header before the member
            header.uid, header.uname = 1_000_000, "jürgen"
            archive.addfile(header, io.BytesIO(content))
    assert read(path) == {"a/one": b"ONE", "a/two": b"TW"}


def test_size_of_a_folder_has_no_content_behind_it(folder):
    content = claiming("a/", 100, tarfile.DIRTYPE) + plain_tar(*GOOD[1:])
    assert read(packed(folder / "x.tar.gz", content)) == {"a/one": b"ONE", "a/two": b"TW"}


HOSTILE = {
    "parent": ([("../evil", b"x")], "its member '../evil' leads out of the archive"),
    "hidden parent": (
        [("a/../../evil", b"x")],
        "its member 'a/../../evil' leads out of the archive",
    ),
    "parent folder": ([("../evil/", b"")], "its member '../evil' leads out of the archive"),
    "absolute": ([("/tmp/evil", b"x")], "its member '/tmp/evil' leads out of the archive"),
    "line break": ([("../e\nvil", b"x")], r"its member '../e\nvil' leads out of the archive"),
    "symbolic link": (
        [(special("a/one", tarfile.SYMTYPE, "../evil"), b"")],
        "its member 'a/one' is neither a file nor a folder but of type b'2'",
    ),
    "hard link": (
        [(special("a/one", tarfile.LNKTYPE, "../evil"), b"")],
        "its member 'a/one' is neither a file nor a folder but of type b'1'",
    ),
    "device": (
        [(special("a/readme", tarfile.CHRTYPE), b"")],
        "its member 'a/readme' is neither a file nor a folder but of type b'3'",
    ),
    "pipe": (
        [(special("pipe", tarfile.FIFOTYPE), b"")],
        "its member 'pipe' is neither a file nor a folder but of type b'6'",
    ),
    "sparse": (
        [(special("a/one", tarfile.GNUTYPE_SPARSE), b"")],
        "its member 'a/one' is neither a file nor a folder but of type b'S'",
    ),
    "twice": ([("a/one", b"ONE"), ("a/one", b"ANY")], "its member 'a/one' is there twice"),
    "small": ([("a/one", b"ON")], "its member 'a/one' has 2 bytes instead of 3"),
    "large": ([("a/one", b"ONES")], "its member 'a/one' has 4 bytes instead of 3"),
    "below": ([("a/two", b"")], "its member 'a/two' has 0 bytes instead of 1 to 4"),
    "above": ([("a/two", b"TWOOO")], "its member 'a/two' has 5 bytes instead of 1 to 4"),
    "folder for a file": ([("a/one/", b""), ("a/two", b"TW")], "it has no member 'a/one'"),
    "lacking": (GOOD[:3], "it has no member 'a/two'"),
    "no member": ([], "it has no member 'a/one'"),
}


@both
@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.fault
def test_hostile_archive_is_refused(attack, suffix, folder):
    members, reason = HOSTILE[attack]
    assert_refused(write_tar(folder / f"x.tar{suffix}", members), reason)


@pytest.mark.fault
def test_absolute_name_leaves_its_target_alone(folder, tmp_path):
    target = tmp_path / "evil"
    path = write_tar(folder / "x.tar.gz", [(str(target), b"x"), *GOOD])
    assert_refused(path, f"its member '{target}' leads out of the archive")


# Behind each of these the stream is cut off: had it been read on, that would be the message.
BOMBS = {
    "wanted member": (
        claiming("a/one", 10**12),
        "its member 'a/one' has 1,000,000,000,000 bytes instead of 3",
    ),
    "other member": (
        claiming("big", OTHERS_BYTES + 1),
        "its member 'big' has 1,048,577 bytes instead of 0 to 1,048,576",
    ),
    "pax header": (
        claiming("big", 10**9, tarfile.XHDTYPE),
        "its member 'big' has 1,000,000,000 bytes instead of 0 to 1,048,576",
    ),
    "negative": (
        claiming("big", -512),
        "its member 'big' has -512 bytes instead of 0 to 1,048,576",
    ),
    "two others": (
        (claiming("b", OTHERS_BYTES) + bytes(OTHERS_BYTES) + claiming("c", OTHERS_BYTES)),
        "it unpacks to more than 1,052,679 bytes",
    ),
    "many folders": (
        b"".join(claiming(f"{i}/", 0, tarfile.DIRTYPE) for i in range(2057)),
        "it unpacks to more than 1,052,679 bytes",
    ),
    "behind the end": (
        plain_tar(*GOOD[1:]) + bytes(100_000_000),
        "it unpacks to more than 1,052,679 bytes",
    ),
}


@both
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.fault
def test_bomb_is_stopped_early(bomb, suffix, folder):
    content, reason = BOMBS[bomb]
    path = packed(folder / f"x.tar{suffix}", content + bytes(range(256)) * 800)
    path.write_bytes(path.read_bytes()[:-20])
    tracemalloc.start()
    try:
        assert_refused(path, reason)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_one_member_at_a_time_is_in_memory(folder):
    sizes = {f"{i}": (10**6, 10**6) for i in range(20)}
    path = write_tar(folder / "x.tar.gz", [(name, bytes(10**6)) for name in sizes])
    tracemalloc.start()
    try:
        assert sum(len(content) for _, content in read_members(path, sizes, "toy")) == 20 * 10**6
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


WHOLE = plain_tar(*GOOD[1:])
DAMAGED = {
    "header": (WHOLE[:1024] + b"X" + WHOLE[1025:], "it has a damaged header (bad checksum)"),
    "cut in a header": (WHOLE[:1500], "it ends before its end marker"),
    "cut in a content": (WHOLE[:514], "it ends before its end marker"),
    "cut in the padding": (WHOLE[:600], "it ends before its end marker"),
    "cut before the end marker": (WHOLE[: 3 * 1024], "it ends before its end marker"),
    "empty": (b"", "it ends before its end marker"),
    "no tar": (b"<html>" * 1000, "it has a damaged header (invalid header)"),
}


@both
@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.fault
def test_damaged_tar_is_refused(damage, suffix, folder):
    content, reason = DAMAGED[damage]
    assert_refused(packed(folder / f"x.tar{suffix}", content), reason)


@pytest.mark.fault
def test_wrong_checksum_is_refused_after_the_last_member(folder):
    content = gzip.compress(WHOLE)
    path = folder / "x.tar.gz"
    path.write_bytes(content[:-8] + b"\0\0\0\0" + content[-4:])
    members = read_members(path, SIZES, "toy")
    assert [next(members), next(members)] == [("a/one", b"ONE"), ("a/two", b"TW")]
    with pytest.raises(CapsreproError, match="CRC check failed"):
        next(members)


@both
@pytest.mark.fault
def test_every_flipped_byte_and_every_cut(suffix, folder):
    """Refused; only gzip's header has bytes that nothing depends on, such as its date."""
    path = folder / f"x.tar{suffix}"
    whole = COMPRESS[suffix](WHOLE)
    for position in range(len(whole)):
        path.write_bytes(whole[:position])
        with pytest.raises(CapsreproError):
            read(path)
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        path.write_bytes(flipped)
        try:
            members = read(path)
        except CapsreproError as error:
            assert str(error).endswith("; delete it and run `capsrepro datasets fetch toy`.")
        else:
            assert suffix == ".gz"
            assert position in range(4, 10)
            assert members == {"a/one": b"ONE", "a/two": b"TW"}


@pytest.mark.fault
def test_what_is_no_archive_is_refused(folder):
    path = folder / "x.tar.gz"
    assert_refused(path, "No such file or directory")
    path.write_bytes(WHOLE)
    assert_refused(path, "Not a gzipped file (b'a/')")
    other = folder / "x.tar.xz"
    other.write_bytes(WHOLE)
    assert_refused(other, "Input format not supported by decoder")
    path.unlink()
    path.mkdir()
    assert_refused(path, "Is a directory")
