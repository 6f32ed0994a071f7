"""`capsrepro datasets`: what is there, get it, prepare it, check it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import click
from tabulate import tabulate

from capsrepro.config import load_params
from capsrepro.data import DATASETS
from capsrepro.data.preparation import (
    dataset_state,
    fetch_dataset,
    find_dataset,
    prepare_dataset,
)
from capsrepro.data.prepared import verify as verify_prepared
from capsrepro.project import find_project


@click.group()
def datasets() -> None:
    """List, fetch, prepare and verify data sets.

    Downloads go to data/raw, prepared arrays to data/prepared; CAPSREPRO_DATA moves both, and
    CAPSREPRO_MIRROR names a folder or URL that is asked before the official servers.

    \b
    Example:
      capsrepro datasets prepare mnist
    """


def _chosen(names: tuple[str, ...]) -> Iterator[str]:
    """The named data sets, all when none is named; unknown names are refused before any work."""
    for name in names:
        find_dataset(name)
    yield from names or DATASETS


@datasets.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_datasets(as_json: bool) -> None:
    """Show every data set: images, size, state here, licence.

    \b
    Example:
      capsrepro datasets list
    """
    project = find_project()
    rows = [
        {
            "name": dataset.name,
            "title": dataset.title,
            **{f"{split}_images": count for split, count in dataset.counts.items()},
            "download_bytes": sum(source.size_bytes for source in dataset.sources),
            "state": dataset_state(dataset.name, project.data),
            "licence": dataset.licence,
        }
        for dataset in DATASETS.values()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = [
        [
            row["name"],
            f"{row['train_images']:,} / {row['test_images']:,}",
            f"{int(str(row['download_bytes'])) / 1e6:.1f} MB",
            row["state"],
            row["licence"],
        ]
        for row in rows
    ]
    headers = ["name", "train / test images", "download", "here", "licence"]
    click.echo(tabulate(table, headers=headers, maxcolwidths=[None, None, None, None, 60]))


@datasets.command()
@click.argument("names", nargs=-1)
def fetch(names: tuple[str, ...]) -> None:
    """Download the files of data sets (all when none is named) and check their SHA-256.

    \b
    Example:
      CAPSREPRO_MIRROR=/srv/mirror capsrepro datasets fetch mnist
    """
    project = find_project()
    for name in _chosen(names):
        paths = fetch_dataset(
            name, project.data, mirror=project.mirror, progress=sys.stderr.isatty()
        )
        click.echo(f"{name}: {len(paths)} files in {project.data / 'raw'}")


@datasets.command()
@click.argument("names", nargs=-1)
def prepare(names: tuple[str, ...]) -> None:
    """Fetch and prepare data sets (all when none is named).

    \b
    Example:
      capsrepro datasets prepare digits
    """
    project = find_project()
    params = load_params(project.params)
    for name in _chosen(names):
        manifest = prepare_dataset(
            name,
            params.datasets.get(name, {}),
            project.data,
            mirror=project.mirror,
            progress=sys.stderr.isatty(),
            manifest_copy=project.manifest_path(name),
        )
        counts = ", ".join(f"{f['count']:,} {s}" for s, f in manifest["splits"].items())
        click.echo(f"{name}: prepared, {counts} images, digest {manifest['digest'][:12]}")


@datasets.command()
@click.argument("names", nargs=-1)
def verify(names: tuple[str, ...]) -> None:
    """Check prepared data sets (all that are here when none is named) against their manifests.

    \b
    Example:
      capsrepro datasets verify mnist
    """
    project = find_project()
    for name in _chosen(names):
        if not names and dataset_state(name, project.data) in ("absent", "fetched"):
            click.echo(f"{name}: not prepared here")
            continue
        verify_prepared(name, project.data)
        click.echo(f"{name}: every file is as its manifest says")
