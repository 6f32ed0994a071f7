"""Reading the wanted members of a tar archive in memory, believing nothing that it claims.

Nothing is ever extracted. `tarfile` with filter="data" guards the disk while it writes; where
nothing is written there is nothing to guard, and 60,000 small files need no room. `tarfile` parses
every header; the way from one header to the next is ours, because `tarfile.open` takes a damaged
header for the end of the archive, unpacks whatever size a header claims, and checks no CRC of gzip
in stream mode.
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from capsrepro.errors import CapsreproError

BLOCK_BYTES = 512  # tar's unit: a header is one block, and content is padded to whole blocks
CHUNK_BYTES = 1 << 16
OTHERS_BYTES = 1 << 20  # for members that nobody asked for, and for the zeros at the end

_OPENERS: dict[str, Callable[[Path], io.BufferedIOBase]] = {".gz": gzip.open, ".xz": lzma.open}
# Pax headers (the last two) hold what a file system would want to know, and are skipped.
_TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE)


class _RefusedError(Exception):
    """What is wrong with an archive, in a few words."""


def read_members(
    path: Path, sizes: Mapping[str, tuple[int, int]], dataset: str
) -> Iterator[tuple[str, bytes]]:
    """Read the wanted members, in the order in which they stand in the archive.

    That the archive is cut short, or its checksum wrong, shows only after the last member: what
    is made of the members counts once the iterator has come to its end.

    Args:
        path: The `.tar.gz` or `.tar.xz` file.
        sizes: Fewest and most bytes of every wanted member, by its name. Others are skipped.
        dataset: What to fetch again when the archive is no good.

    Yields:
        Name and content; only this one member is in memory.

    Raises:
        CapsreproError: The archive is missing, damaged or cut short; lacks a wanted member; has a
            member twice, of another size, of a kind other than file or folder, or with a name
            that leads out of the archive; or unpacks to more than `sizes` allow, which is noticed
            before it is unpacked.
    """
    most_bytes = OTHERS_BYTES + sum(most + 4 * BLOCK_BYTES for _, most in sizes.values())
    try:
        with _OPENERS[path.suffix](path) as file:
            yield from _members(_Unpacked(file, most_bytes), sizes)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, _RefusedError) as error:
        raise unreadable(path, getattr(error, "strerror", None) or str(error), dataset) from error


def unreadable(path: Path, reason: str, dataset: str) -> CapsreproError:
    """What to raise for a fetched file that is not what it should be."""
    return CapsreproError(
        f"cannot read {path}: {reason}; delete it and run `capsrepro datasets fetch {dataset}`."
    )


@dataclass
class _Unpacked:
    """The unpacked archive, of which no more than `most_bytes` are ever unpacked."""

    file: io.BufferedIOBase
    most_bytes: int
    taken_bytes: int = 0

    def take(self, size: int) -> bytes:
        """The next bytes, exactly so many."""
        self._count(size)
        content = self.file.read(size)
        if len(content) < size:
            raise _RefusedError("it ends before its end marker")
        return content

    def finish(self) -> None:
        """Unpack the rest: the checksum of the whole stands behind it."""
        while chunk := self.file.read(CHUNK_BYTES):
            self._count(len(chunk))

    def _count(self, size: int) -> None:
        self.taken_bytes += size
        if self.taken_bytes > self.most_bytes:
            raise _RefusedError(f"it unpacks to more than {self.most_bytes:,} bytes")


def _members(
    unpacked: _Unpacked, sizes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    while any(header := unpacked.take(BLOCK_BYTES)):  # a block of zeros is the end marker
        member = _parse(header)
        if fault := _fault(member, sizes, seen):
            raise _RefusedError(f"its member {member.name!r} {fault}")
        if member.isdir():
            continue
        content = unpacked.take(member.size)
        unpacked.take(-member.size % BLOCK_BYTES)
        if member.isreg():
            seen.add(member.name)
            if member.name in sizes:
                yield member.name, content
    unpacked.finish()
    if missing := [name for name in sizes if name not in seen]:
        raise _RefusedError(f"it has no member {missing[0]!r}")


def _parse(header: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _RefusedError(f"it has a damaged header ({error})") from error


def _fault(
    member: tarfile.TarInfo, sizes: Mapping[str, tuple[int, int]], seen: Collection[str]
) -> str | None:
    """Why not even to look into a member, or None."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        return "leads out of the archive"
    if member.type not in _TYPES:
        return f"is neither a file nor a folder but of type {member.type!r}"
    if member.name in seen:
        return "is there twice"
    wanted = sizes.get(member.name) if member.isreg() else None
    least, most = wanted or (0, OTHERS_BYTES)
    if not least <= member.size <= most:
        bounds = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        return f"has {member.size:,} bytes instead of {bounds}"
    return None
