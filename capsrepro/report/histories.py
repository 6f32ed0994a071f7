"""What claims ask of a moment during training, answered from the histories of the runs.

A history has one entry per epoch: the means over the epoch, and what was looked at when it ended.
Which of them answers:

- a step below the first 20: the loss of that very batch, which the train record keeps;
- any other step: the entry of the epoch that the step falls into;
- an epoch: the entry whose end is nearest, at most half an epoch away;
- a span of epochs: the mean of all entries that end in it, once training has come to its end;
- the start: the first entry.

Training that ended earlier gives no answer; judging.py says so then. Histories are long, so one is
read only where a claim asks for such a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from capsrepro.claims import Claim
from capsrepro.records import HISTORY, Record, read_history
from capsrepro.report.measurements import DURING_TRAINING, Fact, Measurement, names_moment
from capsrepro.report.summaries import Group, models_of

HALF_AN_EPOCH = 0.5

History = Sequence[Mapping[str, float]]


def with_histories(groups: Iterable[Group], claims: Iterable[Claim], results: Path) -> list[Group]:
    """The same groups with what they measured at the moments that claims ask for.

    Args:
        groups: Of single models.
        claims: All claims.
        results: The results folder, where the histories stand.

    Raises:
        CapsreproError: A history that is needed is missing or not the one its record speaks of.
    """
    moments = [claim for claim in claims if claim.judged and names_moment(claim.condition)]
    return [_with_moments(group, moments, results) for group in groups]


def _with_moments(group: Group, moments: Sequence[Claim], results: Path) -> Group:
    asked = [
        (claim.metric, claim.condition)
        for claim in moments
        if any(group.stands_trial(claim, model) for model in models_of(claim))
    ]
    kept = [run for run in group.runs.values() if HISTORY in run.outputs] if asked else []
    runs = [(run, told) for run in kept if (told := read_history(results / "runs" / run.run, run))]
    if not runs:
        return group
    found = list(group.measurements)
    for metric, condition in asked:
        answers = {run.seed: _answer(run, told, metric, condition) for run, told in runs}
        values = {seed: value for seed, value in answers.items() if value is not None}
        measured = Measurement(metric, DURING_TRAINING, dict(condition), values)
        if values and measured not in found:
            found.append(measured)
    ended = {unit: min(told[-1][unit] for _, told in runs) for unit in ("step", "epoch")}
    return replace(group, measurements=tuple(found), ended=ended)


def _answer(
    run: Record, history: History, metric: str, condition: Mapping[str, Fact]
) -> float | None:
    """What one run measured under the condition; None when it did not, or not so."""
    facts = dict(condition)
    batch_size = run.spec["recipe"]["batch_size"]
    if facts.pop("batch_size", batch_size) != batch_size:
        return None
    iteration = facts.pop("iteration", None)
    key = metric if iteration is None else f"{metric}_{iteration}"
    first_losses = run.curves.get("first_losses", [])
    match sorted(facts.items()):
        case [("step", int(step))] if key == "train_loss" and step < len(first_losses):
            return first_losses[step]
        case [("step", int(step))]:
            entries = [_epoch_of_step(history, step)]
        case [("epoch", int() | float() as epoch)]:
            entries = [_epoch_ending_at(history, epoch)]
        case [("epoch_from", int() | float() as first), ("epoch_to", int() | float() as last)]:
            whole = bool(_epoch_ending_at(history, last))
            entries = [entry for entry in history if whole and first <= entry["epoch"] <= last]
        case [("phase", "start")]:
            entries = [history[0]]
        case _:
            return None
    values = [entry[key] for entry in entries if key in entry]
    return mean(values) if values else None


def _epoch_of_step(history: History, step: int) -> Mapping[str, float]:
    """The entry of the epoch in which this step was made; empty when training ended before."""
    return next((entry for entry in history if step <= entry["step"]), {})


def _epoch_ending_at(history: History, epoch: float) -> Mapping[str, float]:
    """The entry whose end is nearest; empty when that is more than half an epoch away."""
    nearest = min(history, key=lambda entry: abs(entry["epoch"] - epoch))
    return nearest if abs(nearest["epoch"] - epoch) <= HALF_AN_EPOCH else {}
