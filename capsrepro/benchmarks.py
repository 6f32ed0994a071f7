"""Benchmarks: what `capsrepro bench` measured on one machine, and the file that keeps it.

A benchmark is raw: the seconds of every turn of every variant. Medians, shares and ratios are made
of it in capsrepro/report/, so that a table can always be drawn again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from capsrepro.files import write_json
from capsrepro.records import Code, read_document
from capsrepro.schema.base import Precision

What = Literal["step", "naive", "floor"]
"""A training step as it runs; the same written naively; its convolutions and matrices alone."""

Axis = Literal["batch_size", "primary_types", "routing_iterations", "classes"]
"""What is varied to see how the cost of a step grows."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Turn(_Part):
    """One turn of a variant, while all others waited."""

    steps: int = Field(gt=0)
    wall_s: float = Field(gt=0)
    cpu_s: float = Field(ge=0, description="user and system time of the process, all threads")


class Variant(_Part):
    """One way to make the steps of one model, in a process of its own.

    Turns of variants of one model that have the same place in `turns` are of the same round.
    """

    model: str = Field(description="PROTOCOL/MODEL of params.yaml")
    what: What
    precision: Precision = Field(description="of the convolutions")
    batch_size: int = Field(gt=0)
    together: int = Field(
        1, gt=0, description="processes that made such steps at a time; turns are of all of them"
    )
    axis: Axis | None = Field(None, description="what was varied, where scaling was measured")
    value: int | None = Field(None, description="to what")
    deterministic: bool | None = Field(None, description="whether the same bits were asked for")
    setup_s: float | None = Field(None, description="building, compiling, first steps")
    peak_memory_mib: float | None = Field(
        None, description="of the GPU as torch allocated it, else of the whole process"
    )
    imports_mib: float | None = Field(
        None, description="of the peak memory: of the process before it built anything"
    )
    turns: tuple[Turn, ...] = ()
    failure: str | None = Field(None, description="why there are fewer turns than rounds")


class Machine(_Part):
    """What it ran on."""

    kind: Literal["cpu", "cuda"]
    device: str
    platform: str
    threads: int = Field(description="CPU threads of torch")
    versions: dict[str, str | None]


class Benchmark(_Part):
    """All that one call measured."""

    schema_version: Literal[1] = 1
    machine: Machine
    code: Code
    created_at: str
    rounds: int = Field(gt=0)
    matrix_flop_per_s: dict[Precision, tuple[float, ...]] = Field(
        description="best matrix product, by round of every model"
    )
    flop_per_image: dict[str, float] = Field(
        description="by model: multiplications and additions of the matrix products and "
        "convolutions of a training step, votes written out"
    )
    variants: tuple[Variant, ...]


def benchmark_path(results: Path, benchmark: Benchmark) -> Path:
    """Where a benchmark of this machine is kept; scaling and packed runs have their own files."""
    slug = re.sub(r"[^a-z0-9]+", "-", benchmark.machine.device.lower()).strip("-")
    if any(variant.axis for variant in benchmark.variants):
        slug += "-scaling"
    elif any(variant.together > 1 for variant in benchmark.variants):
        slug += "-packed"
    return results / "benchmarks" / f"{slug}.json"


def write_benchmark(path: Path, benchmark: Benchmark) -> None:
    """Write it atomically.

    Raises:
        CapsreproError: The folder cannot be written to.
    """
    write_json(path, benchmark.model_dump(mode="json"))


def read_benchmark(path: Path) -> Benchmark:
    """Read and check one.

    Raises:
        CapsreproError: The file is unreadable, no JSON, or no benchmark.
    """
    remedy = "restore it with `git checkout`, or make it again with `capsrepro bench --save`."
    return read_document(path, Benchmark, "benchmark", remedy)
