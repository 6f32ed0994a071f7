"""`capsrepro export` and `import`: carry records and histories from machine to machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from capsrepro.config import load_params
from capsrepro.metrics import METRICS, is_proportion
from capsrepro.project import find_project
from capsrepro.records import Record


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--weights", "with_weights", is_flag=True, help="Carry the trained weights too.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def export_(file: Path, runs: tuple[str, ...], with_weights: bool, as_json: bool) -> None:
    """Write the records, histories and arrays of runs into FILE, a .tar.gz.

    RUN is a run or the beginning of its name, such as mnist-short; without any, all runs that are
    here are carried. The manifests of their data go with them. The same results give the same
    bytes.

    \b
    Example:
      capsrepro export results-gpu.tar.gz mnist multimnist/capsnet-r3-recon
    """
    from capsrepro.running.exporting import export_runs

    done = export_runs(find_project(), file, runs, with_weights=with_weights)
    held = {run: [record.kind for record in of] for run, of in done.contents.runs.items()}
    datasets = [Path(name).stem for name in sorted(done.contents.datasets)]
    size = file.stat().st_size
    if as_json:
        document = {"file": str(file), "bytes": size, "sha256": done.sha256, "runs": held}
        document |= {"datasets": datasets, "weights": with_weights, "left_out": done.left_out}
        click.echo(json.dumps(document, indent=1))
        return
    for run, kinds in held.items():
        click.echo(f"{run}: {', '.join(kinds)}")
    for what, reason in done.left_out.items():
        click.echo(f"left out: {what}, which {reason}")
    click.echo(
        f"{file}: {len(held)} runs with {sum(map(len, held.values()))} records of "
        f"{', '.join(datasets)}, {'with' if with_weights else 'without'} weights; "
        f"{size:,} bytes, SHA-256 {done.sha256}"
    )


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Put its records in the place of other ones here.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def import_(file: Path, replace: bool, as_json: bool) -> None:
    """Check a bundle that `capsrepro export` wrote, and bring its runs here.

    Nothing is written before all of it is found whole. What is here already is left as it is; a
    run that has other records here is refused unless --replace is given. Then the index of records
    and MLflow are brought up to date. After an interruption, run it again.

    \b
    Example:
      capsrepro import results-gpu.tar.gz
    """
    project = find_project()
    # A wrong params.yaml is said before torch is imported.
    load_params(project.params)
    from capsrepro.running.importing import import_bundle

    found = import_bundle(project, file, replace=replace)
    if as_json:
        document: dict[str, Any] = {"file": str(file), "new_datasets": found.new_datasets}
        document["runs"] = [
            {
                "run": run.record.run,
                "records": run.kinds,
                "state": run.state,
                "current": run.reason is None,
                "reason": run.reason,
                "metrics": run.record.metrics,
                "failure": run.record.failure and run.record.failure.reason,
            }
            for run in found.runs
        ]
        click.echo(json.dumps(document, indent=1))
        return
    for run in found.runs:
        current = "current" if run.reason is None else f"not current: {run.reason}"
        kinds = ", ".join(run.kinds)
        click.echo(f"{run.record.run}: {_result(run.record)}; {kinds} {run.state}; {current}")
    for name in found.new_datasets:
        click.echo(
            f"data set {name}: there was no manifest here, so the data behind the runs could not "
            f"be compared; the bundle's is now results/datasets/{name}.json"
        )
    changed = sum(run.state != "was here" for run in found.runs)
    click.echo(f"{changed} of {len(found.runs)} runs brought in from {file}")


def _result(record: Record) -> str:
    if record.failure is not None:
        return f"failed at step {record.failure.step:,}: {record.failure.reason}"
    return ", ".join(
        f"{METRICS[name].title} {value:.2f} %"
        for name, value in record.metrics.items()
        if is_proportion(name)
    )
