"""One run from its name to its record: data, model, training, test, record, MLflow."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from capsrepro.config import RunSpec
from capsrepro.data.prepared import Manifest, read_manifest
from capsrepro.errors import CapsreproError
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.files import check_writable, digest, sha256_of_file, write_text
from capsrepro.metrics import stem_of
from capsrepro.project import Project
from capsrepro.records import HISTORY, TRAIN, Cost, Failure, Record, find_record, record_path
from capsrepro.running import (
    assembly,
    control,
    matching,
    probes,
    provenance,
    recording,
    weights,
)
from capsrepro.running.mlflow_sink import Sink
from capsrepro.schema.params import StopRule
from capsrepro.training import loop, state
from capsrepro.training.optimisation import make_optimizer


@dataclass(frozen=True)
class Outcome:
    """What `run_experiment` did.

    Attributes:
        record: The current record of the run.
        path: Where it is.
        done: False when it was there already.
    """

    record: Record
    path: Path
    done: bool


def manifest_here(project: Project, spec: RunSpec) -> Manifest | None:
    """The manifest of the prepared data set, or None when it is not prepared on this machine."""
    try:
        return read_manifest(spec.protocol.dataset, project.data)
    except CapsreproError:
        return None


def current_record(project: Project, spec: RunSpec) -> tuple[Record | None, str | None]:
    """The train record of a run and why it is not current (None when it is)."""
    find, data_digest = _finder(project), _data_digest(project, spec)
    return find(spec.name), matching.why_stale(spec, data_digest, find)


def _finder(project: Project) -> matching.Find:
    """Train records by the name of their run, each read from its file once."""
    return cache(lambda run: find_record(project.run_folder(run), TRAIN))


def _data_digest(project: Project, spec: RunSpec) -> str | None:
    manifest = manifest_here(project, spec)
    return manifest["digest"] if manifest else None


class _Watcher:
    """Checkpoints, progress, MLflow and signals, between the loop's steps."""

    def __init__(
        self,
        folder: Path,
        key: str,
        checkpoint_every: int,
        progress: control.Progress,
        sink: Sink,
        signals: control.StopSignals,
    ) -> None:
        self.folder, self.key = folder, key
        self.checkpoint_every = checkpoint_every
        self.progress, self.sink, self.signals = progress, sink, signals

    def on_step(self, training: state.TrainingState) -> bool:
        self.progress.step()
        stop = self.signals.received != 0
        if stop or training.step % self.checkpoint_every == 0:
            state.save_checkpoint(self.folder, training, self.key)
        return not stop

    def on_epoch(self, entry: dict[str, float]) -> None:
        self.progress.epoch(entry)
        self.sink.log_epoch(entry)


def run_experiment(
    project: Project,
    spec: RunSpec,
    sink: Sink,
    *,
    checkpoint_every: int,
    need_weights: bool = False,
) -> Outcome:
    """Train and test one run, or find that its record is current.

    Args:
        project: Folders and device.
        spec: The resolved run.
        sink: Where it is shown while it trains, and published.
        checkpoint_every: Steps between two checkpoints.
        need_weights: Train again when the record is current but its very weights are not here.

    Returns:
        The record and whether anything had to be done.

    Raises:
        CapsreproError: Another process runs it, the run that it is matched to has no accuracy,
            data cannot be had, memory runs out, or a signal came (`InterruptedRunError`, with a
            checkpoint saved).
    """
    folder = project.checkpoint_folder(spec.name)
    with control.exclusive(folder, spec.name):
        record, reason = current_record(project, spec)
        path = record_path(project.run_folder(spec.name), TRAIN)
        current = record if reason is None else None
        if current and (not need_weights or weights.has_weights(folder, current)):
            recording.refresh_index(project)
            return Outcome(current, path, done=False)
        # All that can be known to fail is tried before anything is downloaded.
        assembly.check_test_images(spec)
        rule = matching.settle(spec, _data_digest(project, spec), _finder(project))
        device = state.choose_device(project.device)
        check_writable(project.run_folder(spec.name))
        with control.explained(spec.name, str(device)):
            return _train_and_record(project, spec, sink, rule, device, checkpoint_every)


def _train_and_record(
    project: Project,
    spec: RunSpec,
    sink: Sink,
    rule: StopRule | None,
    device: torch.device,
    checkpoint_every: int,
) -> Outcome:
    # Described now: the files may be edited while the run trains.
    code = provenance.describe_code(project.root)
    state.keep_freed_memory()
    state.make_deterministic()
    environment = provenance.describe_environment(device, spec.protocol.recipe.precision)
    model = assembly.build_model(spec, device)
    if manifest_here(project, spec) is None:
        assembly.try_step(model, spec, device)
    manifest = assembly.prepare_data(project, spec)
    training = state.TrainingState(model, make_optimizer(model, spec.protocol.recipe))
    # A checkpoint of another program, data set or machine would make a record of mixed origin.
    origin = [spec.digest, code.science_digest, manifest["digest"], environment.model_dump()]
    metrics = matching.matched_accuracy(rule)
    key = digest([*origin, *metrics.values()])
    _resume(project, spec, training, key)
    energy_before = provenance.energy_j(device)
    failure = _train(project, spec, sink, rule, training, checkpoint_every, key)
    folder = project.checkpoint_folder(spec.name)
    if failure is None:
        state.save_checkpoint(folder, training, key)
        metrics |= _measure(project, spec, training)
    outputs = {weights.NAME: weights.save_weights(model, folder)}
    outputs |= _write_history(project.run_folder(spec.name), training)
    record = recording.make_record(
        spec,
        TRAIN,
        code=code,
        environment=environment,
        manifest=manifest,
        specification=spec.document(),
        spec_digest=spec.digest,
        steps=training.step,
        failure=failure,
        inputs={},
        outputs=outputs,
        metrics=metrics,
        curves={"first_losses": [x for x in training.first_losses if math.isfinite(x)]},
        cost=_cost(spec, training, energy_before),
    )
    path = recording.keep_record(project, record)
    for old in state.checkpoint_paths(folder):
        old.unlink(missing_ok=True)
    sink.publish(spec.name)
    return Outcome(record, path, done=True)


def _resume(project: Project, spec: RunSpec, training: state.TrainingState, key: str) -> None:
    """Go on from the newest checkpoint of this origin, and say so."""
    folder = project.checkpoint_folder(spec.name)
    checkpoint = state.load_checkpoint(folder, key)
    if checkpoint is not None:
        training.restore(checkpoint)
        print(f"{spec.name}: resuming at step {training.step:,}", flush=True)
    elif state.checkpoint_paths(folder):
        print(
            f"{spec.name}: its checkpoints are damaged, or of another specification, program, "
            "data set or machine; starting anew",
            flush=True,
        )


def _cost(spec: RunSpec, training: state.TrainingState, energy_before: float | None) -> Cost:
    seen = training.step * spec.protocol.recipe.batch_size
    energy_after = provenance.energy_j(training.device)
    known = energy_before is not None and energy_after is not None and training.sessions == 1
    return Cost(
        wall_time_s=training.wall_time_s,
        images_per_s=seen / training.wall_time_s,
        peak_memory_mib=provenance.peak_memory_mib(training.device),
        energy_j=(energy_after or 0.0) - (energy_before or 0.0) if known else None,
        sessions=training.sessions,
    )


def _train(
    project: Project,
    spec: RunSpec,
    sink: Sink,
    rule: StopRule | None,
    training: state.TrainingState,
    checkpoint_every: int,
    key: str,
) -> Failure | None:
    """Train to the end; a divergence is a result, a signal is an exception."""
    recipe = spec.protocol.recipe
    folder = project.checkpoint_folder(spec.name)
    progress = control.Progress(spec.name, recipe, training.step)
    with control.StopSignals() as signals:
        sink.start(spec.name, spec.digest, training.history)
        watcher = _Watcher(folder, key, checkpoint_every, progress, sink, signals)
        try:
            stream = assembly.training_stream(project, spec, training.device)
            probe = probes.epoch_probe(project, spec, training)
            enough = probes.enough(rule)
            finished = loop.train(training, stream, recipe, watcher, probe, enough)
        except loop.DivergedError as error:
            return Failure(reason=f"{error}", step=error.step)
        finally:
            progress.close()
    if not finished:
        raise control.InterruptedRunError(
            f"{spec.name} was interrupted at step {training.step:,} of {recipe.steps:,}; its "
            f"checkpoint is saved, run `capsrepro run {spec.name}` to resume.",
            signals.received,
        )
    if rule is not None and not enough(training.history[-1]):
        reason = f"never reached an accuracy of {rule.accuracy_pct:g} % on {rule.split}"
        reason += f", that of {rule.accuracy_of}" if rule.accuracy_of else ""
        return Failure(reason=reason, step=training.step)
    return None


def _measure(project: Project, spec: RunSpec, training: state.TrainingState) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, metric in assembly.measured_splits(spec).items():
        count = spec.protocol.test_images if name == "test" else None
        split = assembly.evaluation_split(project, spec, name, training.device, count)
        metrics |= _named(measure_accuracy(training.model, split), metric)
    last = training.history[-1]
    metrics |= {key: last[key] for key in ("train_loss", "train_error_pct")}
    metrics["parameters"] = sum(p.numel() for p in training.model.parameters())
    return metrics


def _named(measured: dict[str, float], metric: str) -> dict[str, float]:
    """The same measurement under the name that the claims have for it, error or accuracy."""
    if metric == "test_error_pct":
        return measured
    stem = stem_of(metric)
    error_pct = measured["test_error_pct"]
    return {
        metric: error_pct if metric.endswith("_error_pct") else 100 - error_pct,
        f"{stem}_errors": measured["test_errors"],
        f"{stem}_images": measured["test_images"],
    }


def _write_history(run_folder: Path, training: state.TrainingState) -> dict[str, str]:
    """One JSON line per epoch beside the record; returns its SHA-256 by name."""
    lines = "".join(json.dumps(entry) + "\n" for entry in training.history)
    write_text(run_folder / HISTORY, lines)
    return {HISTORY: sha256_of_file(run_folder / HISTORY)}
