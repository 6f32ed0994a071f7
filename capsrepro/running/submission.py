"""Several runs at once: which ones, in which order, and what became of each. Needs no torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from capsrepro.config import RunSpec, requested_runs, resolve_run
from capsrepro.data.preparation import prepare_dataset
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.project import Project
from capsrepro.running.queue import Pending, references_first
from capsrepro.schema.params import Params

Say = Callable[[str], None]
"""Takes one line for the person who waits."""


@dataclass(frozen=True)
class Options:
    """Where and how runs are submitted; none of it enters a digest.

    Attributes:
        devices: Comma-separated devices, or `auto`; on a cluster, what each task is given.
        per_device: Runs that share a device.
        threads: CPU threads of each run; None leaves them to the backend.
        checkpoint_every: Steps between two checkpoints.
        dry_run: Only say what would be done.
        slurm_options: Further options of sbatch, as `--partition=gpu`.
        slurm_limit: Most tasks of a Slurm array at a time; None for no limit.
    """

    devices: str
    per_device: int
    threads: int | None
    checkpoint_every: int
    dry_run: bool
    slurm_options: tuple[str, ...] = ()
    slurm_limit: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        run: Its name.
        state: `stopped` is by a signal, with a checkpoint from which the next call goes on.
        said: Its result, or the first line of its error, or why it was not run.
        log: What it printed, this time and before.
        device: Where it was; None when it was not started here.
        seconds: From its start to its end.
        images: Trained on in this time.
        images_per_s: Of its training alone, as its record has it; None without a record.
    """

    run: str
    state: Literal["finished", "failed", "stopped", "not run", "submitted", "planned"]
    said: str
    log: Path
    device: str | None = None
    seconds: float = 0.0
    images: int = 0
    images_per_s: float | None = None


@dataclass(frozen=True)
class Submission:
    """What a backend made of the runs.

    Attributes:
        outcomes: One per run.
        manner: How many at a time and where, in words.
        wall_s: From the start of the first to the end of the last.
        received: The signal that ended it early, 0 when there was none.
    """

    outcomes: list[Outcome]
    manner: str
    wall_s: float = 0.0
    received: int = 0

    @property
    def images(self) -> int:
        """Trained on by all runs."""
        return sum(outcome.images for outcome in self.outcomes)

    @property
    def images_per_s(self) -> float | None:
        """Over all runs, their start, evaluation and waiting included."""
        return self.images / self.wall_s if self.images else None

    def runs_that(self, state: str) -> list[str]:
        """Names of the runs with this outcome."""
        return [outcome.run for outcome in self.outcomes if outcome.state == state]

    def document(self) -> dict[str, object]:
        """As JSON."""
        runs = [asdict(outcome) | {"log": str(outcome.log)} for outcome in self.outcomes]
        totals = {"images": self.images, "images_per_s": self.images_per_s}
        return {"manner": self.manner, "wall_s": self.wall_s, **totals, "runs": runs}


def log_path(project: Project, run: str) -> Path:
    """Where a submitted run prints to."""
    return project.checkpoint_folder(run) / "submit.log"


def choose_runs(params: Params, patterns: Sequence[str]) -> list[RunSpec]:
    """The runs that patterns name, without their order changed; all requested ones for none.

    Args:
        params: What is asked for.
        patterns: Each a protocol, PROTOCOL/MODEL, the name of a run, or a name with the wildcards
            of a shell. A whole name need not be among those that params.yaml asks for.

    Raises:
        UsageError: A pattern names no run.
    """
    requested = list(references_first(requested_runs(params)))
    if not patterns:
        return requested
    chosen: dict[str, RunSpec] = {}
    for pattern in patterns:
        found = [spec for spec in requested if _is_named(spec, pattern)]
        if not found and pattern.count("/") == 2 and not set(pattern) & set("*?["):
            found = [resolve_run(params, pattern)]
        if not found:
            raise UsageError(
                f"{pattern!r} names none of the runs that params.yaml asks for; give a protocol, "
                "PROTOCOL/MODEL, a run, or a pattern such as 'mnist-short/*/seed-0'."
            )
        chosen |= {spec.name: spec for spec in found}
    return list(chosen.values())


def _is_named(spec: RunSpec, pattern: str) -> bool:
    names = (spec.protocol_name, f"{spec.protocol_name}/{spec.model_name}")
    return pattern in names or fnmatchcase(spec.name, pattern)


def packed(jobs: Iterable[Pending], at_once: int) -> list[Pending]:
    """The order in which they are started.

    One at a time, as they are listed. Otherwise those that others wait for come first, then the
    longest, so that the devices come to rest together; what has no estimate may be long.
    """
    listed = list(jobs)
    if at_once == 1:
        return listed
    awaited = {job.after for job in listed}

    def place(job: Pending) -> tuple[bool, float]:
        return job.run not in awaited, -math.inf if job.cost_s is None else -job.cost_s

    return sorted(listed, key=place)


def with_data(
    project: Project, jobs: Sequence[Pending], say: Say
) -> tuple[list[Pending], list[Outcome]]:
    """Have the data sets of all runs prepared here, once, before any of them starts.

    Returns:
        The runs whose data are here, and the outcomes of those whose data cannot be had.
    """
    troubles = {}
    for spec in {job.spec.protocol.dataset: job.spec for job in jobs}.values():
        name = spec.protocol.dataset
        try:
            prepare_dataset(
                name,
                spec.dataset_parameters,
                project.data,
                mirror=project.mirror,
                progress=sys.stderr.isatty(),
                manifest_copy=project.manifest_path(name),
            )
        except CapsreproError as error:
            troubles[name] = str(error)
            say(f"data set {name}: FAILED: {error}")
    ready = [job for job in jobs if job.spec.protocol.dataset not in troubles]
    return ready, [
        Outcome(job.run, "not run", troubles[name], log_path(project, job.run))
        for job in jobs
        if (name := job.spec.protocol.dataset) in troubles
    ]
