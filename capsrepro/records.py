"""Records: the JSON file that every run and every evaluation leaves, and that all tables read.

A record carries a seal, the SHA-256 of everything else in it: a file that was cut short or edited
by hand is refused, because nobody could trace its figures to a run.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from capsrepro.errors import CapsreproError
from capsrepro.files import digest, has_sha256, write_json, write_text

SCHEMA_VERSION: Literal[1] = 1
TRAIN = "train"
"""Kind of the record that a run leaves; every other kind is an evaluation of it."""
HISTORY = "history.jsonl"
MATCHED = "matched_accuracy_pct"
"""Metric of a run that was matched to another: the accuracy that its training had to reach."""


_Document = TypeVar("_Document", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(_Part):
    """The data set behind the numbers."""

    name: str
    digest: str = Field(description="SHA-256 over prepared arrays and preparation parameters")


class Budget(_Part):
    """How much training there was, against the protocol's full budget."""

    steps: int
    full_steps: int
    fraction: float


class Failure(_Part):
    """Why a run ended without a result; it counts as failed, not as missing."""

    reason: str
    step: int


class Code(_Part):
    """The program that wrote the record."""

    git_commit: str | None
    git_dirty: bool | None = Field(description="uncommitted changes outside results/ and locks")
    science_digest: str = Field(description="SHA-256 of data, models, training and evaluation")


class Environment(_Part):
    """The machine and the libraries."""

    versions: dict[str, str | None]
    platform: str
    device: str
    threads: int = Field(description="CPU threads of torch; they change the order of sums")
    precision: str
    deterministic: bool


class Cost(_Part):
    """What it took."""

    wall_time_s: float = Field(description="resumed parts included")
    images_per_s: float = Field(description="resumed parts included")
    peak_memory_mib: float = Field(description="of the last session")
    energy_j: float | None = Field(
        description="where the GPU driver tells it and the run was not resumed"
    )
    sessions: int = Field(description="1, or more when the run was resumed")


class Record(_Part):
    """One run (`kind` train) or one evaluation of a run (`kind` fgsm, …)."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: str
    run: str
    protocol: str
    protocol_version: str
    model: str
    seed: int
    status: Literal["finished", "failed"]
    failure: Failure | None
    spec: dict[str, Any]
    spec_digest: str
    data: Data
    inputs: dict[str, str] = Field(description="SHA-256 of what it was computed from")
    outputs: dict[str, str] = Field(description="SHA-256 of what it left, by file name")
    budget: Budget
    metrics: dict[str, float]
    curves: dict[str, list[float]] = Field(description="equally long lists, one entry per point")
    code: Code
    environment: Environment
    cost: Cost
    created_at: str
    seal: str = ""

    def sealed(self) -> Record:
        """The same record with its seal set."""
        return self.model_copy(update={"seal": self._expected_seal()})

    def seal_is_whole(self) -> bool:
        """Whether nothing was changed since the record was written."""
        return self.seal == self._expected_seal()

    def _expected_seal(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"seal"}))


def record_path(run_folder: Path, kind: str) -> Path:
    """Where the record of this kind stands in a run's folder."""
    return run_folder / f"{kind}.json"


def read_history(run_folder: Path, record: Record) -> list[dict[str, float]]:
    """The epochs of a run, from the file beside its train record.

    Raises:
        CapsreproError: The file is missing or not the one that the record speaks of.
    """
    path = run_folder / HISTORY
    if not has_sha256(path, record.outputs.get(HISTORY)):
        raise CapsreproError(
            f"{path} is not the history that its record speaks of; restore it with `git checkout`."
        )
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_record(run_folder: Path, record: Record) -> Path:
    """Seal and write a record atomically; returns its path."""
    path = record_path(run_folder, record.kind)
    write_json(path, record.sealed().model_dump(mode="json"))
    return path


def read_document(path: Path, kind: type[_Document], what: str, remedy: str) -> _Document:
    """Read a JSON file and hold it against its schema.

    Args:
        path: The file.
        kind: Its schema.
        what: What messages call it.
        remedy: How messages end.

    Raises:
        CapsreproError: The file is unreadable, no JSON, or of another schema.
    """
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CapsreproError(f"cannot read {what} {path}: {error.strerror}; {remedy}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise CapsreproError(
            f"{what} {path} is damaged: {key}: {first['msg'].lower()}; {remedy}"
        ) from error
    except ValueError as error:
        raise CapsreproError(f"{what} {path} is damaged: it is not JSON; {remedy}") from error


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        CapsreproError: The file is unreadable, no JSON, of another schema, or changed since it
            was written.
    """
    remedy = "restore it with `git checkout`, or delete it and run its `capsrepro run` again."
    record = read_document(path, Record, "record", remedy)
    if not record.seal_is_whole():
        raise CapsreproError(
            f"record {path} was changed after it was written (its seal does not match); {remedy}"
        )
    return record


def read_records(results: Path, protocols: tuple[str, ...] = ()) -> list[Record]:
    """All records below `results/runs`, sorted by run and kind.

    Args:
        results: The results folder.
        protocols: Only these; empty means all.
    """
    folder = results / "runs"
    paths = sorted(folder.glob("*/*/seed-*/*.json"))
    return [read_record(p) for p in paths if not protocols or p.parts[-4] in protocols]


def read_run(run_folder: Path) -> list[Record]:
    """The records of one run, that of its training first."""
    evaluations = sorted(path for path in run_folder.glob("*.json") if path.stem != TRAIN)
    return [read_record(path) for path in [record_path(run_folder, TRAIN), *evaluations]]


def find_record(run_folder: Path, kind: str) -> Record | None:
    """The record of this kind, or None when there is none."""
    path = record_path(run_folder, kind)
    return read_record(path) if path.exists() else None


def stale_reason(
    record: Record | None, spec_digest: str, data_digest: str | None, protocol_version: str
) -> str | None:
    """Why a record is not current, or None when it is.

    Args:
        record: What stands in results, if anything.
        spec_digest: Digest of the specification that is asked for now.
        data_digest: Digest of the prepared data; None when it is not prepared here, and then the
            record's own is trusted.
        protocol_version: The protocol's version now.
    """
    if record is None:
        return "no record"
    if record.protocol_version != protocol_version:
        return f"protocol version {record.protocol_version} is now {protocol_version}"
    if record.spec_digest != spec_digest:
        return "its specification in params.yaml has changed"
    if data_digest is not None and record.data.digest != data_digest:
        return "the prepared data have changed"
    return None


def write_index(results: Path, protocols: Iterable[str]) -> Path:
    """List the seal of every record of these protocols in `results/index.json`.

    The report stage of DVC depends on this file, so that it notices new records without pulling in
    the training of those that are still missing.

    Returns:
        Its path; it is left alone when it says the same already.

    Raises:
        CapsreproError: A record is damaged or the folder cannot be written to.
    """
    path, runs = results / "index.json", results / "runs"
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".index.lock").open("w") as lock:
        # Several runs may end at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        seals = {
            record.relative_to(runs).with_suffix("").as_posix(): read_record(record).seal
            for name in sorted(protocols)
            for record in sorted((runs / name).glob("*/seed-*/*.json"))
        }
        text = json.dumps(seals, indent=1) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    return path
