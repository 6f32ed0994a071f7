"""`capsrepro bench`: the speed of this machine, measured in turns."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from functools import partial
from pathlib import Path

import click

from capsrepro.benchmarks import Benchmark, benchmark_path, read_benchmark, write_benchmark
from capsrepro.cli.runs import shown, where_options
from capsrepro.config import load_params
from capsrepro.errors import UsageError
from capsrepro.files import write_text
from capsrepro.project import Project, find_project


@click.command()
@click.argument("models", metavar="[PROTOCOL/MODEL]...", nargs=-1)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["float32", "tf32", "bf16"]),
    help="Of the convolutions; may be given again [default: all that the device is fast in]",
)
@where_options
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Turns of every variant.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Images a step, not the protocol's.")
@click.option("--scaling", is_flag=True, help="How the cost of a step grows, in place of models.")
@click.option("--packed", is_flag=True, help="Also two and four runs on the device at a time.")
@click.option("--json", "as_json", is_flag=True, help="All that was measured, for programs.")
@click.option("--save", is_flag=True, help="Keep it, its table and plot in results/benchmarks.")
@click.option(
    "--show",
    "show",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measure nothing: draw the table and plot of a kept benchmark again.",
)
def bench(
    models: tuple[str, ...],
    precisions: tuple[str, ...],
    device: str | None,
    threads: int | None,
    rounds: int,
    batch: int | None,
    scaling: bool,
    packed: bool,
    as_json: bool,
    save: bool,
    show: Path | None,
) -> None:
    """Measure how fast training steps are here, beside a naive reference and a floor.

    Every variant has a process of its own, and they take turns, so that whatever else this
    machine does disturbs all alike. No data set is needed: images are random bytes. Without
    models, a few of the papers' are measured, in a few minutes.

    \b
    Example:
      capsrepro bench mnist/capsnet-r3-recon --precision bf16 --rounds 9
      capsrepro bench --scaling --save
      capsrepro bench --show results/benchmarks/nvidia-h200.json
    """
    project = find_project()
    if show is not None:
        _output(read_benchmark(show), as_json)
        _draw(project, show)
        return
    if scaling and (models or batch or packed):
        raise UsageError(
            "--scaling has models and batches of its own; leave out yours, and --packed."
        )
    params = load_params(project.params)
    from capsrepro.running.benchmark_plan import named_model

    for model in models:
        # A wrong name is said before torch is imported.
        named_model(params, model)
    from capsrepro.running.benchmark import Request, run_benchmark

    if device:
        project = dataclasses.replace(project, device=device)
    request = Request(models, precisions, threads, rounds, batch, scaling, packed)  # type: ignore[arg-type]
    benchmark = run_benchmark(project, params, request, partial(click.echo, err=True))
    path = benchmark_path(project.results, benchmark)
    if save:
        write_benchmark(path, benchmark)
        click.echo(shown(project, path), err=True)
    _output(benchmark, as_json)
    if save:
        _draw(project, path)


def _output(benchmark: Benchmark, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(benchmark.model_dump(mode="json"), indent=1))
        return
    from capsrepro.report.benchmark_table import benchmark_table
    from capsrepro.report.rendering import render

    click.echo(render([benchmark_table(benchmark)], "md").rstrip())


def _draw(project: Project, path: Path) -> None:
    """Write table and plot beside the file, or say where that can be done."""
    lacking = [p for p in ("tabulate", "matplotlib") if importlib.util.find_spec(p) is None]
    if lacking:
        click.echo(
            f"table and plot are not written without {' and '.join(lacking)}; call "
            f"`capsrepro bench --show {shown(project, path)}` on a machine that has them.",
            err=True,
        )
        return
    from capsrepro.report.benchmark_table import benchmark_table
    from capsrepro.report.figures.benchmark import draw_benchmark
    from capsrepro.report.figures.canvas import house_style, write_figure
    from capsrepro.report.rendering import render

    benchmark = read_benchmark(path)
    pages = [path.with_suffix(".md")]
    write_text(pages[0], render([benchmark_table(benchmark)], "md"))
    with house_style():
        pages += write_figure(draw_benchmark(benchmark), path.parent, path.stem)
    click.echo(", ".join(shown(project, page) for page in pages), err=True)
