"""The MLflow mirror of the records: experiment = protocol, parent run = model, child run = seed.

It is written and never read back; deleting it loses nothing (`capsrepro mlflow-sync`). Runs write
it through a process of its own (`mlflow_sink`).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capsrepro.errors import CapsreproError
from capsrepro.project import Project
from capsrepro.records import TRAIN, Record, read_history, read_run

_KEY, _SEALS, _PARENT = "capsrepro.key", "capsrepro.seals", "mlflow.parentRunId"
# MLflow's own limit for one call.
_BATCH = 1000


class UnavailableError(Exception):
    """Tracking is off, not installed, or out of reach."""


def import_client() -> Any | None:
    """MLflow's client class, which takes seconds the first time; None when it is not installed."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Alembic announces every table of a new database otherwise.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # MLflow asks a dead server for more than two minutes at every call otherwise.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        from mlflow import MlflowClient
    except ImportError:
        return None
    return MlflowClient


class Mirror:
    """A connection to one MLflow server.

    Args:
        project: Names the server and the folder of the lock.

    Raises:
        UnavailableError: There is no such server, or no MLflow here.
    """

    def __init__(self, project: Project) -> None:
        if project.tracking_uri == "off":
            raise UnavailableError("tracking is off")
        client = import_client()
        if client is None:
            raise UnavailableError("mlflow is not installed")
        self._lock_path = project.root / ".mlflow.lock"
        # Several processes that open a fresh database at once break each other's migrations; the
        # client opens it as soon as it is made.
        with self._alone():
            self._client = client(tracking_uri=project.tracking_uri)
            self._client.search_experiments(max_results=1)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes of this project out."""
        with self._lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def find(self, experiment: str, key: str) -> Any | None:
        """The run that carries this key, or None."""
        found = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{key}'", max_results=1)
        return found[0] if found else None

    def parent(self, protocol: str, model: str) -> tuple[str, str]:
        """Experiment and parent run of a model, made where missing."""
        key = f"{protocol}/{model}"
        # Two runs of one model that start together must not both make its parent.
        with self._alone():
            known = self._client.get_experiment_by_name(protocol)
            experiment = known.experiment_id if known else self._client.create_experiment(protocol)
            run = self.find(experiment, key) or self._client.create_run(
                experiment, tags={_KEY: key}, run_name=model
            )
            self._client.set_terminated(run.info.run_id)
        return experiment, run.info.run_id

    def start(self, key: str, tags: dict[str, str]) -> str:
        """A new child run in place of any that carries the key; returns its id."""
        protocol, model, seed = key.split("/")
        experiment, parent = self.parent(protocol, model)
        old = self.find(experiment, key)
        if old is not None:
            self._client.delete_run(old.info.run_id)
        tags = {_KEY: key, _PARENT: parent, **tags}
        return str(self._client.create_run(experiment, tags=tags, run_name=seed).info.run_id)

    def log_epochs(self, run_id: str, history: Sequence[dict[str, float]]) -> None:
        """All figures of all epochs, in as few calls as MLflow takes."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, int(entry["step"]))
            for entry in history
            for name, value in entry.items()
            if name != "step"
        ]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + _BATCH])

    def publish(self, run_folder: Path) -> bool:
        """Bring one run up to date with its records; false when it was already."""
        from mlflow.entities import Metric, Param

        records = read_run(run_folder)
        first = records[0]
        seals = ",".join(record.sealed().seal[:16] for record in records)
        experiment, _ = self.parent(first.protocol, first.model)
        there = self.find(experiment, first.run)
        if there is not None and there.data.tags.get(_SEALS) == seals:
            return False
        run_id = self.start(first.run, _tags(first))
        self.log_epochs(run_id, read_history(run_folder, first))
        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, step)
            for record in records
            for name, value, step in _figures(record)
        ]
        self._client.log_batch(
            run_id, metrics=metrics, params=[Param(k, v) for k, v in _parameters(first)]
        )
        # Last, so that an interrupted publication is done again.
        self._client.set_tag(run_id, _SEALS, seals)
        self._client.set_terminated(
            run_id, status="FINISHED" if first.status == "finished" else "FAILED"
        )
        return True


def _tags(record: Record) -> dict[str, str]:
    versions = {f"version.{k}": v for k, v in record.environment.versions.items() if v}
    return {
        "spec_digest": record.spec_digest,
        "data_digest": record.data.digest,
        "protocol_version": record.protocol_version,
        "git_commit": record.code.git_commit or "unknown",
        "device": record.environment.device,
        "precision": record.environment.precision,
        "status": record.status,
        "budget": f"{record.budget.fraction:g}",
        **versions,
    }


def _figures(record: Record) -> Iterable[tuple[str, float, int]]:
    """Metrics and curves of a record; a curve's points become steps 0, 1, 2, …."""
    prefix = "" if record.kind == TRAIN else f"{record.kind}."
    for name, value in record.metrics.items():
        yield f"final.{prefix}{name}", value, record.budget.steps
    for name, values in record.curves.items():
        for point, value in enumerate(values):
            yield f"{prefix}{name}", value, point


def _parameters(record: Record) -> Iterable[tuple[str, str]]:
    for block in ("recipe", "model"):
        for key, value in record.spec[block].items():
            yield f"{block}.{key}", json.dumps(value)[:500]


def sync(project: Project) -> tuple[int, int]:
    """Bring the server up to date with all records.

    Returns:
        Runs published now, and runs there are.

    Raises:
        CapsreproError: The server cannot be used.
    """
    folders = [
        path.parent for path in sorted((project.results / "runs").glob(f"*/*/*/{TRAIN}.json"))
    ]
    try:
        mirror = Mirror(project)
        published = sum(mirror.publish(folder) for folder in folders)
    except CapsreproError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CapsreproError(
            f"MLflow at {project.tracking_uri} cannot be used ({reason}); "
            "check MLFLOW_TRACKING_URI, then run `capsrepro mlflow-sync` again."
        ) from error
    return published, len(folders)
