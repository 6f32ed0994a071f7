"""A benchmark from a request to its document."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from capsrepro.benchmarks import Benchmark, Machine
from capsrepro.errors import UsageError
from capsrepro.models.convolution import has_bfloat16
from capsrepro.project import Project
from capsrepro.records import Code
from capsrepro.running import provenance
from capsrepro.running.benchmark_plan import DEFAULT_MODELS, Job, model_jobs, scaling_jobs
from capsrepro.running.benchmark_turns import Measured, Worker, measure_group
from capsrepro.schema.base import Precision
from capsrepro.schema.params import Params
from capsrepro.training.state import choose_device

_PACKS = (2, 4)
"""How many runs are tried on one device at a time, beside one."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        models: PROTOCOL/MODEL; a few of the papers' when empty.
        precisions: Those that the device is fast in when empty.
        threads: CPU threads of torch; its own choice when None.
        rounds: Turns of every variant.
        batch_size: Images of a step; that of the protocol when None.
        scaling: Measure how cost grows in place of models.
        packed: Also let several processes make steps at a time.
    """

    models: tuple[str, ...]
    precisions: tuple[Precision, ...]
    threads: int | None
    rounds: int
    batch_size: int | None
    scaling: bool
    packed: bool = False


def run_benchmark(
    project: Project, params: Params, request: Request, say: Callable[[str], object]
) -> Benchmark:
    """Measure what is asked for.

    Args:
        project: Folders and device.
        params: Of the project.
        request: What to measure.
        say: Told how far it is.

    Raises:
        UsageError: The device does not have a precision.
        CapsreproError: The device does not exist on this machine.
        KeyboardInterrupt: Before the first model was measured; later, what there is is returned.
    """
    device = choose_device(project.device)
    precisions = _precisions(request, device)
    code = provenance.describe_code(project.root)
    groups = _groups(params, request, device.type, precisions)
    workers: list[Worker] = []
    measured: list[Measured] = []

    def start(jobs: Sequence[Job]) -> list[list[Worker]]:
        teams = [[Worker(job) for _ in range(job.together)] for job in jobs]
        workers.extend(worker for team in teams for worker in team)
        return teams

    try:
        # Beside a GPU there are cores enough to import for all groups at the same time.
        early = [start(jobs) for jobs in groups] if device.type == "cuda" else []
        for number, jobs in enumerate(groups):
            teams = early[number] if early else start(jobs)
            processes = sum(map(len, teams))
            say(f"{_name(jobs[0])}: {request.rounds} rounds, {processes} processes")
            measured.append(_measure(teams, request, device))
            for worker in itertools.chain.from_iterable(teams):
                worker.close()
    except KeyboardInterrupt:
        if not measured:
            raise
        say("interrupted; the models that were measured are kept")
    finally:
        for worker in workers:
            worker.close()
    return _document(device, code, request, measured)


def _name(job: Job) -> str:
    return f"{job.model} by {job.axis}" if job.axis else job.model


def _precisions(request: Request, device: torch.device) -> tuple[Precision, ...]:
    """Those asked for, or all that the device is fast in.

    Raises:
        UsageError: TF32 is asked for on a CPU.
    """
    if "tf32" in request.precisions and device.type == "cpu":
        raise UsageError("tf32 is a precision of GPUs; ask for float32 or bf16 with --precision.")
    fast: list[Precision] = ["float32"]
    if device.type == "cuda":
        fast.append("tf32")
    if has_bfloat16(device.type):
        fast.append("bf16")
    return request.precisions or tuple(fast)


def _groups(
    params: Params, request: Request, kind: str, precisions: tuple[Precision, ...]
) -> list[list[Job]]:
    if request.scaling:
        # On a GPU the precision that the papers' budgets would be trained in.
        chosen = request.precisions or (precisions[-1] if kind == "cuda" else "float32",)
        return scaling_jobs(kind, chosen[0])
    models: dict[str, int | None] = dict.fromkeys(request.models) or DEFAULT_MODELS[kind]
    if request.batch_size:
        models = dict.fromkeys(models, request.batch_size)
    return model_jobs(params, models, precisions, _PACKS if request.packed else ())


def _measure(teams: Sequence[Sequence[Worker]], request: Request, device: torch.device) -> Measured:
    at_once = device.type == "cuda"
    return measure_group(teams, request.rounds, str(device), request.threads, at_once)


def _document(
    device: torch.device, code: Code, request: Request, measured: Sequence[Measured]
) -> Benchmark:
    variants = [variant for group in measured for variant in group.variants]
    flop_per_s: dict[Precision, list[float]] = {}
    for group in measured:
        for precision, speeds in group.flop_per_s.items():
            flop_per_s.setdefault(precision, []).extend(speeds)
    environment = provenance.describe_environment(device, "as stated with each variant")
    return Benchmark(
        machine=Machine(
            kind="cuda" if device.type == "cuda" else "cpu",
            device=environment.device,
            platform=environment.platform,
            threads=request.threads or environment.threads,
            versions=environment.versions,
        ),
        code=code,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        rounds=request.rounds,
        matrix_flop_per_s={name: tuple(speeds) for name, speeds in flop_per_s.items()},
        flop_per_image={
            group.variants[0].model: group.flop_per_image
            for group in measured
            if group.flop_per_image is not None
        },
        variants=tuple(variants),
    )
