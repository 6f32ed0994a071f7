"""`capsrepro figures`: the papers' figures, drawn from records alone; never needs torch."""

from __future__ import annotations

from pathlib import Path

import click

from capsrepro.cli.runs import shown
from capsrepro.config import load_params
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.project import find_project
from capsrepro.report.figures import FIGURES
from capsrepro.report.figures.archive import NothingToDrawError, open_archive
from capsrepro.report.figures.canvas import house_style, write_figure


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--run", "run_name", metavar="PROTOCOL/MODEL/seed-N", help="This run, or its protocol."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write to [default: results/figures]"
)
def figures(names: tuple[str, ...], run_name: str | None, out: Path | None) -> None:
    """Draw figures of the papers from the records that are here, as SVG and PNG.

    Without names it draws all that the records allow, and says of each other figure which command
    makes its record. Unless --run names a run, a figure shows the lowest seed of the protocol with
    the fullest budget; figures of robustness show all models and seeds of one protocol.

    \b
    Example:
      capsrepro figures
      capsrepro figures sabour2017-fig3 --run mnist-short/capsnet-r3-recon/seed-0
    """
    unknown = next((name for name in names if name not in FIGURES), None)
    if unknown is not None:
        raise UsageError(f"unknown figure {unknown!r}; choose one of {', '.join(FIGURES)}.")
    project = find_project()
    archive = open_archive(project.results, load_params(project.params), run_name)
    damaged = []
    with house_style():
        for name in dict.fromkeys(names) or FIGURES:
            try:
                figure = FIGURES[name](archive)
            except CapsreproError as error:
                if names:
                    raise
                if isinstance(error, NothingToDrawError):
                    click.echo(f"{name}: not drawn: {error}")
                else:
                    click.echo(f"capsrepro: {name}: {error}", err=True)
                    damaged.append(name)
                continue
            paths = write_figure(figure, out or project.results / "figures", name)
            click.echo(f"{name}: {', '.join(shown(project, path) for path in paths)}")
    if damaged:
        raise CapsreproError(
            f"{len(damaged)} of {len(FIGURES)} figures could not be drawn ({', '.join(damaged)}): "
            "mend what the lines above say, then run the same command again."
        )
