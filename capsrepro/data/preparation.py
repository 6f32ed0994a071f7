"""Fetching and preparing a data set of the table, and how far one is on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from capsrepro.data import DATASETS, fetch, prepared
from capsrepro.data.dataset import Dataset, Parameter, Splits
from capsrepro.data.progress import show_progress
from capsrepro.errors import CapsreproError, UsageError


def find_dataset(name: str) -> Dataset:
    """The row of a data set.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise UsageError(f"there is no data set {name}; choose one of {known}.")
    return DATASETS[name]


def fetch_dataset(
    name: str, data_root: Path, *, mirror: str | None = None, progress: bool = False
) -> list[Path]:
    """Have every file of a data set below `data_root/raw`; see `fetch.fetch`.

    Raises:
        UsageError: There is no data set of this name.
        CapsreproError: A file cannot be got or written.
    """
    raw_root = data_root / "raw"
    sources = find_dataset(name).sources
    return [fetch.fetch(source, raw_root, mirror=mirror, progress=progress) for source in sources]


def prepare_dataset(
    name: str,
    parameters: Mapping[str, Parameter],
    data_root: Path,
    *,
    mirror: str | None = None,
    progress: bool = False,
    manifest_copy: Path | None = None,
) -> prepared.Manifest:
    """Fetch and prepare a data set, unless just that is there already.

    May be killed at any moment and called by many processes at once: the manifest is written
    last, and one process at a time prepares.

    Args:
        name: A key of `DATASETS`.
        parameters: Those that differ from the defaults in the data set's row.
        data_root: Root of the data folders.
        mirror: Folder or URL that is asked before the official servers.
        progress: Whether to show on standard error how far it is.
        manifest_copy: Second place for the manifest, kept in git.

    Returns:
        The manifest.

    Raises:
        UsageError: There is no such data set or parameter, or a value is impossible.
        CapsreproError: A file cannot be got, read or written.
    """
    dataset = find_dataset(name)
    chosen = _complete(dataset, parameters)
    manifest = _current(dataset, chosen, data_root)
    if manifest is None:
        with fetch.locked(prepared.manifest_path(name, data_root).parent):
            manifest = _current(dataset, chosen, data_root)
            if manifest is None:
                fetch_dataset(name, data_root, mirror=mirror, progress=progress)
                splits = dataset.prepare(data_root / "raw", chosen)
                manifest = prepared.write_prepared(
                    name,
                    _announced(splits, dataset, progress),
                    dataset.classes,
                    chosen,
                    dataset.sources,
                    data_root,
                    manifest_copy,
                    dataset.version,
                )
    prepared.copy_manifest(manifest, manifest_copy)
    return manifest


def _announced(splits: Splits, dataset: Dataset, wanted: bool) -> Splits:
    """The same splits; each step of the bar, or line, says that one more is written."""
    with show_progress(
        f"prepare {dataset.name}", len(dataset.counts), "split", wanted=wanted
    ) as done:
        for name, split in splits:
            yield name, split
            done(1)


def dataset_state(name: str, data_root: Path) -> Literal["absent", "fetched", "prepared", "broken"]:
    """How far a data set is; reads all its prepared files, which takes about 2 s per gigabyte.

    Returns:
        `prepared` when every prepared file is as its manifest says and `broken` when one is not;
        without a manifest, `fetched` when every file to fetch is there in its size, else `absent`.

    Raises:
        UsageError: There is no data set of this name.
    """
    dataset = find_dataset(name)
    if prepared.is_prepared(name, data_root):
        try:
            prepared.verify(name, data_root)
        except CapsreproError:
            return "broken"
        return "prepared"
    files = [(data_root / "raw" / source.key, source.size_bytes) for source in dataset.sources]
    whole = all(path.is_file() and path.stat().st_size == size for path, size in files)
    return "fetched" if files and whole else "absent"


def _complete(dataset: Dataset, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """All parameters of a data set, the defaults filled in."""
    for key, value in parameters.items():
        if key not in dataset.parameters:
            known = ", ".join(dataset.parameters) or "none"
            raise UsageError(
                f"data set {dataset.name} has no parameter {key}; remove it (known: {known})."
            )
        expected = type(dataset.parameters[key])
        if type(value) is not expected:
            raise UsageError(
                f"parameter {key} of data set {dataset.name} is {value!r}; "
                f"give it a value of type {expected.__name__}."
            )
    return {**dataset.parameters, **parameters}


def _current(
    dataset: Dataset, parameters: dict[str, Parameter], data_root: Path
) -> prepared.Manifest | None:
    """The manifest, when it is what would be prepared now and the files are as it says."""
    try:
        manifest = prepared.verify(dataset.name, data_root)
    except CapsreproError:
        return None
    found = (manifest["version"], manifest["parameters"], manifest["sources"])
    wanted = (dataset.version, parameters, {s.key: s.sha256 for s in dataset.sources})
    return manifest if found == wanted else None
