"""Attacks on a trained run, each with a record of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from capsrepro.config import RunSpec
from capsrepro.data.batches import EvaluationSplit
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.evaluation.robustness import attacked_loss, measure_fgsm
from capsrepro.files import digest
from capsrepro.models import MODELS
from capsrepro.project import Project
from capsrepro.records import Cost, Record, find_record, record_path, stale_reason
from capsrepro.running import assembly, control, mlflow_sink, provenance, recording, weights
from capsrepro.running.experiment import Outcome, current_record
from capsrepro.training import state

Measured = tuple[dict[str, float], dict[str, list[float]]]

ATTACKS: dict[str, Callable[[nn.Module, EvaluationSplit, Sequence[float], str], Measured]] = {
    "fgsm": measure_fgsm,
}


def attack_document(spec: RunSpec, kind: str) -> dict[str, Any]:
    """The resolved specification of an attack, the attacked run's included."""
    settings = getattr(spec.protocol.attacks, kind).model_dump(mode="json")
    loss = attacked_loss(MODELS[spec.model.family], settings["loss"])
    attack = {**settings, "name": kind, "loss": loss, "epsilon_unit": "raw-pixels"}
    return spec.document() | {"attack": attack}


def current_attack(project: Project, spec: RunSpec, kind: str) -> tuple[Record | None, str | None]:
    """The record of an attack and why it is not current (None when it is)."""
    trained, reason = current_record(project, spec)
    if trained is None or reason is not None:
        return None, f"the run itself: {reason}"
    record = find_record(project.run_folder(spec.name), kind)
    if record is None:
        return None, "no record"
    wanted = digest(attack_document(spec, kind))
    reason = stale_reason(record, wanted, trained.data.digest, spec.protocol.version)
    if reason is None and record.inputs != trained_inputs(trained):
        reason = "the run has been trained anew"
    return record, reason


def trained_inputs(trained: Record) -> dict[str, str]:
    """What an evaluation is computed from: the weights that the train record names."""
    return {weights.NAME: trained.outputs[weights.NAME]}


def run_attack(project: Project, spec: RunSpec, kind: str) -> Outcome:
    """Attack a trained run on the whole test set, or find that this was done.

    Args:
        project: Folders and device.
        spec: The run.
        kind: A key of `ATTACKS`.

    Returns:
        The record and whether anything had to be done.

    Raises:
        UsageError: There is no such attack.
        CapsreproError: The run is not trained, or its weights are not here.
    """
    if kind not in ATTACKS:
        raise UsageError(f"unknown attack {kind!r}; choose one of {', '.join(ATTACKS)}.")
    with control.exclusive(project.checkpoint_folder(spec.name), spec.name):
        record, reason = current_attack(project, spec, kind)
        path = record_path(project.run_folder(spec.name), kind)
        if record is not None and reason is None:
            recording.refresh_index(project)
            return Outcome(record, path, done=False)
        trained, stale = current_record(project, spec)
        if trained is None or stale is not None:
            raise CapsreproError(
                f"{spec.name} has no trained model to attack ({stale}); "
                f"run `capsrepro run {spec.name}` first."
            )
        device = state.choose_device(project.device)
        with control.explained(spec.name, str(device)):
            record = _attack_and_record(project, spec, kind, trained, device)
        recording.keep_record(project, record)
        mlflow_sink.publish(project, [trained, record])
        return Outcome(record, path, done=True)


def _attack_and_record(
    project: Project, spec: RunSpec, kind: str, trained: Record, device: torch.device
) -> Record:
    code = provenance.describe_code(project.root)
    state.keep_freed_memory()
    state.make_deterministic()
    environment = provenance.describe_environment(device, spec.protocol.recipe.precision)
    manifest = assembly.prepare_data(project, spec)
    document = attack_document(spec, kind)
    started = time.perf_counter()
    metrics: dict[str, float] = {}
    curves: dict[str, list[float]] = {}
    attacked = 0
    # A run that diverged leaves nothing to attack. That is a result too: a record that says so lets
    # the pipeline go on and the tables count the seed as failed.
    if trained.failure is None:
        model = assembly.build_model(spec, device)
        weights.load_weights(model, project.checkpoint_folder(spec.name), trained)
        split = assembly.test_split(project, spec, device)
        epsilons = [float(e) for e in getattr(spec.protocol.attacks, kind).epsilons]
        metrics, curves = ATTACKS[kind](model, split, epsilons, document["attack"]["loss"])
        attacked = split.items * len(epsilons)
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
        inputs=trained_inputs(trained),
        outputs={},
        metrics=metrics,
        curves=curves,
        cost=Cost(
            wall_time_s=seconds,
            images_per_s=attacked / seconds,
            peak_memory_mib=provenance.peak_memory_mib(device),
            energy_j=None,
            sessions=1,
        ),
    )
