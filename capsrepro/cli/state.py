"""`capsrepro pending` and `mlflow-sync`: what is owed, and the mirror of what is there."""

from __future__ import annotations

import json

import click

from capsrepro.config import load_params, requested_runs
from capsrepro.data import DATASETS
from capsrepro.data.prepared import read_manifest
from capsrepro.errors import CapsreproError
from capsrepro.project import Project, find_project


def data_digests(project: Project) -> dict[str, str]:
    """Digest of every data set that is prepared here."""
    digests = {}
    for name in DATASETS:
        try:
            digests[name] = read_manifest(name, project.data)["digest"]
        except CapsreproError:
            continue
    return digests


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--check", is_flag=True, help="Exit code 1 when anything is pending.")
def pending(as_json: bool, check: bool) -> None:
    """List the runs that params.yaml asks for and no current record has.

    Each with the reason, and the time it would take going by earlier records of the same model.

    \b
    Example:
      capsrepro pending --json
    """
    from capsrepro.running.queue import pending_runs

    project = find_project()
    runs = pending_runs(project, requested_runs(load_params(project.params)), data_digests(project))
    if as_json:
        click.echo(json.dumps([run.document() for run in runs], indent=1))
    else:
        for run in runs:
            click.echo(f"{run.run}: {run.reason} ({run.cost})")
        click.echo(f"{len(runs)} runs pending" if runs else "nothing is pending")
    if check and runs:
        click.get_current_context().exit(1)


@click.command("mlflow-sync")
def mlflow_sync() -> None:
    """Bring the MLflow server up to date with the records; run twice, it changes nothing.

    \b
    Example:
      MLFLOW_TRACKING_URI=http://localhost:5000 capsrepro mlflow-sync
    """
    from capsrepro.running.mlflow_mirror import sync

    project = find_project()
    published, total = sync(project)
    click.echo(f"{published} of {total} runs published to {project.tracking_uri}")
