"""`capsrepro submit`: all that is pending, several runs at once, here or on a cluster."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click
from tqdm import tqdm

from capsrepro.cli.runs import shown
from capsrepro.cli.state import data_digests
from capsrepro.config import load_params
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.project import Project, find_project
from capsrepro.running.backends import BACKENDS
from capsrepro.running.control import InterruptedRunError
from capsrepro.running.parent import die_with_parent
from capsrepro.running.queue import pending_runs
from capsrepro.running.submission import Options, Submission, choose_runs, log_path


@click.command()
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    default="local",
    show_default=True,
    help="This machine, or a cluster.",
)
@click.option(
    "--devices",
    help="auto (all GPUs, else the CPU), or names with commas between, as cuda:0,cuda:1; on Slurm "
    "cuda or cpu, what each task is given  [default: CAPSREPRO_DEVICE, else auto]",
)
@click.option(
    "--per-device",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs that share a device.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of each run; the record names them  [default: on the CPU, its cores divided]",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    default=250,
    show_default=True,
    help="Steps between two checkpoints.",
)
@click.option("--slurm-option", "slurm_options", multiple=True, help="Passed on to sbatch.")
@click.option("--slurm-limit", type=click.IntRange(min=1), help="Most tasks of an array at a time.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; on Slurm, write the script.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def submit(
    patterns: tuple[str, ...], backend: str, devices: str | None, as_json: bool, **chosen: Any
) -> None:
    """Run all that is pending, or what of it PATTERN names, several runs at once.

    PATTERN is a protocol, PROTOCOL/MODEL, a run, or a name with the wildcards of a shell. A run
    that is matched to another waits for it. What a run prints is in checkpoints/RUN/submit.log.
    Killed or interrupted, call it again: every run resumes. Exit code 1 when a run failed.

    \b
    Example:
      capsrepro submit mnist-short --devices cuda:0,cuda:1 --per-device 2
      capsrepro submit --backend slurm --devices cuda --slurm-option "--partition=gpu"
    """
    die_with_parent()
    project = find_project()
    options = Options(devices=devices or project.device, **chosen)
    if backend != "slurm" and (options.slurm_options or options.slurm_limit):
        raise UsageError("--slurm-option and --slurm-limit need --backend slurm; add it.")

    def say(line: str) -> None:
        # Above the bar, where there is one.
        tqdm.write(line, file=sys.stderr if as_json else sys.stdout)
        sys.stdout.flush()

    wanted = choose_runs(load_params(project.params), patterns)
    jobs = pending_runs(project, wanted, data_digests(project))
    done = Submission([], "nothing is pending")
    if jobs:
        done = BACKENDS[backend](project, jobs, options, say)
    if as_json:
        click.echo(json.dumps(done.document(), indent=1))
    else:
        for line in _shown(done):
            click.echo(line)
    _exit(project, done)


def _shown(done: Submission) -> Iterator[str]:
    """What was planned, and how many runs came to which end."""
    for outcome in done.outcomes:
        if outcome.state == "planned":
            yield f"{outcome.run}: {outcome.said}"
    counts = Counter(outcome.state for outcome in done.outcomes)
    ends = ", ".join(f"{count} {state}" for state, count in counts.items())
    yield f"{ends}: {done.manner}" if ends else done.manner
    if done.images_per_s is not None:
        yield (
            f"{done.images:,} images in {done.wall_s:.1f} s, {done.images_per_s:,.0f} images/s "
            "over all runs, their start and evaluation included"
        )


def _exit(project: Project, done: Submission) -> None:
    """Say in one sentence why not all is well, if it is not."""
    failed, idle = done.runs_that("failed"), done.runs_that("not run")
    if done.received:
        raise InterruptedRunError(
            f"interrupted; {len(done.runs_that('stopped'))} runs were stopped and {len(idle)} not "
            "started, call the same command again to resume them.",
            done.received,
        )
    if not failed and not idle:
        return
    troubles = [f"{run}, see {shown(project, log_path(project, run))}" for run in failed]
    troubles += [f"{run}, which was not run" for run in idle]
    raise CapsreproError(
        f"{len(troubles)} of {len(done.outcomes)} runs failed ({'; '.join(troubles)}): mend what "
        "the lines above say, then call the same command again."
    )
