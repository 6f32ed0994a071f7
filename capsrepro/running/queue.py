"""What `params.yaml` asks for and no current record has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median

from capsrepro.config import RunSpec, requested_runs
from capsrepro.project import Project
from capsrepro.records import Record, read_records, stale_reason
from capsrepro.schema.params import Params


@dataclass(frozen=True)
class Pending:
    """One run that is still owed.

    Attributes:
        run: Its name.
        reason: Why there is no current record.
        cost_s: Estimated training time from records of the same model on whatever machine made
            them; None when there is none to go by.
    """

    run: str
    reason: str
    cost_s: float | None

    def document(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def pending_runs(project: Project, params: Params, data_digests: dict[str, str]) -> list[Pending]:
    """Every requested run without a current train record.

    Args:
        project: Where the records are.
        params: What is asked for.
        data_digests: Digest of each data set that is prepared here, by name.
    """
    known = {r.run: r for r in read_records(project.results) if r.kind == "train"}
    pending = []
    for spec in requested_runs(params):
        data_digest = data_digests.get(spec.protocol.dataset)
        reason = stale_reason(known.get(spec.name), spec.digest, data_digest, spec.protocol.version)
        if reason is not None:
            pending.append(Pending(spec.name, reason, _estimate(spec, known.values())))
    return pending


def _estimate(spec: RunSpec, known: Iterable[Record]) -> float | None:
    """Steps to do times the median seconds per step of this model on this data set."""
    seconds_per_step = [
        record.cost.wall_time_s / record.budget.steps
        for record in known
        if record.model == spec.model_name
        and record.data.name == spec.protocol.dataset
        and record.budget.steps
    ]
    if not seconds_per_step:
        return None
    return median(seconds_per_step) * spec.protocol.recipe.steps
