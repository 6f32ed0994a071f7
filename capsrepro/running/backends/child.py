"""One run in a process of its own: `capsrepro run`, what it prints, and how it ended."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from capsrepro.errors import CapsreproError
from capsrepro.files import check_writable
from capsrepro.project import Project
from capsrepro.records import TRAIN, read_record, record_path
from capsrepro.running.parent import child_environment
from capsrepro.running.queue import Pending
from capsrepro.running.submission import Options, Outcome, log_path


@dataclass(frozen=True)
class Child:
    """A run that was started.

    Attributes:
        job: The run.
        device: Where it is.
        process: Its process; it ends with this one.
        started: When, on the monotonic clock.
        log: What it prints, behind what it printed at earlier times.
        skip: Bytes of earlier times.
    """

    job: Pending
    device: str
    process: subprocess.Popen[bytes]
    started: float
    log: Path
    skip: int


def start_child(project: Project, job: Pending, device: str, options: Options) -> Child:
    """Start a run.

    Raises:
        CapsreproError: Nothing can be written into its folder.
    """
    log = log_path(project, job.run)
    check_writable(log.parent)
    command = [sys.executable, "-m", "capsrepro", "run", job.run, "--device", device]
    command += ["--checkpoint-every", str(options.checkpoint_every)]
    command += ["--threads", str(options.threads)] if options.threads else []
    with log.open("ab") as file:
        skip = file.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=child_environment(),
            # A terminal sends Ctrl-C to its whole group; a run shall get it once, from here.
            process_group=0,
        )
    return Child(job, device, process, time.monotonic(), log, skip)


def outcome_of(project: Project, child: Child, stopping: bool) -> Outcome:
    """What became of a run whose process has ended.

    Args:
        project: Where its record is.
        child: The run.
        stopping: Whether it was told to stop.
    """
    name, code = child.job.run, child.process.returncode
    lines = list(_printed(child))
    ended = Outcome(
        name,
        "stopped" if stopping else "failed",
        _last_words(name, code, lines),
        child.log,
        child.device,
        time.monotonic() - child.started,
    )
    if code != 0:
        return ended
    try:
        record = read_record(record_path(project.run_folder(name), TRAIN))
    except CapsreproError as error:
        return replace(ended, state="failed", said=str(error))
    resumed = (re.search(r": resuming at step ([\d,]+)$", line) for line in lines)
    before = next((int(found[1].replace(",", "")) for found in resumed if found), 0)
    trained = 0 if "nothing to do" in ended.said else record.budget.steps - before
    return replace(
        ended,
        state="finished" if record.failure is None else "failed",
        images=trained * child.job.spec.protocol.recipe.batch_size,
        images_per_s=record.cost.images_per_s,
    )


def _printed(child: Child) -> Iterator[str]:
    """Lines that a run has printed this time."""
    with child.log.open("rb") as file:
        file.seek(child.skip)
        for line in file.read().decode(errors="replace").splitlines():
            if line.strip():
                yield line.strip()


def _last_words(run: str, code: int, lines: Sequence[str]) -> str:
    """The result of a run, or the sentence that it ended with."""
    prefix = f"{run}: " if code == 0 else "capsrepro: "
    said = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    if code < 0 and not said:
        hint = " (has the memory run out?)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return (said or lines or [f"ended with exit code {code}"])[-1]
