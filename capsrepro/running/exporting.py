"""Making a bundle of the runs that are here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capsrepro.data.progress import show_progress
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import sha256_of_file
from capsrepro.project import Project
from capsrepro.records import TRAIN, Record, read_history, read_record, record_path
from capsrepro.running.bundle import member_order, write_bundle
from capsrepro.running.bundle_contents import (
    WEIGHTS,
    Contents,
    RefusedError,
    most_bytes,
    outdated,
    place,
    understand,
)


@dataclass(frozen=True)
class Exported:
    """What a new bundle holds.

    Attributes:
        path: The file.
        sha256: Of the file.
        contents: What its documents say.
        left_out: Evaluations that are not in it, each with the reason.
    """

    path: Path
    sha256: str
    contents: Contents
    left_out: Mapping[str, str]


def export_runs(
    project: Project, path: Path, names: Sequence[str], *, with_weights: bool
) -> Exported:
    """Write records, histories, arrays and manifests of runs into one file.

    Args:
        project: Where they are.
        path: The `.tar.gz` file; one that is there is replaced.
        names: Runs, or beginnings of their names (`mnist-short`); none means all that are here.
        with_weights: Carry the trained weights too.

    Raises:
        UsageError: A name fits no run that is here, or the file is not called `.tar.gz`.
        CapsreproError: A record or one of its files is missing or damaged, the data set has been
            prepared otherwise since, or the file cannot be written.
    """
    if not path.name.endswith(".tar.gz"):
        raise UsageError(f"{path} is no name for a bundle; give it one that ends in .tar.gz.")
    documents: dict[str, bytes] = {}
    left_out: dict[str, str] = {}
    for run in _chosen(project, names):
        for record in _records(project, run, left_out):
            name = f"runs/{run}/{record.kind}.json"
            documents[name] = place(project, name).read_bytes()
            documents[f"datasets/{record.data.name}.json"] = _manifest(project, record)
    try:
        contents = understand(documents)
    except RefusedError as error:
        raise CapsreproError(
            f"cannot export: {error}; restore it with `git checkout`, make it again, or name the "
            "runs to export."
        ) from error
    wanted = [n for n in contents.files if with_weights or not n.startswith("checkpoints/")]
    members = [*documents, *wanted]
    with show_progress("export", len(members), "file", wanted=True) as done:

        def filled() -> Iterator[tuple[str, bytes]]:
            for name in sorted(members, key=member_order):
                content = documents.get(name) or _file(project, name, contents.files[name])
                if len(content) > (most_bytes(name) or 0):
                    raise CapsreproError(
                        f"cannot export {place(project, name)}: no bundle holds a file of this "
                        f"name and {len(content):,} bytes; name the runs to export without it."
                    )
                yield name, content
                done(1)

        write_bundle(path, filled())
    return Exported(path, sha256_of_file(path), contents, left_out)


def _chosen(project: Project, names: Sequence[str]) -> list[str]:
    """The runs that have a train record here and that a name asks for, in order."""
    folder = project.results / "runs"
    paths = folder.glob(f"*/*/seed-*/{TRAIN}.json")
    runs = sorted(path.parent.relative_to(folder).as_posix() for path in paths)
    if not runs:
        raise CapsreproError(f"there are no records in {folder}; do a `capsrepro run` first.")
    for name in names:
        if not any(_asks_for(name, run) for run in runs):
            raise UsageError(
                f"no run in {folder} is called {name!r} or begins with it; "
                "write PROTOCOL, PROTOCOL/MODEL or PROTOCOL/MODEL/seed-N of a run that is there."
            )
    return [run for run in runs if not names or any(_asks_for(name, run) for name in names)]


def _asks_for(name: str, run: str) -> bool:
    return f"{run}/".startswith(f"{name.rstrip('/')}/")


def _records(project: Project, run: str, left_out: dict[str, str]) -> Iterator[Record]:
    """The train record of a run and the evaluations that belong to it."""
    folder = project.run_folder(run)
    train = read_record(record_path(folder, TRAIN))
    read_history(folder, train)
    for path in sorted(folder.glob("*.json")):
        record = read_record(path)
        if reason := outdated(record, train):
            left_out[f"{run}: {record.kind}"] = reason
        else:
            yield record


def _manifest(project: Project, record: Record) -> bytes:
    path = project.manifest_path(record.data.name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise CapsreproError(
            f"cannot read {path}, the manifest of the data behind {record.run}: {error.strerror}; "
            f"run `capsrepro datasets prepare {record.data.name}`."
        ) from error


def _file(project: Project, name: str, sha256: str) -> bytes:
    """What a record left, once it is found to be just that."""
    path = place(project, name)
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    if hashlib.sha256(content).hexdigest() == sha256:
        return content
    remedy = "restore it with `git checkout`, or delete its record and make it again"
    if path.name.startswith(WEIGHTS):
        run = path.parent.relative_to(project.checkpoints).as_posix()
        remedy = f"run `capsrepro run {run} --weights`, or export without --weights"
    raise CapsreproError(f"{path} is missing or not the file that its record speaks of; {remedy}.")
