"""Where things are and how they run: folders, mirror, device. None of it enters a digest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from capsrepro.errors import UsageError


@dataclass(frozen=True)
class Project:
    """One checkout and the machine's settings for it.

    Attributes:
        root: The folder that holds params.yaml.
        data: Downloads and prepared arrays (`CAPSREPRO_DATA`, default `data/`).
        results: Records, tables, figures (`CAPSREPRO_RESULTS`, default `results/`).
        checkpoints: Resume states and weights (`CAPSREPRO_CHECKPOINTS`, default `checkpoints/`).
        mirror: Folder or URL that is asked before the official servers (`CAPSREPRO_MIRROR`).
        device: `auto`, `cpu`, `cuda` or `cuda:N` (`CAPSREPRO_DEVICE`).
        tracking_uri: MLflow server (`MLFLOW_TRACKING_URI`, default `sqlite:///mlflow.db`), or
            `off`.
    """

    root: Path
    data: Path
    results: Path
    checkpoints: Path
    mirror: str | None
    device: str
    tracking_uri: str

    @property
    def params(self) -> Path:
        """The configuration file."""
        return self.root / "params.yaml"

    @property
    def asked(self) -> Path:
        """What the configuration file asks of each protocol, for DVC."""
        return self.root / "pipelines" / "asked"

    def run_folder(self, run: str) -> Path:
        """Where the records of `protocol/model/seed-n` are."""
        return self.results / "runs" / run

    def checkpoint_folder(self, run: str) -> Path:
        """Where the resume states and weights of `protocol/model/seed-n` are."""
        return self.checkpoints / run

    def manifest_path(self, dataset: str) -> Path:
        """The manifest of a prepared data set, kept in git."""
        return self.results / "datasets" / f"{dataset}.json"


def find_project() -> Project:
    """Read the environment and look for params.yaml here and in the folders above.

    Raises:
        UsageError: No params.yaml is found.
    """
    here = Path.cwd()
    root = next((p for p in (here, *here.parents) if (p / "params.yaml").is_file()), None)
    if root is None:
        raise UsageError(
            f"no params.yaml in {here} or above it; run capsrepro inside a clone of the project."
        )

    def folder(variable: str, default: str) -> Path:
        return root / (os.environ.get(variable) or default)

    return Project(
        root=root,
        data=folder("CAPSREPRO_DATA", "data"),
        results=folder("CAPSREPRO_RESULTS", "results"),
        checkpoints=folder("CAPSREPRO_CHECKPOINTS", "checkpoints"),
        mirror=os.environ.get("CAPSREPRO_MIRROR") or None,
        device=os.environ.get("CAPSREPRO_DEVICE") or "auto",
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow.db",
    )
