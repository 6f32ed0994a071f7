"""Evaluations of a trained run, each with a record of its own."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from capsrepro.config import RunSpec
from capsrepro.data.batches import EvaluationSplit
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.evaluation.digit_width import measure_width
from capsrepro.evaluation.overlap import measure_crowding, measure_overlap, measure_segmentation
from capsrepro.evaluation.reconstruction import (
    draw_examples,
    draw_perturbations,
    measure_reconstruction,
)
from capsrepro.evaluation.robustness import attacked_loss, measure_fgsm
from capsrepro.evaluation.routing_dynamics import measure_routing
from capsrepro.evaluation.scores import measure_scores
from capsrepro.files import digest, has_sha256, sha256_of_file, write_atomically
from capsrepro.project import Project
from capsrepro.records import Cost, Record, find_record, record_path, stale_reason
from capsrepro.running import assembly, control, mlflow_sink, provenance, recording, weights
from capsrepro.running.experiment import Outcome, current_record
from capsrepro.training import state


@dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Attributes:
        metrics: Numbers by name.
        curves: Equally long lists by name.
        arrays: Pictures to draw figures from, or scores, kept beside the record; mostly none.
    """

    metrics: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def _fgsm(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    epsilons = [float(Fraction(epsilon)) for epsilon in settings["epsilons"]]
    return Measured(*measure_fgsm(model, split, epsilons, settings["loss"]))


def _reconstruct(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    metrics = measure_reconstruction(model, split)
    examples = draw_examples(model, split, settings["examples_right"], settings["examples_wrong"])
    digits = settings["perturbed_digits"]
    if not digits:
        return Measured(metrics | measure_segmentation(model, split), arrays=examples)
    perturbed = draw_perturbations(model, split, digits)
    return Measured(metrics | measure_width(model, split), arrays={**examples, **perturbed})


def _overlap(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    metrics, curves = measure_overlap(model, split)
    return Measured(metrics | measure_crowding(model, split), curves)


def _routing(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    part = EvaluationSplit(
        split.examples,
        batch_size=100,  # all votes of a batch are written out
        operations=split.operations,
        count=min(settings["images"], split.items),
    )
    return Measured({}, measure_routing(model, part, settings["iterations"]))


def _scores(model: nn.Module, split: EvaluationSplit, settings: Mapping[str, Any]) -> Measured:
    metrics, arrays = measure_scores(model, split)
    return Measured(metrics, arrays=arrays)


Measure = Callable[[nn.Module, EvaluationSplit, Mapping[str, Any]], Measured]

EVALUATIONS: dict[str, Measure] = {
    "fgsm": _fgsm,
    "reconstruct": _reconstruct,
    "overlap": _overlap,
    "routing": _routing,
    "scores": _scores,
}


ATTACKS = ("fgsm",)
"""Those that are attacks: their settings stand under `attacks`, the others' under `evaluations`."""


# What a kind cannot do without, in words and as the model's attribute. Scores are lengths: what
# other networks give is of another scale, and summing it would be another ensemble.
_NEEDED = {
    "reconstruct": ("decoder", "decoder"),
    "routing": ("routing", "transforms_KEID"),
    "scores": ("class capsules", "transforms_KEID"),
}


def evaluation_document(spec: RunSpec, kind: str) -> dict[str, Any]:
    """The resolved specification of an evaluation, the run's included.

    Raises:
        UsageError: There is no such evaluation, or the protocol does not ask for it.
    """
    if kind not in EVALUATIONS:
        raise UsageError(f"unknown evaluation {kind!r}; choose one of {', '.join(EVALUATIONS)}.")
    block = "attacks" if kind in ATTACKS else "evaluations"
    asked = getattr(getattr(spec.protocol, block), kind)
    if asked is None:
        raise UsageError(
            f"protocol {spec.protocol_name} asks for no {kind}; add it to "
            f"protocols.{spec.protocol_name}.{block} in params.yaml."
        )
    settings = asked.model_dump(mode="json", exclude={"models"})
    if kind in ATTACKS:
        own = assembly.classification_loss(spec)
        loss = attacked_loss(own, settings["loss"])
        attack = {**settings, "name": kind, "loss": loss, "epsilon_unit": "raw-pixels"}
        return spec.document() | {"attack": attack}
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
    if reason is None and record.inputs != trained_inputs(trained):
        reason = "the run has been trained anew"
    if reason is None and not all(
        has_sha256(folder / name, sha256) for name, sha256 in record.outputs.items()
    ):
        reason = "what it left beside its record is missing or damaged"
    return record, reason


def trained_inputs(trained: Record) -> dict[str, str]:
    """What an evaluation is computed from: the weights that the train record names."""
    return {weights.NAME: trained.outputs[weights.NAME]}


def run_evaluation(project: Project, spec: RunSpec, kind: str) -> Outcome:
    """Evaluate a trained run on the whole test set, or find that this was done.

    Args:
        project: Folders and device.
        spec: The run.
        kind: A key of `EVALUATIONS`.

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
        device = state.choose_device(project.device)
        with control.explained(spec.name, str(device)):
            record = _evaluate_and_record(project, spec, kind, document, trained, device)
        recording.keep_record(project, record)
        mlflow_sink.publish(project, [trained, record])
        return Outcome(record, path, done=True)


def _evaluate_and_record(
    project: Project,
    spec: RunSpec,
    kind: str,
    document: dict[str, Any],
    trained: Record,
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
        split = assembly.evaluation_split(project, spec, "test", device)
        settings = document["attack" if kind in ATTACKS else "evaluation"]
        measured = _measure(model, spec, split, kind, settings)
        _check_same_test(trained, measured)
        images = split.items * len(settings.get("epsilons", [0]))
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


def _measure(
    model: nn.Module, spec: RunSpec, split: EvaluationSplit, kind: str, settings: Mapping[str, Any]
) -> Measured:
    what, needed = _NEEDED.get(kind, ("", ""))
    if needed and getattr(model, needed, None) is None:
        raise CapsreproError(
            f"model {spec.model_name} has no {what}, so `{kind}` has nothing to show; "
            "choose a run of another model."
        )
    return EVALUATIONS[kind](model, split, settings)


def _check_same_test(trained: Record, measured: Measured) -> None:
    """An evaluation that counts the test errors again must find those of the run.

    Scores are kept rounded, so images whose best classes became equal may be counted otherwise.
    """
    own, again = (metrics.get("test_errors") for metrics in (trained.metrics, measured.metrics))
    tied = measured.metrics.get("tied_images", 0)
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
