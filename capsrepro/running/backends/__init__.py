"""The table of places where submitted runs can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capsrepro.project import Project
from capsrepro.running.backends import local_pool, slurm
from capsrepro.running.queue import Pending
from capsrepro.running.submission import Options, Say, Submission

Backend = Callable[[Project, Sequence[Pending], Options, Say], Submission]

BACKENDS: dict[str, Backend] = {
    "local": local_pool.run_jobs,
    "slurm": slurm.submit_jobs,
}
