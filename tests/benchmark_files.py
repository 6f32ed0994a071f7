"""Made-up benchmarks whose medians and ratios can be worked out in one's head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capsrepro.benchmarks import Benchmark, Machine, Turn, Variant
from capsrepro.records import Code

MODEL = "mnist/capsnet-r3-recon"


def turns(*walls_s: float) -> tuple[Turn, ...]:
    """Ten steps each; half of the time on the CPU."""
    return tuple(Turn(steps=10, wall_s=wall, cpu_s=wall / 2) for wall in walls_s)


def variant(what: str, precision: str, *walls_s: float, **more: Any) -> Variant:
    """Of `MODEL` unless told otherwise, with 100 images a step."""
    fields = {"model": MODEL, "batch_size": 100, **more}
    return Variant(what=what, precision=precision, turns=turns(*walls_s), **fields)


def benchmark(kind: str = "cuda", variants: Sequence[Variant] | None = None) -> Benchmark:
    """A step in two precisions, the naive one and the floors; every second round is slow."""
    if variants is None:
        variants = (
            variant("step", "float32", 1.0, 2.0, 1.0, peak_memory_mib=1024.0, deterministic=True),
            variant("step", "bf16", 0.5, 1.0, 0.5, peak_memory_mib=512.25, deterministic=True),
            variant("naive", "float32", 4.0, 8.0, 4.4, peak_memory_mib=4096.0),
            variant("floor", "float32", 0.5, 1.0, 0.5),
            variant("floor", "bf16", 0.1, 0.2, 0.1),
            variant("step", "float32", failure="out of memory", model="mnist/cnn-baseline"),
        )
    return Benchmark(
        machine=Machine(
            kind=kind,
            device="Made-up GPU (80GB)",
            platform="Linux",
            threads=2,
            versions={"torch": "2.15.0"},
        ),
        code=Code(git_commit="0123456789abcdef", git_dirty=False, science_digest="f" * 64),
        created_at="2026-01-02T03:04:05+00:00",
        rounds=3,
        matrix_flop_per_s={"float32": (5e13, 4e13), "bf16": (5e14,)},
        flop_per_image={MODEL: 1e10},
        variants=tuple(variants),
    )


def scaling() -> Benchmark:
    """Batches on a straight line of 0.1 s and 1 ms an image; a point of the classes is missing."""
    batches = (32, 64, 128, 256)
    points = [
        variant(
            "step", "bf16", *[10 * (0.1 + 0.001 * n)] * 3, axis="batch_size", value=n, batch_size=n
        )
        for n in batches
    ]
    points += [
        variant("step", "bf16", 1.0, 1.0, 1.0, axis="classes", value=10),
        variant("step", "bf16", axis="classes", value=40, failure="out of memory"),
    ]
    return benchmark(variants=points)
