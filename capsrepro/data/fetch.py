"""Getting a file from the first mirror that has it, whole, or saying in one sentence why not.

pooch transports and checks the hash; around it are the loop over mirrors, a few retries, a limit
on the bytes taken, and the cleaning up after a killed download. A file stands at its final name
only when its hash is right.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit

from capsrepro.data.progress import show_progress
from capsrepro.data.sources import Source
from capsrepro.errors import CapsreproError
from capsrepro.files import sha256_of_file

TIMEOUT_S = 30.0
RETRY_PAUSES_S = (0.25, 1.0)
CHUNK_BYTES = 1 << 16
PARTIAL_SUFFIX = ".partial"


class _RefusedError(Exception):
    """A mirror has not given the file; the message is its reason, a few words.

    `again` is True when the same request may well succeed a moment later.
    """

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


def fetch(
    source: Source,
    raw_root: Path,
    *,
    mirror: str | None = None,
    timeout_s: float = TIMEOUT_S,
    progress: bool = False,
) -> Path:
    """Have a file at `raw_root/<dataset>/<name>`, downloading it unless it is there already.

    Args:
        source: The file.
        raw_root: Folder of all downloads.
        mirror: Folder or URL that is asked first, laid out `<mirror>/<dataset>/<name>`.
        timeout_s: Seconds to wait for an answer, and then for each next byte.
        progress: Whether to show the progress on standard error.

    Returns:
        Its path; its SHA-256 is right.

    Raises:
        CapsreproError: No mirror has given it, or the disk is full or not writable.
    """
    path = raw_root / source.dataset / source.name
    if _sha256_if_present(path) == source.sha256:
        return path
    with locked(path.parent) as alone:
        # Another process may have brought it while this one waited for the lock.
        present = _sha256_if_present(path)
        if present == source.sha256:
            return path
        if alone:
            for left in path.parent.glob(f".*{PARTIAL_SUFFIX}"):
                shutil.rmtree(left, ignore_errors=True)
        failures = [] if present is None else [f"the file there now has SHA-256 {present}"]
        for address in _addresses(source, mirror):
            try:
                _retry(partial(_download, source, path, timeout_s, progress, address))
            except _RefusedError as refusal:
                failures.append(f"{address}: {refusal}")
            else:
                return path
    raise _unobtainable(source, path, failures)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Make the folder if missing, and keep other processes out of it until the block ends.

    Yields:
        Whether nobody else can be in the folder; False on a file system without locks.

    Raises:
        CapsreproError: The folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the folder, not in it: DVC keeps the folder's content.
        file = (folder.parent / f".{folder.name}.lock").open("ab")
    except OSError as error:
        raise _unwritable(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone


def _addresses(source: Source, mirror: str | None) -> list[str]:
    if not mirror:
        return list(source.mirrors)
    if _is_url(mirror):
        return [f"{mirror.rstrip('/')}/{quote(source.key)}", *source.mirrors]
    folder = Path(
        unquote(mirror.removeprefix("file://")) if mirror.startswith("file://") else mirror
    )
    return [str(folder.expanduser() / source.key), *source.mirrors]


def _is_url(address: str) -> bool:
    return urlsplit(address).scheme in ("http", "https")


def _retry(attempt: Callable[[], None]) -> None:
    for pause_s in RETRY_PAUSES_S:
        try:
            return attempt()
        except _RefusedError as refusal:
            if not refusal.again:
                raise
        time.sleep(pause_s)
    return attempt()


def _download(source: Source, path: Path, timeout_s: float, shown: bool, address: str) -> None:
    """Try one address once; pooch works in a folder of its own beside the final name."""
    pooch = _import_pooch()
    receive = partial(_receive_http, timeout_s) if _is_url(address) else _receive_copy

    def downloader(url: str, temporary: str, _: object) -> None:
        line = f"{source.key}: {source.size_bytes:,} bytes from {url}"
        bar = show_progress(source.key, source.size_bytes, "B", line=line, wanted=shown)
        with Path(temporary).open("wb") as file, bar as show:
            receive(url, _LimitedFile(file, source.size_bytes, show))
        if fault := _fault(Path(temporary), source):
            raise _RefusedError(fault)

    try:
        with TemporaryDirectory(PARTIAL_SUFFIX, f".{source.name}.", path.parent) as folder:
            whole = Path(folder) / source.name
            pooch.retrieve(address, f"sha256:{source.sha256}", whole.name, folder, None, downloader)
            # pooch makes the file for its owner alone, but a data root may be shared.
            whole.chmod(0o644)
            whole.replace(path)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _import_pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise CapsreproError(
            "fetching needs pooch, which is not installed; run `uv sync --extra train`."
        ) from error
    pooch.get_logger().setLevel("WARNING")  # it announces every download on standard error
    return pooch


@dataclass
class _LimitedFile:
    """What pooch writes to: takes no more bytes than its source has, so that no disk is filled."""

    file: BinaryIO
    limit: int
    show: Callable[[int], object]
    size: int = 0

    def write(self, chunk: bytes) -> None:
        if self.size == 0 and _is_html(chunk):
            raise _RefusedError("sent an HTML page in place of the file")
        self.size += len(chunk)
        if self.size > self.limit:
            raise _RefusedError(f"sends more than {self.limit:,} bytes")
        self.file.write(chunk)
        self.show(len(chunk))

    def flush(self) -> None:
        self.file.flush()


def _receive_http(timeout_s: float, url: str, file: _LimitedFile) -> None:
    """Let pooch download, and turn its many ways of failing into a few words."""
    import requests
    from urllib3.exceptions import MaxRetryError, ReadTimeoutError

    responses: list[requests.Response] = []

    def on_answer(response: requests.Response, **_: object) -> None:
        responses.append(response)
        # Some servers label a .gz file as an encoding of its content: requests would unpack it.
        response.raw.headers.pop("Content-Encoding", None)

    settings = {"timeout": timeout_s, "headers": {"Accept-Encoding": "identity"}}
    download = _import_pooch().HTTPDownloader(
        chunk_size=CHUNK_BYTES, hooks={"response": on_answer}, **settings
    )
    try:
        download(url, file, None)
    except requests.HTTPError as error:
        status = responses[-1].status_code
        again = status >= 500 or status == 429
        raise _RefusedError(f"HTTP {status} {responses[-1].reason}", again) from error
    except requests.RequestException as error:
        cause = error.args[0] if error.args else None
        if isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError):
            raise _RefusedError(f"nothing came within {timeout_s:g} s") from error
        if isinstance(error, requests.exceptions.SSLError):
            raise _RefusedError("its TLS certificate is not accepted") from error
        if isinstance(cause, MaxRetryError):
            raise _RefusedError("no connection") from error
        broken = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
        if isinstance(error, broken):
            raise _RefusedError("the connection broke", again=True) from error
        raise _RefusedError(f"not a usable address ({type(error).__name__})") from error
    finally:
        for response in responses:
            response.close()


def _receive_copy(name: str, file: _LimitedFile) -> None:
    # Asked beforehand, so that an OSError below can only be our own disk's.
    if not Path(name).is_file():
        raise _RefusedError("no such file")
    if not os.access(name, os.R_OK):
        raise _RefusedError("not readable")
    with Path(name).open("rb") as original:
        while chunk := original.read(CHUNK_BYTES):
            file.write(chunk)


def _fault(path: Path, source: Source) -> str | None:
    """What is wrong with a whole answer, or None."""
    found = sha256_of_file(path)
    if found == source.sha256:
        return None
    size = path.stat().st_size
    expected = "" if size == source.size_bytes else f" instead of {source.size_bytes:,}"
    return f"sent {size:,} bytes{expected} with SHA-256 {found}"


def _is_html(chunk: bytes) -> bool:
    start = chunk[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml"))


def _sha256_if_present(path: Path) -> str | None:
    try:
        return sha256_of_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CapsreproError(
            f"cannot read {path}: {error.strerror}; move it away or make it readable, "
            "then run the same command again."
        ) from error


def _unobtainable(source: Source, path: Path, failures: list[str]) -> CapsreproError:
    tried = "; ".join(failures) or "no public server has it"
    return CapsreproError(
        f"cannot get {source.key} with SHA-256 {source.sha256} ({tried}): "
        f"put the file by hand at {path}, or set CAPSREPRO_MIRROR to a folder or URL that has "
        f"{source.key}, then run the same command again."
    )


def _unwritable(folder: Path, error: OSError) -> CapsreproError:
    return CapsreproError(
        f"cannot write to {folder}: {error.strerror or error}; free space or make it writable, "
        "then run the same command again."
    )
