"""What `params.yaml` asks for and no current record has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from capsrepro.config import RunSpec
from capsrepro.project import Project
from capsrepro.records import TRAIN, Record, read_records
from capsrepro.running.matching import why_stale


@dataclass(frozen=True)
class Pending:
    """One run that is still owed.

    Attributes:
        spec: What it is.
        reason: Why there is no current record.
        cost_s: Estimated training time from records of the same model on whatever machine made
            them; None when there is none to go by.
        after: The run that it is matched to, when that one is owed as well.
    """

    spec: RunSpec
    reason: str
    cost_s: float | None
    after: str | None = None

    @property
    def run(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def cost(self) -> str:
        """The estimate in words."""
        return "time unknown" if self.cost_s is None else f"about {self.cost_s / 60:.0f} min"

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {"run": self.run, "reason": self.reason, "cost_s": self.cost_s}


def pending_runs(
    project: Project, wanted: Iterable[RunSpec], data_digests: dict[str, str]
) -> list[Pending]:
    """Every wanted run without a current train record, and what these are matched to first.

    Args:
        project: Where the records are.
        wanted: What is asked for.
        data_digests: Digest of each data set that is prepared here, by name.
    """
    known = {r.run: r for r in read_records(project.results) if r.kind == TRAIN}
    pending: dict[str, Pending] = {}
    for spec in references_first(wanted):
        reason = why_stale(spec, data_digests.get(spec.protocol.dataset), known.get)
        if reason is not None:
            cost_s = _estimate(spec, known.values())
            after = spec.reference.name if spec.reference else None
            after = after if after in pending else None
            pending.setdefault(spec.name, Pending(spec, reason, cost_s, after))
    return list(pending.values())


def references_first(specs: Iterable[RunSpec]) -> Iterator[RunSpec]:
    """Each run behind the one that it is matched to, which may come a second time."""
    for spec in specs:
        if spec.reference is not None:
            yield spec.reference
        yield spec


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
