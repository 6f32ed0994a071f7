"""The file itself: good ones, ones that broke on the way, and ones that mean harm."""

from __future__ import annotations

import gzip
import tarfile
import tracemalloc

import pytest
from bundle_files import (
    ARRAYS,
    DRAWN,
    FGSM,
    HISTORY,
    MANIFEST,
    PLACE,
    RUN,
    TRAIN,
    WEIGHTS,
    assert_refused,
    member,
    pack,
    repack,
    rewrite,
    tar_of,
    unpack,
)

from capsrepro.errors import CapsreproError
from capsrepro.running import bundle_contents, weights
from capsrepro.running.bundle import read_bundle

LIGHT = [MANIFEST, FGSM, DRAWN, TRAIN, HISTORY, ARRAYS]
HEAVY = [MANIFEST, FGSM, DRAWN, TRAIN, WEIGHTS, f"{WEIGHTS}.sha256", HISTORY, ARRAYS]


def test_it_holds_what_a_run_left_and_any_tar_opens_it(evaluated_once, light, heavy):
    assert list(unpack(light)) == LIGHT
    assert list(unpack(heavy)) == HEAVY
    for name, content in unpack(heavy).items():
        folder = "" if name.startswith("checkpoints/") else "results"
        assert content == (evaluated_once.root / folder / name).read_bytes(), name
    with tarfile.open(light) as archive:
        for header in archive:
            assert (header.uid, header.gid, header.uname, header.gname) == (0, 0, "", "")
            assert (header.mtime, header.mode) == (0, 0o644)


def test_it_is_read_as_it_was_written(light, heavy):
    for path, names in ((light, LIGHT), (heavy, HEAVY)):
        bundle = read_bundle(path)
        assert list(bundle.sha256) == names
        assert [(r.run, r.kind) for r in bundle.contents.runs[RUN]] == [
            (RUN, "train"),
            (RUN, "fgsm"),
            (RUN, "reconstruct"),
        ]
        assert list(bundle.contents.datasets) == [MANIFEST]
    assert bundle_contents.WEIGHTS == weights.NAME


# What happens to a file on its way.


@pytest.mark.fault
def test_every_flipped_byte(light):
    """Some bits of gzip say nothing: flags and time in its header, padding of blocks to bytes."""
    good, content = read_bundle(light), light.read_bytes()
    unnoticed = 0
    positions = [
        *range(64),
        *range(64, len(content) - 16, 41),
        *range(len(content) - 16, len(content)),
    ]
    for position in positions:
        broken = bytearray(content)
        broken[position] ^= 1
        light.write_bytes(broken)
        try:
            assert read_bundle(light) == good
            unnoticed += 1
        except CapsreproError as error:
            assert str(error).startswith(f"cannot import {light}: ")
    assert unnoticed < 12


@pytest.mark.fault
def test_every_flipped_byte_behind_a_right_checksum(light):
    """As of a bundle that someone unpacked, edited and packed again."""
    content = gzip.decompress(light.read_bytes())
    behind_manifest = content.index(TRAIN.rpartition("/")[0].encode())
    for position in range(behind_manifest, len(content), 61):
        broken = bytearray(content)
        broken[position] ^= 1
        light.write_bytes(gzip.compress(broken, 1))
        assert_refused(light)


@pytest.mark.fault
def test_every_cut(light):
    content = light.read_bytes()
    for length in [*range(32), *range(32, len(content), 101), len(content) - 1]:
        light.write_bytes(content[:length])
        assert_refused(light)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "it ends before its end marker"),
        (b"<!DOCTYPE html>", "Not a gzipped file"),
        (gzip.compress(b"not a tar" * 200), "damaged header"),
        (gzip.compress(bytes(1024)), "no record"),
    ],
    ids=["missing", "empty", "page", "no-tar", "no-members"],
)
@pytest.mark.fault
def test_what_is_no_bundle(tmp_path, content, words):
    path = tmp_path / "x.tar.gz"
    if content is not None:
        path.write_bytes(content)
    assert_refused(path, words)


# Archives that mean harm.

STRANGE = "is nothing that a bundle holds"
NOT_PLAIN = "is not a plain file as `capsrepro export` writes it"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (member("../evil.json"), STRANGE),
        (member(f"runs/../../{RUN}/train.json"), STRANGE),
        (member(f"runs/../{RUN.partition('/')[2]}/train.json"), STRANGE),
        (member("/etc/passwd"), STRANGE),
        (member("runs/..//seed-0/train.json"), STRANGE),
        (member("datasets/.hidden.json"), STRANGE),
        (member(f"{PLACE}/evil.py"), STRANGE),
        (member(f"{PLACE}/train.json\n"), STRANGE),
        (member(f"checkpoints/{RUN}/step-100.pt"), STRANGE),
        (member(PLACE, type=tarfile.DIRTYPE), STRANGE),
        (member(f"{PLACE}/a.json", type=tarfile.DIRTYPE), NOT_PLAIN),
        (member(f"{PLACE}/a.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"), NOT_PLAIN),
        (member(f"{PLACE}/a.json", type=tarfile.LNKTYPE, linkname=TRAIN), NOT_PLAIN),
        (member(f"{PLACE}/a.json", type=tarfile.CHRTYPE), NOT_PLAIN),
        (member(f"{PLACE}/a.json", type=tarfile.FIFOTYPE), NOT_PLAIN),
        (member(f"{PLACE}/a.json", type=tarfile.XHDTYPE), NOT_PLAIN),
        (member(f"{PLACE}/a.json", uid=1000), NOT_PLAIN),
        (member(f"{PLACE}/a.json", mode=0o4755), NOT_PLAIN),
        (member(f"{PLACE}/a.json", mtime=1), NOT_PLAIN),
    ],
)
@pytest.mark.fault
def test_members_of_another_kind(light, bad, words):
    good = [member(name, content) for name, content in unpack(light).items()]
    for members in ([bad, *good], [*good[:2], bad, *good[2:]], [*good, bad]):
        assert_refused(pack(light, members), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: [*m[:3], m[2], *m[3:]], "is there twice, or not in its place"),
        (lambda m: [*m, m[-1]], "is there twice, or not in its place"),
        (lambda m: [m[1], m[0], *m[2:]], "is there twice, or not in its place"),
        (lambda m: [*m[:3], m[4], m[3], m[5]], "without the train record"),
        (lambda m: [*m, member(f"{PLACE}/z.npz", b"x")], "none of its records speaks of"),
        (lambda m: m[1:], "without the manifest of its data"),
        (lambda m: [*m[:1], *m[4:]], "no record"),
        (lambda m: [*m[:3], *m[4:]], "without the train record"),
        (lambda m: [*m[:4], *m[5:]], "history.jsonl is missing"),
        (lambda m: m[:5], "reconstruct.npz is missing"),
        (lambda m: m[:4], "is missing"),
        (
            lambda m: [*m[:4], member(HISTORY, m[4][1] + b"\n"), m[5]],
            "not the file that its record",
        ),
        (lambda m: [*m[:5], member(ARRAYS, m[5][1][:-1])], "not the file that its record"),
    ],
)
@pytest.mark.fault
def test_members_missing_too_many_and_changed(light, change, words):
    good = [member(name, content) for name, content in unpack(light).items()]
    assert_refused(pack(light, change(good)), words)


@pytest.mark.parametrize("name", [WEIGHTS, f"{WEIGHTS}.sha256"])
@pytest.mark.fault
def test_weights_missing_or_changed(heavy, name):
    content = heavy.read_bytes()
    assert_refused(repack(heavy, lambda m: m.pop(name)), f"{name} is missing")
    heavy.write_bytes(content)
    changed = repack(heavy, lambda m: m.update({name: m[name][:-2] + b"x\n"}))
    assert_refused(changed, f"{name} is not the file")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (bytes(512), "it ends before its end marker"),
        (b"", "it ends before its end marker"),
        (bytes(1024) + b"x", "behind its end marker"),
        (bytes(512) + b"x" * 512, "behind its end marker"),
        (bytes(1 << 20), "behind its end marker"),
    ],
)
@pytest.mark.fault
def test_what_stands_behind_the_members(light, end, words):
    good = [member(name, content) for name, content in unpack(light).items()]
    light.write_bytes(gzip.compress(tar_of(good, end)))
    assert_refused(light, words)


@pytest.mark.fault
def test_padding_that_is_used(light):
    header, content = member(MANIFEST, unpack(light)[MANIFEST])
    tar = bytearray(tar_of([(header, content)]))
    tar[512 + len(content)] = 1
    light.write_bytes(gzip.compress(tar))
    assert_refused(light, f"behind {MANIFEST} stands what does not belong to it")


@pytest.mark.parametrize(
    ("name", "claimed", "words"),
    [
        (TRAIN, 1 << 30, "1,073,741,824 bytes, more than 4,194,304"),
        (MANIFEST, (1 << 20) + 1, "1,048,577 bytes, more than 1,048,576"),
        (HISTORY, 1 << 32, "more than"),
        (WEIGHTS, (1 << 30) + 1, "more than"),
        (TRAIN, 8**12, "more than"),  # beyond octal digits: GNU's own way of writing numbers
        (TRAIN, -1, "more than"),
    ],
)
@pytest.mark.fault
def test_a_bomb_is_not_unpacked(light, name, claimed, words):
    header = tarfile.TarInfo(name)
    header.size = claimed
    block = header.tobuf(tarfile.GNU_FORMAT)
    light.write_bytes(gzip.compress(block + bytes(1 << 26), 1))
    peak_bytes = refused_in(light, words)
    assert peak_bytes < 1 << 20


@pytest.mark.fault
def test_a_bomb_of_files_is_not_unpacked(light):
    """The records say what there may be before any of it is read."""
    good = [member(name, content) for name, content in unpack(light).items()]
    bomb = member(f"{PLACE}/z.npz", bytes(1 << 26))
    assert refused_in(pack(light, [*good, bomb]), "none of its records speaks of") < 5 << 20
    bomb = member(ARRAYS, bytes(1 << 26))
    assert refused_in(pack(light, [*good[:-1], bomb]), "not the file that its record") < 5 << 20


@pytest.mark.fault
def test_a_bomb_of_documents_is_not_unpacked(light):
    bombs = [member(f"runs/a/b/seed-{i}/train.json", bytes(1 << 22)) for i in range(40)]
    bombs.sort(key=lambda bomb: bomb[0].name)
    peak_bytes = refused_in(pack(light, bombs), "take more than 67,108,864 bytes")
    assert peak_bytes < 80 << 20


def refused_in(path, words) -> int:
    """Most bytes held while it was refused."""
    tracemalloc.start()
    try:
        assert_refused(path, words)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_repacking_by_hand_does_no_harm(light):
    """So that every refusal above is for what was changed."""
    good = read_bundle(light)
    assert read_bundle(repack(light, lambda m: None)) == good
    repack(light, lambda m: rewrite(m, TRAIN, created_at="2001-01-01"))
    (train, *_) = read_bundle(light).contents.runs[RUN]
    assert train.created_at == "2001-01-01"
