"""One variant of a benchmark in a process of its own: `python -m` this, and talk in JSON lines.

The parent writes one line and waits for one line. Between two of them the process does nothing, so
that those who have their turn are alone on the machine.

    {"prepare": job, "device": …, "threads": …}   build it and make its first steps
    {"calibrate": point, "least_s": …}            how many steps take so long
    {"turn": point, "steps": n}                   make them
    {"peak": point}                               the best matrix product of its precision, now

A point is its number in `Job.points()`.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from capsrepro.benchmarks import Turn
from capsrepro.config import RunSpec, load_params
from capsrepro.errors import CapsreproError
from capsrepro.project import find_project
from capsrepro.running.benchmark_floor import (
    MatrixPeak,
    find_products,
    make_floor_step,
    synchronise,
)
from capsrepro.running.benchmark_naive import make_naive_step
from capsrepro.running.benchmark_plan import Job, spec_of
from capsrepro.running.benchmark_step import Step, make_step
from capsrepro.running.provenance import peak_memory_mib
from capsrepro.schema.params import Params
from capsrepro.training.state import choose_device, keep_freed_memory

# So many first steps are not timed, or fewer where they take longer than this.
_WARM_UP_STEPS, _WARM_UP_S = 4, 2.0


class Bench:
    """What a job measures, built and warm.

    Args:
        params: Of the project.
        job: What to measure.
        device: Where.

    Attributes:
        flop_per_image: Of a floor; else None.
        imports_mib: Memory of the process, or of the GPU, before anything was built.
        setup_s: Time until all was warm.
    """

    def __init__(self, params: Params, job: Job, device: torch.device) -> None:
        started = time.perf_counter()
        self.device = device
        self.imports_mib = peak_memory_mib(device)
        self.peaks: list[MatrixPeak] = []
        self.flop_per_image: float | None = None
        specs = [spec_of(params, job, point) for point in job.points()]
        if job.what == "floor":
            self.steps = self._floors(specs)
        else:
            make = make_step if job.what == "step" else make_naive_step
            self.steps = [make(spec, device) for spec in specs]
        for step in self.steps:
            self._warm_up(step)
        self.setup_s = time.perf_counter() - started

    def _floors(self, specs: Sequence[RunSpec]) -> list[Step]:
        keep_freed_memory()
        products = find_products(specs[0], self.device)
        self.flop_per_image = products.flop_per_image
        precisions = [spec.protocol.recipe.precision for spec in specs]
        self.peaks = [MatrixPeak(precision, self.device) for precision in precisions]
        return [make_floor_step(products, precision, self.device) for precision in precisions]

    def _warm_up(self, step: Step) -> None:
        started = time.perf_counter()
        for _ in range(_WARM_UP_STEPS):
            step()
            synchronise(self.device)
            if time.perf_counter() - started > _WARM_UP_S:
                return

    def calibrate(self, point: int, least_s: float) -> int:
        """How many steps take at least so many seconds."""
        steps = 1
        while (wall_s := self.turn(point, steps).wall_s) < least_s / 4:
            steps *= 2
        return max(1, math.ceil(steps * least_s / wall_s))

    def turn(self, point: int, steps: int) -> Turn:
        """Make steps and time them."""
        step = self.steps[point]
        synchronise(self.device)
        cpu_s, started = _cpu_s(), time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(self.device)
        wall_s = time.perf_counter() - started
        return Turn(steps=steps, wall_s=wall_s, cpu_s=_cpu_s() - cpu_s)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def explain(error: Exception) -> str:
    """Why a variant failed, as one phrase."""
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        return "out of memory"
    if isinstance(error, CapsreproError):
        return str(error).rstrip(".")
    first = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {first}".rstrip(": .")


def _answer(bench: Bench, message: dict[str, Any]) -> dict[str, Any]:
    if "calibrate" in message:
        return {"steps": bench.calibrate(message["calibrate"], message["least_s"])}
    if "peak" in message:
        return {"flop_per_s": bench.peaks[message["peak"]].flop_per_s()}
    turn = bench.turn(message["turn"], message["steps"])
    return {"turn": turn.model_dump(), "peak_memory_mib": peak_memory_mib(bench.device)}


def _prepare(message: dict[str, Any]) -> tuple[Bench, dict[str, Any]]:
    if message["threads"]:
        torch.set_num_threads(message["threads"])
    fields = message["prepare"]
    listed = {key: tuple(fields[key]) for key in ("precisions", "values")}
    job = Job(**{**fields, **listed})
    params = load_params(find_project().params)
    bench = Bench(params, job, choose_device(message["device"]))
    return bench, {
        "setup_s": bench.setup_s,
        "imports_mib": bench.imports_mib,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "flop_per_image": bench.flop_per_image,
    }


def main() -> None:
    """Answer line by line until the parent closes the pipe."""
    # Whatever a library prints goes elsewhere: the pipe is for answers alone.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    bench: Bench | None = None
    print(json.dumps({}), file=channel, flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "prepare" in message:
                bench, answer = _prepare(message)
            else:
                assert bench is not None
                answer = _answer(bench, message)
        except Exception as error:
            answer = {"failure": explain(error)}
        print(json.dumps(answer), file=channel, flush=True)


if __name__ == "__main__":
    main()
