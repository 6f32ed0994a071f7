"""Worker processes that take turns, so that what disturbs one disturbs its rivals alike."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from capsrepro.benchmarks import Turn, Variant
from capsrepro.running.benchmark_plan import Job
from capsrepro.schema.base import Precision

_TURN_S = 0.3
"""Least length of a turn; a longer step has a turn of its own."""

_WORKER = [sys.executable, "-m", "capsrepro.running.benchmark_worker"]


class WorkerError(Exception):
    """A worker failed or died; the text is one phrase."""


class Worker:
    """One worker process; it starts importing at once.

    Args:
        job: What it is to measure.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, `close` does
        self._process = subprocess.Popen(
            _WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def send(self, **message: Any) -> None:
        """Tell it something; whether it is alive shows when it should answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(message), file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, Any]:
        """Its answer.

        Raises:
            WorkerError: It failed or died.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._how_it_died())
        answer: dict[str, Any] = json.loads(line)
        if "failure" in answer:
            raise WorkerError(answer["failure"])
        return answer

    def ask(self, **message: Any) -> dict[str, Any]:
        """Tell it something and wait for the answer."""
        self.send(**message)
        return self.receive()

    def _how_it_died(self) -> str:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            lack = ", perhaps for want of memory" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{lack}"
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        return f"its process ended with code {code}" + (f": {said[-1][:200]}" if said else "")

    def close(self) -> None:
        """End it and free what it holds."""
        if not self._errors.closed:
            self._process.kill()
            self._process.communicate()
            self._errors.close()


class Lane:
    """One point of a job, and what became of it.

    Args:
        workers: Of the job: one, or as many as are to have their turns at the same time.
        number: Of the point.
    """

    def __init__(self, workers: Sequence[Worker], number: int) -> None:
        self.workers, self.number = workers, number
        self.job = workers[0].job
        self.point = self.job.points()[number]
        self.steps = 0
        self.failure: str | None = None
        self.turns: list[Turn] = []
        self.facts: dict[str, Any] = {}

    def attempt(self, act: Callable[[], None]) -> None:
        """Do it unless the lane has failed already; its failure is noted and nobody else's."""
        if self.failure is None:
            try:
                act()
            except WorkerError as error:
                self.failure = str(error)

    def calibrate(self) -> None:
        """Settle how many steps make a turn."""
        asked = self.workers[0].ask(calibrate=self.number, least_s=_TURN_S)
        self.steps = asked["steps"]

    def turn(self) -> None:
        """Make one turn, all workers at the same time."""
        for worker in self.workers:
            worker.send(turn=self.number, steps=self.steps)
        answers = [worker.receive() for worker in self.workers]
        turns = [Turn(**answer["turn"]) for answer in answers]
        self.turns.append(
            Turn(
                steps=sum(turn.steps for turn in turns),
                wall_s=max(turn.wall_s for turn in turns),
                cpu_s=sum(turn.cpu_s for turn in turns),
            )
        )
        self.facts["peak_memory_mib"] = sum(answer["peak_memory_mib"] for answer in answers)

    def variant(self) -> Variant:
        """What is kept of it."""
        job, facts = self.job, self.facts
        alone = len(job.points()) == 1
        return Variant(
            model=job.model,
            what=job.what,
            precision=self.point.precision,
            batch_size=self.point.batch_size,
            together=job.together,
            axis=job.axis,
            value=self.point.value,
            deterministic=facts.get("deterministic"),
            setup_s=facts.get("setup_s") if alone else None,
            peak_memory_mib=facts.get("peak_memory_mib") if alone else None,
            imports_mib=facts.get("imports_mib") if alone else None,
            turns=tuple(self.turns),
            failure=self.failure,
        )


@dataclasses.dataclass
class Measured:
    """What one group gave.

    Attributes:
        variants: In the order of the jobs.
        flop_per_s: By precision, the best matrix product of every round.
        flop_per_image: Of the model; None where no floor was measured.
    """

    variants: list[Variant]
    flop_per_s: dict[Precision, list[float]]
    flop_per_image: float | None


def measure_group(
    teams: Sequence[Sequence[Worker]],
    rounds: int,
    device: str,
    threads: int | None,
    at_once: bool,
) -> Measured:
    """Prepare the workers of one group, then let them take turns.

    Args:
        teams: The workers of each job of one model, or of one axis.
        rounds: Turns of every lane; who begins changes from round to round.
        device: As `choose_device` takes it.
        threads: Of torch; its own choice when None.
        at_once: Whether they are prepared together: quicker where there are cores for all.
    """
    lanes = [Lane(team, n) for team in teams for n in range(len(team[0].job.points()))]
    _prepare(lanes, device, threads, at_once)
    for lane in lanes:
        lane.attempt(lane.calibrate)
    peaks: dict[Precision, list[float]] = {}
    for number in range(rounds):
        first = number % len(lanes)
        for lane in (*lanes[first:], *lanes[:first]):
            lane.attempt(lane.turn)
        for lane in lanes:
            if lane.job.what == "floor":
                lane.attempt(lambda lane=lane: _note_peak(lane, peaks))  # type: ignore[misc]
    flops = (lane.facts.get("flop_per_image") for lane in lanes)
    return Measured([lane.variant() for lane in lanes], peaks, next(filter(None, flops), None))


def _prepare(lanes: Sequence[Lane], device: str, threads: int | None, at_once: bool) -> None:
    def send(worker: Worker) -> None:
        worker.send(prepare=dataclasses.asdict(worker.job), device=device, threads=threads)

    workers = list(dict.fromkeys(worker for lane in lanes for worker in lane.workers))
    if at_once:
        for worker in workers:
            send(worker)
    for worker in workers:
        own = [lane for lane in lanes if worker in lane.workers]
        try:
            worker.receive()  # its greeting, after its imports
            if not at_once:
                send(worker)
            facts = worker.receive()
        except WorkerError as error:
            for lane in own:
                lane.failure = str(error)
        else:
            for lane in own:
                lane.facts = dict(facts)


def _note_peak(lane: Lane, peaks: dict[Precision, list[float]]) -> None:
    answer = lane.workers[0].ask(peak=lane.number)
    peaks.setdefault(lane.point.precision, []).append(answer["flop_per_s"])
