"""Bundles: the `.tar.gz` in which records and histories travel from machine to machine.

    datasets/<name>.json                            manifest of the data behind the records
    runs/<run>/<kind>.json                          records
    checkpoints/<run>/weights.safetensors           and .sha256 beside it, only when asked for
    runs/<run>/history.jsonl, runs/<run>/<kind>.npz what the records left beside themselves

Documents come first, then files, each sorted by name: what a file must be is known before it is
unpacked. Owners, times and modes are fixed, so the same results give the same bytes. Every tar
opens a bundle, but a bundle is not any tar: a header other than the one that `write_bundle` would
write for this name and size is refused, be it a link, a device or a second owner. `tarfile` parses
the headers; the way between them is ours, because `tarfile.open` takes a damaged header for the end
of the archive and unpacks whatever size a header claims.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from capsrepro.errors import CapsreproError
from capsrepro.files import write_atomically
from capsrepro.running.bundle_contents import (
    Contents,
    RefusedError,
    is_document,
    most_bytes,
    understand,
)

_BLOCK_BYTES = 512  # tar's unit: a header is one block, and content is padded to whole blocks
_CHUNK_BYTES = 1 << 20
_DOCUMENTS_BYTES = 64 << 20  # all documents together: they are held in memory


@dataclass(frozen=True)
class Bundle:
    """A bundle in which everything was found to be as it should.

    Attributes:
        path: The file.
        contents: What its documents say.
        sha256: Of every member, by name.
    """

    path: Path
    contents: Contents
    sha256: Mapping[str, str]


def member_order(name: str) -> tuple[bool, str]:
    """Sorting key of the members."""
    return not is_document(name), name


def write_bundle(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a bundle atomically.

    Args:
        path: The file; one that is there is replaced.
        members: Name and content, in the order of `member_order`; only one is in memory at once.

    Raises:
        CapsreproError: The folder cannot be written to or the disk is full.
    """

    def pack(file: BinaryIO) -> None:
        # Without a name and a time the same content gives the same bytes.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as tar:
            for name, content in members:
                tar.write(_header(name, len(content)))
                tar.write(content)
                tar.write(bytes(-len(content) % _BLOCK_BYTES))
            tar.write(bytes(2 * _BLOCK_BYTES))

    write_atomically(path, pack)


def read_bundle(path: Path) -> Bundle:
    """Read a bundle from end to end and check all of it; writes nothing.

    Raises:
        CapsreproError: It is missing, damaged or cut short, holds anything else than what
            `write_bundle` writes, or its records do not say what its files are.
    """
    documents: dict[str, bytes] = {}
    sha256: dict[str, str] = {}
    contents: Contents | None = None
    held_bytes = 0
    with explained(path):
        for name, chunks in members_of(path):
            if is_document(name):
                documents[name] = b"".join(chunks)
                sha256[name] = hashlib.sha256(documents[name]).hexdigest()
                held_bytes += _BLOCK_BYTES + len(documents[name])
                if held_bytes > _DOCUMENTS_BYTES:
                    raise RefusedError(f"its documents take more than {_DOCUMENTS_BYTES:,} bytes")
                continue
            contents = contents or understand(documents)
            if name not in contents.files:
                raise RefusedError(f"none of its records speaks of {name}")
            sha256[name] = _sha256(chunks)
            if sha256[name] != contents.files[name]:
                raise RefusedError(f"{name} is not the file that its record speaks of")
        contents = contents or understand(documents)
        if missing := _missing(contents, sha256):
            raise RefusedError(f"{missing} is missing")
    return Bundle(path, contents, sha256)


def members_of(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and content, in chunks, of every member; what is not consumed is skipped.

    That the file is cut short, or its checksum wrong, shows only at the end: what is made of the
    members counts once the iterator has come to its end. `explained` words what it raises.
    """
    last = (False, "")
    with gzip.open(path) as file:
        while any(header := _take(file, _BLOCK_BYTES)):  # a block of zeros is the end marker
            name, size = _parse(header)
            if member_order(name) <= last:
                raise RefusedError(f"{name} is there twice, or not in its place")
            last = member_order(name)
            chunks = _chunks(file, size)
            yield name, chunks
            for _ in chunks:
                pass
            if any(_take(file, -size % _BLOCK_BYTES)):
                raise RefusedError(f"behind {name} stands what does not belong to it")
        if any(_take(file, _BLOCK_BYTES)) or file.read(1):
            raise RefusedError("something stands behind its end marker")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what reading a bundle may raise into one sentence.

    Raises:
        CapsreproError: Whatever it was.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, RefusedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CapsreproError(
            f"cannot import {path}: {reason}; nothing was imported, copy the bundle again or "
            "`capsrepro export` it anew."
        ) from error


def _missing(contents: Contents, present: Mapping[str, str]) -> str | None:
    """A file that should be there; of weights, the one without the other."""
    for name in contents.files:
        weights = name.removesuffix(".sha256")
        optional = name.startswith("checkpoints/")
        if optional and weights not in present and f"{weights}.sha256" not in present:
            continue
        if name not in present:
            return name
    return None


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


def _parse(header: bytes) -> tuple[str, int]:
    """Name and size of a member, when a bundle may hold it."""
    try:
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        most = most_bytes(member.name)
        if most is None:
            raise RefusedError(f"{member.name!r} is nothing that a bundle holds")
        if not 0 <= member.size <= most:
            raise RefusedError(f"{member.name} has {member.size:,} bytes, more than {most:,}")
        expected = _header(member.name, member.size)
    except (tarfile.HeaderError, ValueError) as error:
        raise RefusedError(f"it has a damaged header ({error})") from error
    if header != expected:
        raise RefusedError(f"{member.name} is not a plain file as `capsrepro export` writes it")
    return member.name, member.size


def _chunks(file: BinaryIO | gzip.GzipFile, size: int) -> Iterator[bytes]:
    for done in range(0, size, _CHUNK_BYTES):
        yield _take(file, min(_CHUNK_BYTES, size - done))


def _take(file: BinaryIO | gzip.GzipFile, size: int) -> bytes:
    """The next bytes, exactly so many."""
    content = file.read(size)
    if len(content) < size:
        raise RefusedError("it ends before its end marker")
    return content


def _sha256(chunks: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()
