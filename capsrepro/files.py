"""Writing and hashing files so that a crash or a full disk never leaves a half-written one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from capsrepro.errors import CapsreproError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Args:
        path: Final name; its folder is made when missing.
        write: Receives the open binary file.

    Raises:
        CapsreproError: The folder cannot be written to or the disk is full; whatever stood at
            `path` before still stands there, whole.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CapsreproError(
            f"cannot write {path}: {reason}; free space or make {path.parent} writable, "
            "then run the same command again."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Fail now rather than after hours of work.

    Raises:
        CapsreproError: Nothing can be written into the folder.
    """
    probe = folder / ".probe"
    write_text(probe, "")
    probe.unlink()


def sweep(folder: Path) -> None:
    """Remove what a killed `write_atomically` left; the caller keeps other writers out."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename durable: without this a power cut can undo it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see `write_atomically` for what it raises."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, document: object) -> None:
    """Write a JSON document atomically, keys in the order given, one trailing newline."""
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_sha256(path: Path, sha256: str | None) -> bool:
    """Whether the file is there and its bytes have this SHA-256."""
    return path.is_file() and sha256_of_file(path) == sha256


def digest(document: Any) -> str:
    """SHA-256 of a document's canonical JSON: the same for every key order and Python version."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
