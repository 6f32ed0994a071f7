"""From records to groups: all seeds of one model under one specification, and what they measured.

A group is what a row of a table shows and what a claim is held against. Records share a group only
if everything but the seed is the same: protocol, its version, the resolved specification and the
data. An evaluation joins the group of the run it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from capsrepro import scores
from capsrepro.claims import Claim, OrderingClaim
from capsrepro.config import RunSpec, requested_runs, resolve_run
from capsrepro.errors import UsageError
from capsrepro.files import digest
from capsrepro.metrics import stem_of
from capsrepro.records import TRAIN, Record
from capsrepro.report.measurements import Fact, Measurement, kept_files, made_from, measurements
from capsrepro.schema.params import Params

# What params.yaml asks for: by protocol and model, any one of its runs and all its seeds.
_Asked = dict[tuple[str, str], tuple[RunSpec, list[int]]]


@dataclass(frozen=True)
class Group:
    """The seeds of one model under one specification; its measurements may be none yet.

    Attributes:
        protocol: Its name.
        version: Its version when the runs were made.
        title: Its title in params.yaml, or its name when it is gone from there.
        model: Name of the model.
        reading: `text` or `code`.
        stands_for: The claims' name of the model.
        judged_as: The claims' name of the protocol; None where no paper used these data.
        budget: Share of the full training budget.
        superseded: Why params.yaml no longer asks for this; None when it does.
        seeds: Those that finished.
        failed: Why the others did not.
        missing: Seeds that params.yaml asks for and that left no record.
        uncommitted: Seeds that were run from uncommitted code.
        measurements: All that was measured.
        scores: SHA-256 of the class scores kept of each seed that finished.
        members: How many seeds vote together; 1 for single models.
        runs: The train records of the seeds that finished, for what stands beside them.
        pictures: SHA-256 of the pictures kept of each seed that finished.
        ended: At which `step` and `epoch` the training of the first seed to end was over; empty
            where no claim made anyone look.
        absent: Why there can be no measurement; None where runs are merely owed.
    """

    protocol: str
    version: str
    title: str
    model: str
    reading: str
    stands_for: str
    judged_as: str | None
    budget: float
    superseded: str | None
    seeds: tuple[int, ...]
    failed: Mapping[int, str]
    missing: tuple[int, ...]
    uncommitted: tuple[int, ...]
    measurements: tuple[Measurement, ...]
    scores: Mapping[int, str] = field(default_factory=dict)
    members: int = 1
    runs: Mapping[int, Record] = field(default_factory=dict)
    pictures: Mapping[int, str] = field(default_factory=dict)
    ended: Mapping[str, float] = field(default_factory=dict)
    absent: str | None = None

    def stands_trial(self, claim: Claim, model: str) -> bool:
        """Whether what a claim says of a model is held against this."""
        about = (claim.protocol, model)
        return (self.judged_as, self.stands_for) == about and claim.reading in (None, self.reading)

    def values(self, metric: str, condition: Mapping[str, Fact] | None = None) -> dict[int, float]:
        """By seed: the first measurement that meets the condition; empty when there is none."""
        found = self.matching(metric, condition or {})
        return dict(found[0][0].values) if found else {}

    def matching(self, metric: str, condition: Mapping[str, Fact]) -> list[list[Measurement]]:
        """What was measured under the condition: one list per setting, in it one entry per point.

        A condition without ε asks for every ε but 0, where there is no attack. What was measured
        without any setting answers an empty condition alone.
        """
        by_setting: dict[tuple[tuple[str, Fact], ...], list[Measurement]] = {}
        for measurement in self.measurements:
            if measurement.metric != metric or not measurement.meets(condition):
                continue
            if "epsilon" not in condition and measurement.point.get("epsilon") == 0:
                continue
            by_setting.setdefault(tuple(measurement.setting.items()), []).append(measurement)
        plain = by_setting.get(())
        return [plain] if plain else list(by_setting.values())

    def test_images(
        self, setting: Mapping[str, Fact] | None = None, metric: str = "test_error_pct"
    ) -> int | None:
        """On how many images it was tested, when the records say so and agree.

        A split of another name has a size of its own: `affnist_accuracy_pct` was measured on
        `affnist_images`.
        """
        stem = stem_of(metric)
        sizes = [m for m in self.measurements if m.metric == f"{stem}_images"]
        sizes = sizes or [m for m in self.measurements if m.metric == "test_images"]
        own = [m for m in sizes if m.setting == (setting or {})] or sizes[:1]
        counts = {int(value) for m in own for value in m.values.values()}
        return counts.pop() if len(counts) == 1 else None


def models_of(claim: Claim) -> tuple[str, ...]:
    """The claims' names of the models that a claim speaks of."""
    return (claim.better, claim.worse) if isinstance(claim, OrderingClaim) else (claim.model,)


def group_records(records: Iterable[Record], params: Params) -> list[Group]:
    """Every group there is a record of or params.yaml asks for, in the order of params.yaml."""
    members: dict[tuple[str, ...], list[Record]] = {}
    evaluations: dict[str, list[Record]] = {}
    every = list(records)
    left = {f"{r.run}/{name}": sha for r in every for name, sha in r.outputs.items()}
    for record in every:
        if record.kind == TRAIN:
            members.setdefault(_identity(record), []).append(record)
        elif record.status == "finished" and all(
            # Images made on another run are no longer those there are once it is trained anew.
            left.get(name, sha) == sha
            for name, sha in record.inputs.items()
        ):
            evaluations.setdefault(record.run, []).append(record)
    asked: _Asked = {}
    for run in requested_runs(params):
        asked.setdefault((run.protocol_name, run.model_name), (run, []))[1].append(run.seed)
    groups = [_group(found, evaluations, params, asked) for found in members.values()]
    present = {(g.protocol, g.model) for g in groups if g.superseded is None}
    groups += [_empty(*asked[name]) for name in asked if name not in present]
    return sorted(groups, key=lambda group: _place(group, params))


def _identity(record: Record) -> tuple[str, ...]:
    """What the records of one group have in common."""
    return (
        record.protocol,
        record.protocol_version,
        record.model,
        _seedless(record.spec),
        record.data.digest,
    )


def _group(
    records: list[Record],
    evaluations: Mapping[str, list[Record]],
    params: Params,
    asked: _Asked,
) -> Group:
    first = records[0]
    superseded = _superseded(first, params)
    protocol = params.protocols.get(first.protocol)
    name = (first.protocol, first.model)
    wanted = asked[name][1] if superseded is None and name in asked else []
    finished = [r for r in records if r.status == "finished"]
    made = {
        run.run: [one for one in evaluations.get(run.run, ()) if made_from(one, run)]
        for run in finished
    }
    seeds = {r.seed for r in records}
    return Group(
        protocol=first.protocol,
        version=first.protocol_version,
        title=protocol.title if protocol else first.protocol,
        model=first.model,
        reading=str(first.spec["model"]["reading"]),
        stands_for=str(first.spec["model"]["stands_for"]),
        judged_as=protocol.judged_as if protocol else None,
        budget=_budget(first, finished),
        superseded=superseded,
        seeds=tuple(sorted(r.seed for r in finished)),
        failed={
            r.seed: r.failure.reason if r.failure else "no reason recorded"
            for r in sorted(records, key=lambda r: r.seed)
            if r.status == "failed"
        },
        missing=tuple(seed for seed in wanted if seed not in seeds),
        uncommitted=tuple(sorted(r.seed for r in records if r.code.git_dirty)),
        measurements=measurements(finished, made),
        scores=kept_files(finished, made, scores.KIND, scores.NAME),
        runs={r.seed: r for r in sorted(finished, key=lambda r: r.seed)},
        pictures=kept_files(finished, made, "reconstruct", "reconstruct.npz"),
    )


def _budget(first: Record, finished: list[Record]) -> float:
    """A failed run stopped early: its record says how far it came, not how far it was to go."""
    if finished:
        return finished[0].budget.fraction
    return float(first.spec["recipe"]["steps"]) / first.budget.full_steps


def _empty(run: RunSpec, seeds: list[int]) -> Group:
    """What params.yaml asks for and nobody has run yet."""
    return Group(
        protocol=run.protocol_name,
        version=run.protocol.version,
        title=run.protocol.title,
        model=run.model_name,
        reading=run.model.reading,
        stands_for=run.model.stands_for,
        judged_as=run.protocol.judged_as,
        budget=run.protocol.budget,
        superseded=None,
        seeds=(),
        failed={},
        missing=tuple(seeds),
        uncommitted=(),
        measurements=(),
    )


def _superseded(record: Record, params: Params) -> str | None:
    try:
        now = resolve_run(params, record.run)
    except UsageError:
        return "params.yaml no longer has it"
    if now.protocol.version != record.protocol_version:
        return f"protocol version {record.protocol_version} is now {now.protocol.version}"
    if _seedless(now.document()) != _seedless(record.spec):
        return "its specification in params.yaml has changed"
    return None


def _seedless(spec: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in spec.items() if key != "seed"})


def _place(group: Group, params: Params) -> tuple[Any, ...]:
    """Sorting key: as params.yaml lists them, what it no longer has behind, older behind newer."""
    protocols = list(params.protocols)
    known = group.protocol in params.protocols
    models = list(params.models[params.protocols[group.protocol].models]) if known else []
    return (
        protocols.index(group.protocol) if known else len(protocols),
        group.protocol,
        group.superseded is not None,
        tuple(-int(part) for part in group.version.split(".")),
        models.index(group.model) if group.model in models else len(models),
        group.model,
        group.seeds,
    )
