"""Runs on a cluster: job arrays of Slurm whose tasks call `capsrepro submit` on their node.

So the packing, logs, signals and checkpoints of a task are those of `local_pool`. A task that is
preempted goes back into the queue, and finds by itself what is still owed of its runs.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import digest, write_text
from capsrepro.project import Project
from capsrepro.running.queue import Pending
from capsrepro.running.submission import (
    Options,
    Outcome,
    Say,
    Submission,
    log_path,
    packed,
    with_data,
)

# Seconds before its time is up in which a task may save checkpoints.
_GRACE_S = 60


def submit_jobs(
    project: Project, jobs: Sequence[Pending], options: Options, say: Say
) -> Submission:
    """Write the scripts of all runs and hand them to `sbatch`; does not wait for them.

    Args:
        project: Where they run; the nodes must see its folders.
        jobs: What is owed; runs that are matched to others are an array of their own, which waits
            until that of the others has ended.
        options: How.
        say: Told what is submitted.

    Raises:
        UsageError: It is not said whether the tasks need a GPU, or an option is none.
        CapsreproError: There is no sbatch here, or it refuses.
    """
    device, further = _device(options.devices), _checked(options.slurm_options)
    if not options.dry_run and shutil.which("sbatch") is None:
        raise CapsreproError(
            "there is no sbatch on PATH; call this on a machine of the cluster, or add --dry-run "
            "to write the script that you would take there."
        )
    # Here, because the nodes of many clusters have no network.
    ready, outcomes = (list(jobs), []) if options.dry_run else with_data(project, jobs, say)
    job_ids: dict[str, str] = {}
    for part in _parts(ready):
        runs = packed(part, options.per_device)
        tasks = [runs[i : i + options.per_device] for i in range(0, len(runs), options.per_device)]
        text = _script(project, tasks, device, options, further)
        path = project.checkpoints / f"submit-{digest(text)[:12]}.sbatch"
        write_text(path, text)
        awaited = sorted({job_ids[job.after] for job in runs if job.after})
        command = ["sbatch", "--parsable"]
        command += [f"--dependency=afterany:{':'.join(awaited)}"] if awaited else []
        command.append(str(path))
        job_id = f"ID-OF-{path.stem}" if options.dry_run else _submit(command)
        say(shlex.join(command) + ("" if options.dry_run else f": job {job_id}"))
        job_ids |= dict.fromkeys((job.run for job in runs), job_id)
        outcomes += _outcomes(project, tasks, job_id, options.dry_run)
    manner = f"{options.per_device} at a time in each task, on {device}"
    return Submission(outcomes, manner)


def _parts(jobs: Sequence[Pending]) -> Iterator[list[Pending]]:
    """One array each: those that others wait for, these others, and all that have no such tie."""
    awaited = {job.after for job in jobs}
    yield from filter(
        None,
        (
            [job for job in jobs if job.run in awaited],
            [job for job in jobs if job.after],
            [job for job in jobs if job.run not in awaited and not job.after],
        ),
    )


def _device(request: str) -> str:
    if request not in ("cpu", "cuda"):
        raise UsageError(
            f"--devices {request} does not tell what a task of the cluster needs; "
            "give --devices cuda or --devices cpu."
        )
    return request


def _checked(options: Iterable[str]) -> list[str]:
    for option in options:
        if not option.startswith("-") or not option.isprintable():
            raise UsageError(
                f"{option!r} is no option of sbatch; write for example "
                '--slurm-option "--partition=gpu".'
            )
    return list(options)


def _script(
    project: Project,
    tasks: Sequence[Sequence[Pending]],
    device: str,
    options: Options,
    further: Sequence[str],
) -> str:
    """A batch script with one task of the array per line; later options win over earlier ones."""
    limit = f"%{options.slurm_limit}" if options.slurm_limit else ""
    asked = [
        "--job-name=capsrepro",
        f"--array=0-{len(tasks) - 1}{limit}",
        f"--output={project.checkpoints}/submit-%A_%a.log",
        "--open-mode=append",
        "--export=ALL",
        "--requeue",
        # To the process that `exec` leaves in the script's place.
        f"--signal=B:TERM@{_GRACE_S}",
    ]
    command = [sys.executable, "-m", "capsrepro", "submit", "--backend", "local"]
    command += ["--devices", device, "--per-device", str(options.per_device)]
    command += ["--checkpoint-every", str(options.checkpoint_every)]
    if device == "cuda":
        asked.append("--gres=gpu:1")
    if options.threads:
        asked.append(f"--cpus-per-task={options.threads * options.per_device}")
        command += ["--threads", str(options.threads)]
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH {shlex.quote(option)}" for option in asked]
    lines += [f"#SBATCH {option}" for option in further]
    lines += ["tasks=("]
    lines += [f"'{' '.join(job.run for job in task)}'" for task in tasks]
    lines += [")", f"cd {shlex.quote(str(project.root))} || exit 1"]
    # Not quoted: the words are names of runs, which hold neither blanks nor wildcards.
    lines += [f"exec {shlex.join(command)} ${{tasks[$SLURM_ARRAY_TASK_ID]}}"]
    return "\n".join(lines) + "\n"


def _submit(command: Sequence[str]) -> str:
    """Call sbatch; returns the number of the job."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise CapsreproError(
            f"sbatch refuses {Path(command[-1]).name} ({reason}); change what it complains of with "
            "--slurm-option, and cancel what the lines above submitted before you call again."
        )
    return done.stdout.strip().split(";")[0]


def _outcomes(
    project: Project, tasks: Sequence[Sequence[Pending]], job_id: str, dry_run: bool
) -> Iterator[Outcome]:
    for number, task in enumerate(tasks):
        for job in task:
            after = f", after {job.after}" if job.after else ""
            said = f"task {number} of {job_id}{after}"
            log = log_path(project, job.run)
            yield Outcome(job.run, "planned" if dry_run else "submitted", said, log)
