"""The run whose accuracy ends the training of another, and whether that still holds.

EM18 §5.1 stops the capsule model where it is as good as the CNN on familiar viewpoints. So a record
of such a run rests on another record, and is current only as long as that one is. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable

from capsrepro.config import RunSpec
from capsrepro.errors import CapsreproError
from capsrepro.records import MATCHED, Record, stale_reason
from capsrepro.schema.params import StopRule

Find = Callable[[str], Record | None]
"""From the name of a run to its train record, if there is one."""


def why_stale(spec: RunSpec, data_digest: str | None, find: Find) -> str | None:
    """Why a run has no current train record, or None when it has.

    Args:
        spec: The run.
        data_digest: Digest of the prepared data; None when they are not here.
        find: Finds the records of the run and of the one that it is matched to.
    """
    record = find(spec.name)
    reason = stale_reason(record, spec.digest, data_digest, spec.protocol.version)
    rule = spec.protocol.recipe.stop
    if rule is None or spec.reference is None:
        return reason
    matched_to = f"the run that it is matched to, {spec.reference.name}"
    accuracy_pct = _accuracy_of(spec.reference, rule.split, data_digest, find)
    if isinstance(accuracy_pct, str):
        return "; ".join(filter(None, (reason, f"{matched_to}: {accuracy_pct}")))
    if record is not None and reason is None and record.metrics.get(MATCHED) != accuracy_pct:
        return f"{matched_to}, has another accuracy now"
    return reason


def settle(spec: RunSpec, data_digest: str | None, find: Find) -> StopRule | None:
    """The stop rule of a run with the accuracy that it waits for filled in; None without one.

    Raises:
        CapsreproError: It waits for the accuracy of a run that has no current, finished record.
    """
    rule = spec.protocol.recipe.stop
    if rule is None or spec.reference is None:
        return rule
    accuracy_pct = _accuracy_of(spec.reference, rule.split, data_digest, find)
    if isinstance(accuracy_pct, str):
        name = spec.reference.name
        raise CapsreproError(
            f"{spec.name} is trained until it is as accurate as {name} ({accuracy_pct}); "
            f"let `capsrepro run {name}` finish first."
        )
    return rule.model_copy(update={"accuracy_pct": accuracy_pct})


def matched_accuracy(rule: StopRule | None) -> dict[str, float]:
    """The metric that a record keeps of a settled rule; empty where no other run was waited for."""
    if rule is None or rule.accuracy_of is None or rule.accuracy_pct is None:
        return {}
    return {MATCHED: rule.accuracy_pct}


def _accuracy_of(
    reference: RunSpec, split: str, data_digest: str | None, find: Find
) -> float | str:
    """Accuracy on a split in %, as the current record has it; a sentence why there is none."""
    reason = why_stale(reference, data_digest, find)
    record = find(reference.name)
    if reason is not None or record is None:
        return reason or "no record"
    if record.failure is not None:
        return f"its training failed: {record.failure.reason}"
    metric = reference.protocol.measured[split]
    value = record.metrics[metric]
    return value if metric.endswith("_accuracy_pct") else 100 - value
