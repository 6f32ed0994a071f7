"""`capsrepro datasets`: what is there, get it, prepare it, check it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from capsrepro.data.prepared import is_prepared
from capsrepro.data.prepared import verify as verify_prepared
from capsrepro.errors import CapsreproError
from capsrepro.files import sha256_of_file
from capsrepro.project import Project, find_project


@click.group()
def datasets() -> None:
    """List, fetch, prepare, verify and show data sets.

    Downloads go to data/raw, prepared arrays to data/prepared; CAPSREPRO_DATA moves both, and
    CAPSREPRO_MIRROR names a folder or URL that is asked before the official servers.

    \b
    Example:
      capsrepro datasets prepare mnist
    """


def _each(names: tuple[str, ...], act: Callable[[str], str]) -> None:
    """Act on the named data sets, or on all but the optional ones, and print what each call says.

    One that fails does not keep the others from being tried.
    """
    for name in names:
        find_dataset(name)
    chosen = names or tuple(name for name, row in DATASETS.items() if not row.optional)
    failed = []
    for name in chosen:
        try:
            click.echo(act(name))
        except CapsreproError as error:
            if len(chosen) == 1:
                raise
            click.echo(f"capsrepro: {error}", err=True)
            failed.append(name)
    if failed:
        raise CapsreproError(
            f"{len(failed)} of {len(chosen)} data sets failed ({', '.join(failed)}): mend what "
            "the lines above say, then run the same command again."
        )


@datasets.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_datasets(as_json: bool) -> None:
    """Show every data set: images, size, state here, licence.

    \b
    Example:
      capsrepro datasets list
    """
    project = find_project()
    rows: list[dict[str, Any]] = [
        {
            "name": dataset.name,
            "title": dataset.title,
            "images": dict(dataset.counts),
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
            ", ".join(f"{split} {count:,}" for split, count in row["images"].items()),
            f"{row['download_bytes'] / 1e6:.1f} MB",
            row["state"],
            row["licence"],
        ]
        for row in rows
    ]
    click.echo(tabulate(table, headers=["name", "images", "download", "here", "licence"]))


@datasets.command()
@click.argument("names", nargs=-1)
def fetch(names: tuple[str, ...]) -> None:
    """Download the files of data sets (all when none is named) and check their SHA-256.

    A file that is here and whole is not downloaded again.

    \b
    Example:
      CAPSREPRO_MIRROR=/srv/mirror capsrepro datasets fetch mnist
    """
    project = find_project()

    def act(name: str) -> str:
        paths = fetch_dataset(name, project.data, mirror=project.mirror, progress=True)
        return f"{name}: {len(paths)} files in {project.data / 'raw'}"

    _each(names, act)


@datasets.command()
@click.argument("names", nargs=-1)
@click.option(
    "--materialize",
    metavar="N",
    type=int,
    help="Also write the first N test composites of a MultiMNIST data set to a file.",
)
def prepare(names: tuple[str, ...], materialize: int | None) -> None:
    """Fetch and prepare data sets (all when none is named).

    What is prepared and whole is left as it is.

    \b
    Example:
      capsrepro datasets prepare digits
      capsrepro datasets prepare multimnist --materialize 10000
    """
    project = find_project()
    params = load_params(project.params)

    def act(name: str) -> str:
        manifest = prepare_dataset(
            name,
            params.datasets.get(name, {}),
            project.data,
            mirror=project.mirror,
            progress=True,
            manifest_copy=project.manifest_path(name),
        )
        counts = ", ".join(f"{facts['count']:,} {s}" for s, facts in manifest["splits"].items())
        said = f"{name}: prepared, {counts} images, digest {manifest['digest'][:12]}"
        return (
            said if materialize is None else f"{said}\n{_write_subset(project, name, materialize)}"
        )

    _each(names, act)


def _write_subset(project: Project, name: str, count: int) -> str:
    from capsrepro.data.materialize import materialize

    path = materialize(name, count, project.data, progress=True)
    return f"{name}: {count:,} composites in {path}, SHA-256 {sha256_of_file(path)}"


@datasets.command()
@click.argument("names", nargs=-1)
def verify(names: tuple[str, ...]) -> None:
    """Check prepared data sets (all that are here when none is named) against their manifests.

    \b
    Example:
      capsrepro datasets verify mnist
    """
    project = find_project()

    def act(name: str) -> str:
        if not names and not is_prepared(name, project.data):
            return f"{name}: not prepared here"
        verify_prepared(name, project.data, progress=True)
        said = f"{name}: every file is as its manifest says"
        if find_dataset(name).labels_per_image > 1:
            from capsrepro.data.materialize import verify_subsets

            if subsets := verify_subsets(name, project.data):
                said += f", and so are its written subsets ({subsets})"
        return said

    _each(names or tuple(DATASETS), act)


@datasets.command()
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Picture to write.")
@click.option("--split", default="train", show_default=True, help="Other splits are not augmented.")
@click.option("--reading", help="Key of `augmentations` in params.yaml; the first when left out.")
@click.option("--count", default=40, show_default=True, type=click.IntRange(1, 1000))
@click.option("--seed", default=0, show_default=True, help="Of the order and the augmentation.")
def show(name: str, out: Path, split: str, reading: str | None, count: int, seed: int) -> None:
    """Draw a labelled grid of images as a network sees them.

    \b
    Example:
      capsrepro datasets show multimnist --out grid.png
      capsrepro datasets show cifar10 --reading sabour2017-code --out grid.png
    """
    from capsrepro.running.showing import show_images

    project = find_project()
    title = show_images(project, name, split, reading, count, seed, out)
    click.echo(f"{out}: {title}")
