"""Putting a record together from what a run or an evaluation found."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capsrepro.config import RunSpec, load_params
from capsrepro.data.prepared import Manifest
from capsrepro.project import Project
from capsrepro.records import (
    Budget,
    Code,
    Cost,
    Data,
    Environment,
    Failure,
    Record,
    write_index,
    write_record,
)


def make_record(
    spec: RunSpec,
    kind: str,
    *,
    code: Code,
    environment: Environment,
    manifest: Manifest,
    specification: dict[str, Any],
    spec_digest: str,
    steps: int,
    failure: Failure | None,
    inputs: dict[str, str],
    outputs: dict[str, str],
    metrics: Mapping[str, float],
    curves: dict[str, list[float]],
    cost: Cost,
) -> Record:
    """Put together the record of a run or of an evaluation of one."""
    # A rule that ended the training is the protocol's whole budget, however many steps it took.
    by_rule = spec.protocol.recipe.stop is not None and failure is None
    full = steps if by_rule else spec.protocol.full_steps
    return Record(
        kind=kind,
        run=spec.name,
        protocol=spec.protocol_name,
        protocol_version=spec.protocol.version,
        model=spec.model_name,
        seed=spec.seed,
        status="finished" if failure is None else "failed",
        failure=failure,
        spec=specification,
        spec_digest=spec_digest,
        data=Data(name=manifest["name"], digest=manifest["digest"]),
        inputs=inputs,
        outputs=outputs,
        budget=Budget(steps=steps, full_steps=full, fraction=steps / full),
        metrics=dict(metrics),
        curves=curves,
        code=code,
        environment=environment,
        cost=cost,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def keep_record(project: Project, record: Record) -> Path:
    """Write a record and bring the index up to date; returns the record's path.

    Raises:
        CapsreproError: The results folder cannot be written to.
    """
    path = write_record(project.run_folder(record.run), record)
    refresh_index(project)
    return path


def refresh_index(project: Project) -> None:
    """Make the index say what records there are; also mends one that a crash left behind."""
    write_index(project.results, load_params(project.params).tabled_protocols)
