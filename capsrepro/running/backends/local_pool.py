"""Runs on this machine: so many at a time on each device, each in a process of its own.

One run more or less changes no other: each is `capsrepro run`, with its own lock, checkpoints,
record and log. This process only starts them, waits, and passes signals on.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from capsrepro.data.progress import show_progress
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.project import Project
from capsrepro.running.backends.child import Child, outcome_of, start_child
from capsrepro.running.control import StopSignals
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

_LOOK_EVERY_S = 0.1


def run_jobs(project: Project, jobs: Sequence[Pending], options: Options, say: Say) -> Submission:
    """Run all of them; returns when the last process has ended.

    Args:
        project: Where they run.
        jobs: What is owed; a run waits for the one that it is matched to.
        options: How.
        say: Told of every start and end.

    Raises:
        UsageError: A device has no such name.
        CapsreproError: A device is not here.
    """
    devices = find_devices(options.devices)
    at_once = len(devices) * options.per_device
    threads = options.threads or _share_of_threads(devices, options.per_device)
    manner = f"{options.per_device} at a time on {_listed(devices)}"
    manner += f", {threads} CPU threads each" if threads else ""
    if options.dry_run:
        return Submission([_planned(project, job) for job in packed(jobs, at_once)], manner)
    ready, lost = with_data(project, jobs, say)
    ordered = packed(ready, at_once)
    pool = _Pool(project, ordered, devices, replace(options, threads=threads), say)
    started = time.monotonic()
    with (
        StopSignals() as signals,
        show_progress("submit", len(ordered), "run", wanted=True) as done,
    ):
        while pool.waiting or pool.children:
            if signals.received and not pool.stopping:
                pool.stop(signals.received)
            ended = len(pool.outcomes)
            pool.start_ready()
            pool.collect()
            done(len(pool.outcomes) - ended)
            time.sleep(_LOOK_EVERY_S)
    wall_s = time.monotonic() - started
    return Submission([*lost, *pool.outcomes.values()], manner, wall_s, signals.received)


def find_devices(request: str) -> list[str]:
    """Names of the devices that `auto` or a comma-separated list stands for.

    Raises:
        UsageError: One of them is no device that training runs on.
        CapsreproError: One is not here.
    """
    names = list(dict.fromkeys(request.split(",")))
    for name in names:
        if re.fullmatch(r"cpu|cuda(:\d{1,2})?", name) is None and names != ["auto"]:
            raise UsageError(
                f"{name!r} is no device; use auto, or cpu, cuda and cuda:N with commas between."
            )
    if names == ["cpu"]:
        return names
    import torch

    from capsrepro.training.state import choose_device

    if names == ["auto"]:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    return [str(choose_device(name)) for name in names]


def _share_of_threads(devices: Sequence[str], per_device: int) -> int | None:
    """CPU threads of each of several runs on the CPU; None leaves a run its usual number."""
    if "cpu" not in devices or per_device == 1:
        return None
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // per_device)


def _listed(devices: Sequence[str]) -> str:
    return devices[0] if len(devices) == 1 else f"each of {', '.join(devices)}"


def _planned(project: Project, job: Pending) -> Outcome:
    plan = f"{job.reason} ({job.cost})" + (f", after {job.after}" if job.after else "")
    return Outcome(job.run, "planned", plan, log_path(project, job.run))


class _Pool:
    """Who waits, who runs, and what became of the others."""

    def __init__(
        self,
        project: Project,
        jobs: Sequence[Pending],
        devices: Sequence[str],
        options: Options,
        say: Say,
    ) -> None:
        self.project, self.options, self.say = project, options, say
        self.total = len(jobs)
        self.waiting = list(jobs)
        self.free = list(devices) * options.per_device
        self.children: list[Child] = []
        self.outcomes: dict[str, Outcome] = {}
        self.stopping = False

    def start_ready(self) -> None:
        """Start what waits for nothing else, as long as there is room."""
        for job in list(self.waiting):
            reference = self.outcomes.get(job.after or "")
            if reference is not None and reference.state != "finished":
                self.waiting.remove(job)
                why = f"{job.after}, which it is matched to, {_ended(reference)}"
                self._close(Outcome(job.run, "not run", why, log_path(self.project, job.run)))
            elif self.free and (job.after is None or reference is not None):
                self.waiting.remove(job)
                self._start(job, self.free.pop(0))

    def _start(self, job: Pending, device: str) -> None:
        try:
            self.children.append(start_child(self.project, job, device, self.options))
        except CapsreproError as error:
            self.free.append(device)
            self._close(Outcome(job.run, "failed", str(error), log_path(self.project, job.run)))
            return
        number = self.total - len(self.waiting)
        self.say(f"{job.run}: started on {device} ({number} of {self.total})")

    def collect(self) -> None:
        """Note the runs that have ended."""
        for child in list(self.children):
            if child.process.poll() is not None:
                self.children.remove(child)
                self.free.append(child.device)
                self._close(outcome_of(self.project, child, self.stopping))

    def stop(self, number: int) -> None:
        """Pass a signal on and start nothing more; what runs saves a checkpoint."""
        self.stopping = True
        name = signal.Signals(number).name
        self.say(f"{name}: waiting for {len(self.children)} runs to save their checkpoints")
        for child in self.children:
            child.process.send_signal(number)
        for job in self.waiting:
            log = log_path(self.project, job.run)
            self.outcomes[job.run] = Outcome(job.run, "not run", f"{name} came first", log)
        self.waiting.clear()

    def _close(self, outcome: Outcome) -> None:
        self.outcomes[outcome.run] = outcome
        self.say(f"{outcome.run}: {_ended(outcome)}: {outcome.said}{_where(outcome)}")


def _ended(outcome: Outcome) -> str:
    if outcome.state == "not run":
        return "not run"
    word = outcome.state.upper() if outcome.state == "failed" else outcome.state
    return f"{word} after {outcome.seconds:.1f} s"


def _where(outcome: Outcome) -> str:
    return f" (log {outcome.log})" if outcome.state == "failed" else ""
