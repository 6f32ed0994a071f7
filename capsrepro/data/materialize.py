"""A fixed, hashed evaluation subset of MultiMNIST, for programs other than this one.

Ours draws composites when it needs them; what is written here are the same bytes that its own
evaluation sees, in the same order.

    prepared/<name>/composites/test-<count>.npz    `images`, `labels`, `targets`, uint8
    prepared/<name>/composites/test-<count>.json   what the file must be; written last
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from capsrepro.data.examples import Drawn, Examples
from capsrepro.data.fetch import locked
from capsrepro.data.loading import load_examples
from capsrepro.data.npz import write_array
from capsrepro.data.preparation import find_dataset
from capsrepro.data.prepared import manifest_path, read_manifest
from capsrepro.data.progress import show_progress
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import sha256_of_file, sweep, write_atomically, write_json

_BATCH = 10_000


class SubsetFacts(TypedDict):
    """What a written subset must be."""

    dataset: str
    dataset_digest: str
    count: int
    sha256: str


def materialize(name: str, count: int, data_root: Path, *, progress: bool = False) -> Path:
    """Write the first `count` test composites, unless they are there already.

    Args:
        name: A prepared data set whose images are pairs.
        count: How many, 1 to all of them; 10,000 take 40 MB.
        data_root: Root of the data folders.
        progress: Whether to show on standard error how far it is.

    Returns:
        The `.npz`; its SHA-256 stands in the `.json` beside it.

    Raises:
        UsageError: The data set has no composites, or not so many.
        CapsreproError: It is not prepared, or the disk is full or not writable.
    """
    dataset = find_dataset(name)
    if dataset.labels_per_image == 1:
        raise UsageError(f"data set {name} has no composites; leave --materialize out.")
    if not 1 <= count <= dataset.counts["test"]:
        raise UsageError(
            f"cannot write {count} composites of {name}; "
            f"choose between 1 and {dataset.counts['test']}."
        )
    digest = read_manifest(name, data_root)["digest"]
    folder = _folder(name, data_root)
    path = folder / f"test-{count}.npz"
    with locked(folder) as alone:
        if alone:
            sweep(folder)
        if _is_whole(path, name, digest, count):
            return path
        examples = load_examples(name, "test", data_root, torch.device("cpu"))
        with show_progress(path.name, 3 * count, "composite", wanted=progress) as done:
            write_atomically(path, partial(_write, examples, count, done))
        write_json(path.with_suffix(".json"), _facts(path, name, digest, count))
    return path


def verify_subsets(name: str, data_root: Path) -> int:
    """Check every written subset of a data set.

    Returns:
        How many there are.

    Raises:
        CapsreproError: One is damaged, or was made from data that have changed since.
    """
    facts_files = sorted(_folder(name, data_root).glob("test-[0-9]*.json"))
    digest = read_manifest(name, data_root)["digest"]
    for file in facts_files:
        path = file.with_suffix(".npz")
        count = int(file.stem.removeprefix("test-"))
        if not _is_whole(path, name, digest, count):
            raise CapsreproError(
                f"{path} is not what {file.name} beside it says, or was made from other data; "
                f"run `capsrepro datasets prepare {name} --materialize {count}` to make it again."
            )
    return len(facts_files)


def _folder(name: str, data_root: Path) -> Path:
    return manifest_path(name, data_root).parent / "composites"


def _facts(path: Path, name: str, digest: str, count: int) -> SubsetFacts:
    """What stands beside a subset, whatever its bytes are."""
    sha256 = sha256_of_file(path)
    return {"dataset": name, "dataset_digest": digest, "count": count, "sha256": sha256}


def _is_whole(path: Path, name: str, digest: str, count: int) -> bool:
    try:
        told = json.loads(path.with_suffix(".json").read_text())
        return bool(told == _facts(path, name, digest, count))
    except (OSError, ValueError):
        return False


def _write(examples: Examples, count: int, done: Callable[[int], object], file: BinaryIO) -> None:
    """Array after array, batch after batch: ten million composites do not fit into memory."""
    with zipfile.ZipFile(file, "w") as archive:
        for key in Drawn._fields:
            shape = (count, *_drawn(examples, key, 0, 1).shape[1:])
            write_array(
                archive, key, shape, np.dtype(np.uint8), _blocks(examples, key, count, done)
            )


def _blocks(
    examples: Examples, key: str, count: int, done: Callable[[int], object]
) -> Iterator[NDArray[np.uint8]]:
    for first in range(0, count, _BATCH):
        block = _drawn(examples, key, first, min(first + _BATCH, count))
        yield block
        done(len(block))


def _drawn(examples: Examples, key: str, first: int, end: int) -> NDArray[np.uint8]:
    """One field of the composites that an evaluation takes at these places."""
    places = torch.arange(first, end)
    drawn = examples.draw(places % examples.items, places // examples.items)
    return np.ascontiguousarray(getattr(drawn, key).numpy().astype(np.uint8))
