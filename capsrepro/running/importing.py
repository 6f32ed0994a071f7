"""Taking a bundle in: all of it is checked before anything is written.

What changes is first written beside its place and then put there by renames alone, run by run: the
old records go, then the files come, then the new records. Wherever this is killed, a run has its
old records, or none, or new ones with all that they speak of; importing again completes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Literal

from capsrepro.config import load_params, resolve_run
from capsrepro.data.progress import show_progress
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import has_sha256, sha256_of_file, sweep, sync_folder, write_atomically
from capsrepro.project import Project
from capsrepro.records import TRAIN, Record
from capsrepro.running import control, recording
from capsrepro.running.bundle import Bundle, explained, members_of, read_bundle
from capsrepro.running.bundle_contents import (
    RefusedError,
    is_document,
    manifest_digest,
    place,
)
from capsrepro.running.experiment import current_record
from capsrepro.running.mlflow_sink import Sink

_State = Literal["imported", "replaced", "completed", "was here"]


@dataclass(frozen=True)
class ImportedRun:
    """One run of a bundle, as it stands here now.

    Attributes:
        record: Its train record.
        kinds: Kinds of all its records in the bundle.
        state: `imported` when it is new here, `replaced` when a record that was here is gone,
            `completed` when something was missing here, else `was here`.
        reason: Why it is not current; None when it is.
    """

    record: Record
    kinds: tuple[str, ...]
    state: _State
    reason: str | None


@dataclass(frozen=True)
class Imported:
    """What a bundle brought.

    Attributes:
        runs: Every run in it.
        new_datasets: Data sets of which there was no manifest here, so that their data could not
            be compared.
    """

    runs: tuple[ImportedRun, ...]
    new_datasets: tuple[str, ...]


def import_bundle(project: Project, path: Path, *, replace: bool) -> Imported:
    """Bring the records of a bundle here, and up to date with them the index and MLflow.

    Runs that params.yaml does not know come too: reports show them as what is no longer asked for.

    Args:
        project: Where they go.
        path: The bundle.
        replace: Let the bundle's records take the place of other records of the same runs.

    Returns:
        What came, and what had been here.

    Raises:
        CapsreproError: The bundle is damaged, its data are not those of a manifest here, a run has
            other records here, is being worked on, or something cannot be written.
    """
    bundle = read_bundle(path)
    new_datasets = tuple(_new_datasets(project, bundle))
    states = _states(project, bundle, _changes(project, bundle), replace)
    with ExitStack() as held:
        for run in (run for run, state in states.items() if state != "was here"):
            held.enter_context(control.exclusive(project.checkpoint_folder(run), run))
        # Seen again under the locks: a run may have ended here meanwhile.
        changes = _changes(project, bundle)
        states = _states(project, bundle, changes, replace)
        _bring(project, bundle, changes)
    recording.refresh_index(project)
    with Sink(project) as sink:
        sink.publish(*states)
    return Imported(tuple(_outcomes(project, bundle, states)), new_datasets)


def _new_datasets(project: Project, bundle: Bundle) -> Iterator[str]:
    """Data sets without a manifest here, once all others are found to be of the same data."""
    for name, digest in bundle.contents.datasets.items():
        path = place(project, name)
        if not path.exists():
            yield path.stem
            continue
        here = manifest_digest(path.read_bytes(), path.stem)
        if here is None:
            raise CapsreproError(
                f"{path} is no manifest of a prepared data set; restore it with `git checkout`."
            )
        if here != digest:
            runs = [run for run, (r, *_) in bundle.contents.runs.items() if r.data.digest == digest]
            raise CapsreproError(
                f"cannot import {bundle.path}: its {path.stem} (digest {digest}) is not that of "
                f"{path} (digest {here}), so {', '.join(runs)} cannot stand beside the runs here; "
                "prepare the same data on both machines, or export without them."
            )


def _changes(project: Project, bundle: Bundle) -> dict[str, Path]:
    """Where what is missing or different here belongs, by member name."""
    places = {name: place(project, name) for name in bundle.sha256}
    return {
        name: path
        for name, path in places.items()
        if not has_sha256(path, bundle.sha256[name])
        and not (name.startswith("datasets/") and path.exists())
    }


def _states(
    project: Project, bundle: Bundle, changes: Mapping[str, Path], replace: bool
) -> dict[str, _State]:
    """What will have become of every run."""
    states: dict[str, _State] = {}
    for run, records in bundle.contents.runs.items():
        changed = [path for name, path in changes.items() if _run_of(name) == run]
        there = [project.run_folder(run) / f"{record.kind}.json" for record in records]
        if not changed:
            states[run] = "was here"
        elif not any(path.exists() for path in there):
            states[run] = "imported"
        else:
            other = any(path in changed and path.exists() for path in there)
            states[run] = "replaced" if other else "completed"
    conflicts = [run for run, state in states.items() if state == "replaced"]
    if conflicts and not replace:
        raise CapsreproError(
            f"cannot import {bundle.path}: other records are here of {', '.join(conflicts)}; "
            "import with --replace to put the bundle's in their place, or export without these."
        )
    return states


def _run_of(name: str) -> str:
    """The run that a member belongs to; a manifest belongs to none."""
    return "" if name.startswith("datasets/") else "/".join(name.split("/")[1:4])


def _bring(project: Project, bundle: Bundle, changes: Mapping[str, Path]) -> None:
    """Write beside their places what changes, then put all of it in place."""
    for folder in {path.parent for name, path in changes.items() if name.startswith("runs/")}:
        sweep(folder)
    staged = {path: path.with_name(f".{path.name}.import.tmp") for path in changes.values()}
    try:
        with (
            explained(bundle.path),
            show_progress("import", len(staged), "file", wanted=bool(staged)) as done,
        ):
            for name, chunks in members_of(bundle.path) if staged else ():
                if name in changes:
                    beside = staged[changes[name]]
                    write_atomically(beside, partial(_copy, chunks))
                    if sha256_of_file(beside) != bundle.sha256[name]:
                        raise RefusedError("it has changed while it was read")
                    done(1)
        for _, names in groupby(sorted(changes, key=_placing_order), key=_run_of):
            _put_in_place({changes[name]: staged[changes[name]] for name in names})
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)


def _copy(chunks: Iterator[bytes], file: BinaryIO) -> None:
    for chunk in chunks:
        file.write(chunk)


def _placing_order(name: str) -> tuple[str, bool, bool, str]:
    """By run; its files first, then its train record, then its evaluations."""
    return _run_of(name), is_document(name), not name.endswith(f"/{TRAIN}.json"), name


def _put_in_place(staged: Mapping[Path, Path]) -> None:
    """Rename what belongs to one run, never leaving a record beside files that it does not name."""
    path = next(iter(staged))
    try:
        for path in reversed([*staged]):
            if is_document(path.name):
                path.unlink(missing_ok=True)
        for path, beside in staged.items():
            beside.replace(path)
        for folder in {path.parent for path in staged}:
            sync_folder(folder)
    except OSError as error:
        raise CapsreproError(
            f"cannot write {path}: {error.strerror}; make {path.parent} writable, "
            "then run the same command again."
        ) from error


def _outcomes(
    project: Project, bundle: Bundle, states: Mapping[str, _State]
) -> Iterator[ImportedRun]:
    params = load_params(project.params)
    for run, (train, *evaluations) in bundle.contents.runs.items():
        try:
            reason = current_record(project, resolve_run(params, run))[1]
        except UsageError:
            reason = "params.yaml here does not know it"
        kinds = (TRAIN, *(record.kind for record in evaluations))
        yield ImportedRun(train, kinds, states[run], reason)
