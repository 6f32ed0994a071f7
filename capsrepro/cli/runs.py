"""`capsrepro run` and `verify`: what trains."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import click

from capsrepro.config import RunSpec, load_params, resolve_run
from capsrepro.imports import lasting_imports
from capsrepro.metrics import METRICS, is_proportion, stem_of
from capsrepro.project import Project, find_project
from capsrepro.records import Record
from capsrepro.running.mlflow_sink import Sink
from capsrepro.running.parent import die_with_parent

Command = Callable[..., Any]


def where_options(command: Command) -> Command:
    """Options that say where a command runs; they change no specification."""
    command = click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads; the record names them."
    )(command)
    return click.option(
        "--device", help="auto, cpu, cuda or cuda:N [default: CAPSREPRO_DEVICE, else auto]"
    )(command)


def resolve(run: str, device: str | None, threads: int | None) -> tuple[Project, RunSpec]:
    """Project and specification; a wrong name is said before torch is imported."""
    project = find_project()
    spec = resolve_run(load_params(project.params), run)
    if device:
        project = dataclasses.replace(project, device=device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    return project, spec


@click.command()
@click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
@where_options
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    default=250,
    show_default=True,
    help="Steps between two checkpoints.",
)
@click.option("--weights", "need_weights", is_flag=True, help="Train again if they are not here.")
def run(
    run_name: str,
    device: str | None,
    threads: int | None,
    checkpoint_every: int,
    need_weights: bool,
) -> None:
    """Train and test one run and write its record.

    Resumes from its checkpoint by itself, and does nothing when a current record exists.

    \b
    Example:
      capsrepro run digits/capsnet-r3-recon/seed-0
    """
    die_with_parent()
    project, spec = resolve(run_name, device, threads)
    with Sink(project) as sink:
        with lasting_imports():
            from capsrepro.running.experiment import run_experiment

        outcome = run_experiment(
            project, spec, sink, checkpoint_every=checkpoint_every, need_weights=need_weights
        )
    record = outcome.record
    if record.failure is not None:
        what = f"failed at step {record.failure.step:,}: {record.failure.reason}"
    else:
        what = ", ".join(
            f"{METRICS[name].title} {value:.2f} % ({_counts(record, name)})"
            for name, value in record.metrics.items()
            if is_proportion(name)
        )
    prefix = "" if outcome.done else "nothing to do, its record is current: "
    click.echo(f"{spec.name}: {prefix}{what}; record {shown(project, outcome.path)}")


def _counts(record: Record, metric: str) -> str:
    stem = stem_of(metric)
    errors, images = record.metrics[f"{stem}_errors"], record.metrics[f"{stem}_images"]
    return f"{errors:.0f} wrong of {images:,.0f} images"


@click.command()
@click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
@where_options
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def verify(run_name: str, device: str | None, threads: int | None, as_json: bool) -> None:
    """Replay the first steps of a recorded run and say whether they are the same.

    On the same machine with the same program they must be equal bit for bit; otherwise within the
    tolerance it states. Exit code 1 when they are not.

    \b
    Example:
      capsrepro verify mnist-short/capsnet-r3-recon/seed-0
    """
    project, spec = resolve(run_name, device, threads)
    with lasting_imports():
        from capsrepro.running.replay import replay

    found = replay(project, spec)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found) | {"agrees": found.agrees}))
    else:
        machine = "on the same machine" if found.same_machine else "on another machine"
        if not found.same_program:
            machine += ", by another version of the program"
        verdict = "the same bit for bit" if found.identical else "not the same bits"
        click.echo(
            f"{spec.name}: {'agrees' if found.agrees else 'DIFFERS'}: first {found.steps} losses, "
            f"{machine}, are {verdict} (largest relative difference in the first half "
            f"{found.largest_difference:.1e}, accepted otherwise {found.tolerance:.0e})"
        )
    if not found.agrees:
        click.get_current_context().exit(1)


def shown(project: Project, path: Any) -> str:
    """A path as a person in the project's folder would write it."""
    return str(path.relative_to(project.root) if path.is_relative_to(project.root) else path)
