"""Evaluations of a trained run, each with a record of its own."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capsrepro.config import RunSpec
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import digest, has_sha256, sha256_of_file, write_atomically
from capsrepro.project import Project
from capsrepro.records import Cost, Record, find_record, record_path, stale_reason
from capsrepro.running import (
    assembly,
    attacking,
    control,
    provenance,
    recording,
    weights,
)
from capsrepro.running.experiment import Outcome, current_record
from capsrepro.running.measures import EVALUATIONS, Measured, measure
from capsrepro.running.mlflow_sink import Sink
from capsrepro.training import state


def evaluation_document(spec: RunSpec, kind: str) -> dict[str, Any]:
    """The resolved specification of an evaluation, the run's included.

    Raises:
        UsageError: There is no such evaluation, or the protocol does not ask for it.
    """
    if kind not in EVALUATIONS:
        return spec.document() | {"attack": attacking.attack_document(spec, kind)}
    asked = getattr(spec.protocol.evaluations, kind)
    if asked is None:
        raise UsageError(
            f"protocol {spec.protocol_name} asks for no {kind}; add it to "
            f"protocols.{spec.protocol_name}.evaluations in params.yaml."
        )
    settings = asked.model_dump(mode="json", exclude={"models"})
    return spec.document() | {"evaluation": {**settings, "name": kind}}


def current_evaluation(
    project: Project, spec: RunSpec, kind: str
) -> tuple[Record | None, str | None]:
    """The record of an evaluation and why it is not current (None when it is)."""
    trained, reason = current_record(project, spec)
    if trained is None or reason is not None:
        return None, f"the run itself: {reason}"
    folder = project.run_folder(spec.name)
    record = find_record(folder, kind)
    if record is None:
        return None, "no record"
    wanted = digest(evaluation_document(spec, kind))
    reason = stale_reason(record, wanted, trained.data.digest, spec.protocol.version)
    if reason is None:
        reason = _stale_input(project, spec, kind, record, trained)
    if reason is None and not all(
        has_sha256(folder / name, sha256) for name, sha256 in record.outputs.items()
    ):
        reason = "what it left beside its record is missing or damaged"
    return record, reason


def trained_inputs(trained: Record) -> dict[str, str]:
    """What an evaluation is computed from: the weights that the train record names."""
    return {weights.NAME: trained.outputs[weights.NAME]}


def _stale_input(
    project: Project, spec: RunSpec, kind: str, record: Record, trained: Record
) -> str | None:
    """Why the networks that a record is about are not those there are now, if they are not."""
    try:
        source = attacking.source_inputs(project, spec, kind)
    except CapsreproError as error:
        return str(error).removesuffix(".")
    if record.inputs != trained_inputs(trained) | source:
        return "a network that it was made with has been trained anew"
    return None


def run_evaluation(project: Project, spec: RunSpec, kind: str, sink: Sink) -> Outcome:
    """Evaluate a trained run on the whole test set, or find that this was done.

    Args:
        project: Folders and device.
        spec: The run.
        kind: A key of `EVALUATIONS`.
        sink: Where it is published.

    Returns:
        The record and whether anything had to be done.

    Raises:
        UsageError: There is no such evaluation, or the protocol does not ask for it.
        CapsreproError: The run is not trained, its weights are not here, or its model cannot be
            evaluated this way.
    """
    document = evaluation_document(spec, kind)
    with control.exclusive(project.checkpoint_folder(spec.name), spec.name):
        record, reason = current_evaluation(project, spec, kind)
        path = record_path(project.run_folder(spec.name), kind)
        if record is not None and reason is None:
            recording.refresh_index(project)
            return Outcome(record, path, done=False)
        trained, stale = current_record(project, spec)
        if trained is None or stale is not None:
            raise CapsreproError(
                f"{spec.name} has no trained model to evaluate ({stale}); "
                f"run `capsrepro run {spec.name}` first."
            )
        inputs = trained_inputs(trained) | attacking.source_inputs(project, spec, kind)
        device = state.choose_device(project.device)
        sink.connect()
        with control.explained(spec.name, str(device)):
            record = _evaluate_and_record(project, spec, kind, document, trained, inputs, device)
        recording.keep_record(project, record)
        sink.publish(spec.name)
        return Outcome(record, path, done=True)


def _evaluate_and_record(
    project: Project,
    spec: RunSpec,
    kind: str,
    document: dict[str, Any],
    trained: Record,
    inputs: dict[str, str],
    device: torch.device,
) -> Record:
    code = provenance.describe_code(project.root)
    state.keep_freed_memory()
    state.make_deterministic()
    environment = provenance.describe_environment(device, spec.protocol.recipe.precision)
    manifest = assembly.prepare_data(project, spec)
    started = time.perf_counter()
    measured, images = Measured({}), 0
    # A run that diverged leaves nothing to evaluate. That is a result too: a record that says so
    # lets the pipeline go on and the tables count the seed as failed.
    if trained.failure is None:
        model = assembly.build_model(spec, device)
        weights.load_weights(model, project.checkpoint_folder(spec.name), trained)
        if kind in EVALUATIONS:
            split = assembly.evaluation_split(project, spec, "test", device)
            measured = measure(model, spec.model_name, split, kind, document["evaluation"])
            images = measured.classified or split.items
        else:
            measured = attacking.make_attack(project, spec, kind, model, device)
            images = measured.classified or 0
        _check_same_test(trained, measured)
    seconds = time.perf_counter() - started
    return recording.make_record(
        spec,
        kind,
        code=code,
        environment=environment,
        manifest=manifest,
        specification=document,
        spec_digest=digest(document),
        steps=trained.budget.steps,
        failure=trained.failure,
        inputs=inputs,
        outputs=_keep_arrays(project, spec, kind, measured.arrays),
        metrics=measured.metrics,
        curves=measured.curves,
        cost=Cost(
            wall_time_s=seconds,
            images_per_s=images / seconds,
            peak_memory_mib=provenance.peak_memory_mib(device),
            energy_j=None,
            sessions=1,
        ),
    )


def _check_same_test(trained: Record, measured: Measured) -> None:
    """An evaluation that counts the test errors again must find those of the run.

    Scores are kept rounded, so images whose best classes became equal may be counted otherwise.
    """
    own, found = trained.metrics.get("test_errors"), measured.metrics
    again = found.get("central_errors", found.get("test_errors"))
    tied = found.get("tied_images", 0)
    if own is not None and again is not None and abs(again - own) > tied:
        raise CapsreproError(
            f"{trained.run} makes {again:g} errors here where its record has {own:g}, and rounding "
            f"explains {tied:g}; evaluate it where it was trained ({trained.environment.device})."
        )


def _keep_arrays(
    project: Project, spec: RunSpec, kind: str, arrays: Mapping[str, NDArray[Any]]
) -> dict[str, str]:
    """Write the arrays beside the record; returns the file's name and SHA-256, if there is one."""
    if not arrays:
        return {}
    path = project.run_folder(spec.name) / f"{kind}.npz"
    content = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(content, **named)
    write_atomically(path, lambda file: file.write(content.getvalue()))
    return {path.name: sha256_of_file(path)}
