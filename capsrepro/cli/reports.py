"""`capsrepro report` and `claims`: tables beside the published numbers; never needs torch."""

from __future__ import annotations

import click

from capsrepro.claims import PAPERS, load_claims
from capsrepro.config import load_params
from capsrepro.errors import CapsreproError
from capsrepro.files import write_text
from capsrepro.project import Project, find_project
from capsrepro.records import read_records, write_index
from capsrepro.report import page
from capsrepro.report.precisions import of_precisions
from capsrepro.report.readings_table import of_protocols
from capsrepro.report.rendering import SUFFIXES, render
from capsrepro.report.robustness_answer import robustness_answer
from capsrepro.report.summaries import group_records

_FORMATS = click.Choice(list(SUFFIXES))


@click.command()
@click.argument("protocols", nargs=-1)
@click.option("--format", "form", type=_FORMATS, default="md", show_default=True)
@click.option("--readings", is_flag=True, help="Which reading comes nearer to the papers' numbers.")
@click.option("--precisions", is_flag=True, help="Whether runs of all precisions err alike.")
@click.option("--write", is_flag=True, help="Also write results/tables in every format.")
@click.option("--readme", is_flag=True, help="Also bring the tables in README.md up to date.")
@click.option("--check", is_flag=True, help="Fail when README.md is out of date.")
def report(
    protocols: tuple[str, ...],
    form: str,
    readings: bool,
    precisions: bool,
    write: bool,
    readme: bool,
    check: bool,
) -> None:
    """Show the results of protocols (all when none is named) beside the published numbers.

    \b
    Example:
      capsrepro report mnist-short --format latex
      capsrepro report --readings multimnist
      capsrepro report --precisions
    """
    project = find_project()
    params = load_params(project.params)
    records, published = read_records(project.results), load_claims()
    tables = page.all_tables(records, published, params, protocols, project.results)
    if readings:
        shown = [of_protocols(table, protocols) for table in tables["readings"]]
    elif precisions:
        shown = [of_precisions(next(iter(tables.get("precision", ())), None), protocols)]
    else:
        shown = [t for name, ts in tables.items() if name not in page.ACROSS for t in ts]
    click.echo(render(shown, form).rstrip())  # type: ignore[arg-type]
    if write:
        write_index(project.results, params.tabled_protocols)
        wanted = page.of_protocols(tables, protocols or params.judged_protocols)
        paths = page.write_tables(wanted, project.results)
        click.echo(f"\nwritten to {paths[0].parent}", err=True)
    if readme or check:
        everything = (
            page.all_tables(records, published, params, results=project.results)
            if protocols
            else tables
        )
        run = {record.protocol for record in records}
        blocks = page.readme_blocks(everything, params.judged_protocols, run)
        answer = robustness_answer(group_records(records, params), params)
        _readme(project, {**blocks, "robustness": answer}, check)


def _readme(project: Project, blocks: dict[str, str], check: bool) -> None:
    path = project.root / "README.md"
    text = path.read_text(encoding="utf-8")
    if page.readme_is_current(text, blocks):
        return
    if check:
        raise CapsreproError(
            "the tables in README.md are not those of the records; run `capsrepro report --readme`."
        )
    write_text(path, page.inject(text, blocks))


@click.command()
@click.option("--paper", type=click.Choice(list(PAPERS)), help="Only this one's.")
@click.option("--format", "form", type=_FORMATS, default="md", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def claims(paper: str | None, form: str, as_json: bool) -> None:
    """Show every published claim with its source and its verdict today.

    \b
    Example:
      capsrepro claims --paper sabour2017
    """
    project = find_project()
    params = load_params(project.params)
    records = read_records(project.results)
    tables = page.all_tables(records, load_claims(paper), params, results=project.results)
    click.echo(render(tables["claims"], "json" if as_json else form).rstrip())  # type: ignore[arg-type]
