"""What figures are drawn from: which records there are, and which run a figure shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from capsrepro.config import RunSpec, requested_runs, resolve_run
from capsrepro.errors import CapsreproError, UsageError
from capsrepro.files import sha256_of_file
from capsrepro.metrics import METRICS, is_proportion
from capsrepro.records import TRAIN, Record, read_records
from capsrepro.report.formatting import plain, quantity
from capsrepro.schema.base import Reading
from capsrepro.schema.params import Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw: TypeAlias = "Callable[[Archive], Figure]"
"""What draws one figure."""


class NothingToDrawError(CapsreproError):
    """No record holds what the figure shows; the sentence says which command makes one."""


@dataclass(frozen=True)
class Archive:
    """All records there are.

    Attributes:
        params: What is asked for: runs that no longer agree with it are left out.
        results: The results folder.
        records: Every record in it.
        run: The only run to draw, whether or not it agrees with `params`; None leaves the choice
            to the figure.
    """

    params: Params
    results: Path
    records: tuple[Record, ...]
    run: str | None = None

    def folder(self, record: Record) -> Path:
        """Where a record and what came with it stand."""
        return self.results / "runs" / record.run

    def finished(self) -> list[Record]:
        """The train records of finished runs that agree with `params`; of all when one is named."""
        return [
            record
            for record in self.records
            if record.kind == TRAIN
            and record.status == "finished"
            and (self.run is not None or _is_asked_for(self.params, record))
        ]


@dataclass(frozen=True)
class Wish:
    """What a figure would best be drawn from.

    Attributes:
        kind: Of the record.
        protocol: The claims' name of the protocol that the paper's figure is of.
        models: The claims' names of models, best first.
        perturbs: Whether the evaluation perturbed capsules, which it does exactly where an image
            has one digit; None where it does not matter.
        reading: `text` or `code`, where a figure is of one of them; None takes either.
    """

    kind: str
    protocol: str
    models: tuple[str, ...]
    perturbs: bool | None = None
    reading: Reading | None = None


@dataclass(frozen=True)
class Source:
    """A record to draw from.

    Attributes:
        record: Of an evaluation.
        trained: Of the run that was evaluated.
        folder: Where both stand.
    """

    record: Record
    trained: Record
    folder: Path

    def told(self) -> str:
        """Run, errors on what it was tested on, and budget, as every title says them."""
        errors = ", ".join(
            f"{METRICS[name].title} {quantity(name, value)} %"
            for name, value in self.trained.metrics.items()
            if is_proportion(name)
        )
        return f"{self.record.run}: {errors}, {budget(self.trained)}"


def open_archive(results: Path, params: Params, run: str | None = None) -> Archive:
    """Read all records.

    Args:
        results: The results folder.
        params: What is asked for.
        run: The only run to draw.

    Raises:
        UsageError: `run` has not the form of a run's name.
        CapsreproError: A record is damaged.
    """
    if run is not None:
        resolve_run(params, run)
    return Archive(params, results, tuple(read_records(results)), run)


def budget(record: Record) -> str:
    """How much training there was, in words."""
    fraction = record.budget.fraction
    return f"trained for {plain(100 * fraction)} % of the full budget"


def find_sources(archive: Archive, wish: Wish) -> list[Source]:
    """All that the figure can be drawn from, best first and never empty.

    Best is the paper's own protocol, then any that a paper is judged by, then the fullest budget,
    then the wished model in the paper's reading, then the lowest seed.

    Raises:
        NothingToDrawError: There is no such record.
    """
    found = [
        source
        for source in find_evaluated(archive)
        if archive.run in (None, source.record.run)
        and source.record.kind == wish.kind
        and _perturbs_as_wished(source.record.spec["evaluation"], wish)
        and wish.reading in (None, source.record.spec["model"]["reading"])
    ]
    if not found:
        raise NothingToDrawError(_how_to_get(archive, wish))
    return sorted(found, key=lambda source: _place(archive.params, wish, source.trained))


def find_evaluated(archive: Archive) -> list[Source]:
    """Every finished evaluation or attack of the weights that finished runs left, of all runs."""
    runs = {record.run: record for record in archive.records if record.kind == TRAIN}
    finished = {record.run: record for record in archive.finished()}
    return [
        Source(record, finished[record.run], archive.folder(record))
        for record in archive.records
        if record.kind != TRAIN
        and record.status == "finished"
        and record.run in finished
        and _made_from(record, runs)
    ]


def find_trained(archive: Archive, wish: Wish) -> list[Source]:
    """The finished runs themselves in the same order, for what their histories tell; may be empty.

    The record of such a source is that of the training.
    """
    runs = [record for record in archive.finished() if archive.run in (None, record.run)]
    found = [Source(record, record, archive.folder(record)) for record in runs]
    return sorted(found, key=lambda source: _place(archive.params, wish, source.trained))


def read_pictures(source: Source) -> Mapping[str, NDArray[Any]]:
    """The arrays that an evaluation left beside its record.

    Raises:
        CapsreproError: The file is missing or not the one that the record speaks of.
    """
    name = f"{source.record.kind}.npz"
    path = source.folder / name
    again = f"run `capsrepro {source.record.kind} {source.record.run}`"
    if not path.is_file():
        raise CapsreproError(f"the pictures {path} are missing; {again}.")
    if sha256_of_file(path) != source.record.outputs.get(name):
        raise CapsreproError(
            f"{path} does not hold the pictures that its record speaks of; delete it and {again}."
        )
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _is_asked_for(params: Params, record: Record) -> bool:
    try:
        spec = resolve_run(params, record.run)
    except UsageError:
        return False
    return (spec.digest, spec.protocol.version) == (record.spec_digest, record.protocol_version)


def _made_from(record: Record, trained: Mapping[str, Record]) -> bool:
    """Whether the evaluated weights are those of their runs, which may have been trained again.

    A transferred attack also names weights of the run that its images were made on; without a
    record of that run its word is taken.
    """
    for path, sha256 in record.inputs.items():
        run, _, name = path.rpartition("/")
        left = trained.get(run or record.run)
        if left is not None and left.outputs.get(name) != sha256:
            return False
    return True


def _perturbs_as_wished(settings: Mapping[str, Any], wish: Wish) -> bool:
    return wish.perturbs is None or bool(settings.get("perturbed_digits")) == wish.perturbs


def _place(params: Params, wish: Wish, record: Record) -> tuple[Any, ...]:
    """Sorting key of `find_sources`."""
    protocol, model = params.protocols.get(record.protocol), record.spec["model"]
    return (
        protocol is None or protocol.judged_as != wish.protocol,
        protocol is None or protocol.judged_as is None,
        -record.budget.fraction,
        list(params.protocols).index(record.protocol) if protocol else len(params.protocols),
        _preference(wish, model["stands_for"]),
        model["reading"] != "text",
        record.model,
        record.seed,
    )


def _preference(wish: Wish, stands_for: str) -> int:
    return wish.models.index(stands_for) if stands_for in wish.models else len(wish.models)


def _how_to_get(archive: Archive, wish: Wish) -> str:
    """One sentence: the record is missing, and the cheapest commands that make it."""
    trained = [record.run for record in archive.finished()]
    if archive.run:
        fitting = [spec for spec in [resolve_run(archive.params, archive.run)] if _fits(spec, wish)]
        none = f"the protocol of {archive.run} has no `{wish.kind}` that shows this; name another."
        missing = f"{archive.run} has no current `{wish.kind}` record"
    else:
        runs = requested_runs(archive.params)
        fitting = [spec for spec in runs if _fits(spec, wish) and _is_evaluated(spec, wish)]
        none = (
            f"no protocol of params.yaml asks for a `{wish.kind}` that shows this; "
            "add it to the `evaluations` of one."
        )
        missing = f"no finished run has the `{wish.kind}` record that this is drawn from"
    if not fitting:
        return none
    name = cheapest(fitting, wish, trained)
    training = [] if name in trained else [f"`capsrepro run {name}`"]
    return f"{missing}; run {' and '.join([*training, f'`capsrepro {wish.kind} {name}`'])}."


def _fits(spec: RunSpec, wish: Wish) -> bool:
    settings = getattr(spec.protocol.evaluations, wish.kind)
    if settings is None or wish.reading not in (None, spec.model.reading):
        return False
    return _perturbs_as_wished(settings.model_dump(), wish)


def _is_evaluated(spec: RunSpec, wish: Wish) -> bool:
    return spec.model_name in getattr(spec.protocol.evaluations, wish.kind).models


def cheapest(specs: Sequence[RunSpec], wish: Wish, trained: Collection[str]) -> str:
    """The name of the run that is best proposed to whoever wants the figure.

    Args:
        specs: At least one.
        wish: What the figure would best be drawn from.
        trained: Names of the runs that need no training any more.
    """
    return min(specs, key=lambda spec: _cost(spec, wish, trained)).name


def _cost(spec: RunSpec, wish: Wish, trained: Collection[str]) -> tuple[Any, ...]:
    """Sorting key: the paper's protocol, then what needs least training, then the wished model."""
    return (
        spec.protocol.judged_as != wish.protocol,
        spec.name not in trained,
        spec.protocol.recipe.steps,
        _preference(wish, spec.model.stands_for),
        spec.seed,
    )
