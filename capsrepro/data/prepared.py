"""Prepared data sets: one `.npz` of bytes per split, and a manifest that says what they must be.

Folder layout, below the data root:

    raw/<dataset>/<file>             as downloaded, see `fetch`
    prepared/<name>/<split>.npz      `images`, `labels` and, where there are any, `factors`: uint8
    prepared/<name>/manifest.json    written last: what it does not name is not there
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from capsrepro.data.dataset import Note, Parameter, Split, Splits
from capsrepro.data.npz import write_npz
from capsrepro.data.progress import show_progress
from capsrepro.data.sources import Source
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import digest, sha256_of_file, sweep, write_atomically, write_json


class ArrayFacts(TypedDict):
    """What one `.npz` must be; shapes are those of one item."""

    count: int
    image_shape: list[int]
    label_shape: list[int]
    sha256: str
    images_sha256: str
    labels_sha256: str


class SplitFacts(ArrayFacts, total=False):
    """The same, and what only some data sets have."""

    factors_sha256: str
    notes: dict[str, Note]


class Manifest(TypedDict):
    """What a prepared data set is; the same on every machine.

    `digest` stands for the arrays and the parameters alone, and is what records keep.
    """

    name: str
    version: int
    digest: str
    parameters: dict[str, Parameter]
    classes: list[str]
    sources: dict[str, str]
    splits: dict[str, SplitFacts]


def write_prepared(
    name: str,
    splits: Splits,
    classes: Sequence[str],
    parameters: Mapping[str, Parameter],
    sources: Sequence[Source],
    data_root: Path,
    manifest_copy: Path | None,
    version: int = 1,
) -> Manifest:
    """Write the arrays of every split, then the manifest that makes them count.

    The caller holds the folder's lock (`fetch.locked`).

    Args:
        name: Data set.
        splits: The arrays, split by split.
        classes: Names, in the order of the label values.
        parameters: All that the preparation was told.
        sources: Files that it was made from.
        data_root: Root of the data folders.
        manifest_copy: Second place for the manifest, kept in git; none when None.
        version: Of the preparation's code.

    Returns:
        The manifest.

    Raises:
        CapsreproError: The disk is full or not writable.
        ValueError: The arrays are not of the shapes and types above.
    """
    folder = _folder(name, data_root)
    sweep(folder)
    facts = {split: _write_split(folder / f"{split}.npz", arrays) for split, arrays in splits}
    _remove_others(folder, keep=facts.keys())
    manifest: Manifest = {
        "name": name,
        "version": version,
        "digest": content_digest(facts, parameters),
        "parameters": dict(parameters),
        "classes": list(classes),
        "sources": {source.key: source.sha256 for source in sources},
        "splits": facts,
    }
    write_json(manifest_path(name, data_root), manifest)
    copy_manifest(manifest, manifest_copy)
    return manifest


def _write_split(path: Path, split: Split) -> SplitFacts:
    arrays: dict[str, Any] = {"images": split.images, "labels": split.labels}
    if split.factors is not None:
        arrays["factors"] = split.factors
    ranks = [array.ndim for array in arrays.values()]
    if (
        any(array.dtype != np.uint8 for array in arrays.values())
        or ranks != [4, 2, 2][: len(ranks)]
    ):
        raise ValueError(
            f"{path} must get uint8 images (N, C, H, W), labels (N, L) and factors (N, F)"
        )
    counts = {key: len(array) for key, array in arrays.items()}
    if len(set(counts.values())) != 1 or not counts["images"]:
        raise ValueError(f"{path} must get as many of each and at least one, not {counts}")
    write_atomically(path, partial(write_npz, **arrays))
    facts: SplitFacts = {
        "count": len(split.images),
        "image_shape": list(split.images.shape[1:]),
        "label_shape": list(split.labels.shape[1:]),
        "sha256": sha256_of_file(path),
        "images_sha256": _sha256_of_array(split.images),
        "labels_sha256": _sha256_of_array(split.labels),
    }
    if split.factors is not None:
        facts["factors_sha256"] = _sha256_of_array(split.factors)
    if split.notes:
        facts["notes"] = dict(split.notes)
    return facts


def content_digest(splits: Mapping[str, SplitFacts], parameters: Mapping[str, Parameter]) -> str:
    """SHA-256 of the arrays and the parameters: no path, no file format, no numpy version in it."""
    contents = {
        split: {key: value for key, value in facts.items() if key != "sha256"}
        for split, facts in splits.items()
    }
    return digest({"splits": contents, "parameters": dict(parameters)})


def copy_manifest(manifest: Manifest, path: Path | None) -> None:
    """Put the manifest at a second place, unless the same one is there already.

    Raises:
        CapsreproError: The place cannot be written to.
    """
    if path is not None and (not path.is_file() or _parse(path) != manifest):
        write_json(path, manifest)


def manifest_path(name: str, data_root: Path) -> Path:
    """Where the manifest of a prepared data set is."""
    return _folder(name, data_root) / "manifest.json"


def is_prepared(name: str, data_root: Path) -> bool:
    """Whether there is a manifest; says nothing of the files it names."""
    return manifest_path(name, data_root).is_file()


def read_manifest(name: str, data_root: Path) -> Manifest:
    """Read what a prepared data set must be; does not look at its arrays.

    Raises:
        CapsreproError: It is not prepared, or its manifest is damaged.
    """
    path = manifest_path(name, data_root)
    if not is_prepared(name, data_root):
        raise CapsreproError(
            f"data set {name} is not prepared in {data_root}; "
            f"run `capsrepro datasets prepare {name}`."
        )
    manifest = _parse(path)
    if manifest is None:
        raise CapsreproError(
            f"{path} is no manifest of a prepared data set; "
            f"run `capsrepro datasets prepare {name}` to make it again."
        )
    return manifest


def load_split(name: str, split: str, data_root: Path) -> Split:
    """Read one split, after its file's SHA-256 is found to be what the manifest says.

    Returns:
        Its arrays and the notes of its manifest.

    Raises:
        CapsreproError: The data set is not prepared, or its file is missing or changed.
        UsageError: The data set has no such split.
    """
    splits = read_manifest(name, data_root)["splits"]
    if split not in splits:
        known = ", ".join(splits)
        raise UsageError(f"data set {name} has no split {split}; choose one of {known}.")
    path = _checked(name, split, splits[split], data_root)
    with np.load(path, allow_pickle=False) as arrays:
        factors = arrays.get("factors")
        return Split(arrays["images"], arrays["labels"], factors, splits[split].get("notes"))


def verify(name: str, data_root: Path, *, progress: bool = False) -> Manifest:
    """Check the SHA-256 of every split's file against the manifest.

    Args:
        name: Data set.
        data_root: Root of the data folders.
        progress: Whether to show on standard error how far it is.

    Returns:
        The manifest, when all is as it says.

    Raises:
        CapsreproError: The data set is not prepared, or a file is missing or changed.
    """
    manifest = read_manifest(name, data_root)
    splits = manifest["splits"]
    with show_progress(f"verify {name}", len(splits), "split", wanted=progress) as done:
        for split, facts in splits.items():
            _checked(name, split, facts, data_root)
            done(1)
    return manifest


def _checked(name: str, split: str, facts: SplitFacts, data_root: Path) -> Path:
    path = _folder(name, data_root) / f"{split}.npz"
    command = f"run `capsrepro datasets prepare {name}` to make it again"
    try:
        found = sha256_of_file(path)
    except OSError as error:
        raise CapsreproError(f"cannot read {path}: {error.strerror}; {command}.") from error
    if found != facts["sha256"]:
        raise CapsreproError(
            f"{path} has changed since it was prepared: its SHA-256 is {found} instead of "
            f"{facts['sha256']}; {command}."
        )
    return path


def _folder(name: str, data_root: Path) -> Path:
    return data_root / "prepared" / name


def _remove_others(folder: Path, keep: Collection[str]) -> None:
    """Remove the files of a preparation that had other splits."""
    for path in folder.glob("*.npz"):
        if path.stem not in keep:
            path.unlink(missing_ok=True)


def _sha256_of_array(array: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _parse(path: Path) -> Manifest | None:
    """The manifest in a file, or None when it holds anything else."""
    try:
        manifest: Manifest = json.loads(path.read_text())
        facts = dict(manifest["splits"])
        whole = content_digest(facts, manifest["parameters"]) == manifest["digest"]
        complete = set(manifest) == Manifest.__required_keys__ and all(
            ArrayFacts.__required_keys__
            <= set(split)
            <= ArrayFacts.__required_keys__ | SplitFacts.__optional_keys__
            for split in facts.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole and complete else None
