"""Putting a record together from what a run or an evaluation found, and the index of records."""

from __future__ import annotations

import datetime
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from capsrepro.config import RunSpec, load_params
from capsrepro.data.prepared import Manifest
from capsrepro.files import write_json
from capsrepro.project import Project
from capsrepro.records import Budget, Code, Cost, Data, Failure, Record, write_record
from capsrepro.running import provenance


def make_record(
    spec: RunSpec,
    kind: str,
    *,
    code: Code,
    manifest: Manifest,
    device: torch.device,
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
    full = spec.protocol.full_steps
    return Record(
        schema_version=1,
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
        environment=provenance.describe_environment(device, spec.protocol.recipe.precision),
        cost=cost,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def keep_record(project: Project, record: Record) -> Path:
    """Write a record and bring the index up to date; returns the record's path.

    Raises:
        CapsreproError: The results folder cannot be written to.
    """
    path = write_record(project.run_folder(record.run), record)
    write_index(project)
    return path


def write_index(project: Project) -> None:
    """List the seal of every record that a claim may be judged by, in `results/index.json`.

    The report stage of DVC depends on this file, so that it notices new records without pulling in
    the training of those that are still missing.
    """
    protocols = load_params(project.params).protocols
    judged = [name for name, protocol in protocols.items() if protocol.judged_as]
    runs = project.results / "runs"
    with (project.results / ".index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        seals = {
            path.relative_to(runs).with_suffix("").as_posix(): json.loads(path.read_text())["seal"]
            for name in sorted(judged)
            for path in sorted((runs / name).glob("*/seed-*/*.json"))
        }
        path = project.results / "index.json"
        if not path.is_file() or json.loads(path.read_text()) != seals:
            write_json(path, seals)
