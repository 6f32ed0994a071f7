"""`capsrepro asked`: params.yaml as the stages of DVC compare it."""

from __future__ import annotations

import click

from capsrepro.asked import write_asked
from capsrepro.config import load_params
from capsrepro.project import find_project


@click.command()
def asked() -> None:
    """Write what params.yaml asks of each protocol to pipelines/asked, for DVC.

    Any `dvc repro` calls it when params.yaml has changed; `dvc status` alone does not.

    \b
    Example:
      capsrepro asked && dvc status
    """
    project = find_project()
    written = write_asked(load_params(project.params), project.asked)
    click.echo(f"{len(written)} files written to {project.asked}")
