"""`capsrepro doctor`: what is in order on this machine, and how to mend what is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from capsrepro.config import load_params
from capsrepro.data import DATASETS
from capsrepro.data.preparation import dataset_state
from capsrepro.errors import CapsreproError
from capsrepro.files import check_writable
from capsrepro.project import Project, find_project
from capsrepro.records import read_records


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        good: Nothing needs to be done.
        what: As found.
        remedy: What to do; empty when good or when it is only a choice.
    """

    good: bool
    what: str
    remedy: str = ""


@click.command()
def doctor() -> None:
    """Check environment, devices, data, mirror, DVC and MLflow; each trouble with its remedy.

    Exit code 1 when something needs mending.

    \b
    Example:
      capsrepro doctor
    """
    project = find_project()
    findings = [finding for check in CHECKS for finding in check(project)]
    for finding in findings:
        mark = "ok " if finding.good else "BAD"
        remedy = f" -> {finding.remedy}" if finding.remedy else ""
        click.echo(f"{mark} {finding.what}{remedy}")
    if not all(finding.good for finding in findings):
        click.get_current_context().exit(1)


def _environment(project: Project) -> Iterator[Finding]:
    yield Finding(True, f"Python {platform.python_version()} in {sys.prefix}")
    remedy = "run `make setup`, or `pip install 'capsrepro[train,pipeline]'`"
    for package in ("torch", "torchvision", "scipy", "dvc", "mlflow"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(False, f"{package} is not installed", remedy)
        else:
            yield Finding(True, f"{package} {version}")


def _devices(project: Project) -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    from capsrepro.training.state import choose_device

    yield Finding(True, f"{torch.get_num_threads()} CPU threads")
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    yield Finding(True, f"{count} CUDA devices {names}".rstrip())
    wanted = project.device
    try:
        choose_device(wanted)
    except CapsreproError as error:
        yield Finding(False, str(error), "unset CAPSREPRO_DEVICE or set it to cpu")


def _settings(project: Project) -> Iterator[Finding]:
    try:
        params = load_params(project.params)
    except CapsreproError as error:
        yield Finding(False, str(error), "mend it")
        return
    yield Finding(True, f"params.yaml with {len(params.protocols)} protocols")
    for folder in (project.results, project.checkpoints, project.data):
        try:
            check_writable(folder)
        except CapsreproError as error:
            yield Finding(False, str(error), "mend it")
    free = shutil.disk_usage(project.root).free / 1e9
    yield Finding(free > 2, f"{free:.0f} GB free on disk", "" if free > 2 else "free some space")
    try:
        records = read_records(project.results)
    except CapsreproError as error:
        yield Finding(False, str(error), "mend it")
        return
    yield Finding(True, f"{len(records)} records, every seal whole")


def _data(project: Project) -> Iterator[Finding]:
    mirror = project.mirror
    if mirror is None:
        yield Finding(True, "mirror: none (CAPSREPRO_MIRROR is not set)")
    else:
        there = "://" in mirror or Path(mirror).is_dir()
        remedy = "" if there else "set CAPSREPRO_MIRROR to a folder that exists, or to a URL"
        yield Finding(there, f"mirror: {mirror}", remedy)
    for name in DATASETS:
        state = dataset_state(name, project.data)
        remedy = "" if state == "prepared" else f"run `capsrepro datasets prepare {name}`"
        yield Finding(state != "broken", f"data set {name}: {state}", remedy)


def _tracking(project: Project) -> Iterator[Finding]:
    has_dvc = (project.root / ".dvc" / "config").is_file()
    yield Finding(has_dvc, "DVC repository", "" if has_dvc else "work in a clone of the project")
    if project.tracking_uri == "off" or importlib.util.find_spec("mlflow") is None:
        yield Finding(True, "MLflow mirror: off")
        return
    from capsrepro.running.mlflow_mirror import Mirror

    try:
        Mirror(project)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        yield Finding(
            False,
            f"MLflow at {project.tracking_uri}: {reason}",
            "check MLFLOW_TRACKING_URI, or delete mlflow.db and run `capsrepro mlflow-sync`",
        )
    else:
        yield Finding(True, f"MLflow at {project.tracking_uri}")


CHECKS: tuple[Callable[[Project], Iterator[Finding]], ...] = (
    _environment,
    _devices,
    _settings,
    _data,
    _tracking,
)
