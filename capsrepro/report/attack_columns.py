"""Accuracy under FGSM beside the results of a protocol: columns, cells, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capsrepro.report.formatting import epsilon, mean_and_sd, quantity, summary_values
from capsrepro.report.measurements import Fact, Measurement, loss_of
from capsrepro.report.rendering import Cell, Column
from capsrepro.report.statistics import summarise
from capsrepro.report.summaries import Group


def fgsm_epsilons(groups: Sequence[Group]) -> list[float]:
    """Every ε that one of the groups was attacked with, in raw pixels; empty without attacks."""
    measured = [m for group in groups for m in _fgsm(group).get("accuracy_pct", [])]
    return sorted({float(measurement.point["epsilon"]) for measurement in measured})


def fgsm_columns(epsilons: Sequence[float]) -> list[Column]:
    """One column for each ε, and one for images without a gradient; none without ε."""
    attacked = [
        Column(
            f"fgsm_{epsilon(size)}_accuracy_pct",
            f"FGSM {epsilon(size)}: accuracy %",
            number=True,
        )
        for size in epsilons
    ]
    zeros = [Column("zero_gradient_pct", "zero gradients %", number=True)] if attacked else []
    return attacked + zeros


def fgsm_cells(group: Group, epsilons: Sequence[float], confidence: float) -> list[Cell | None]:
    """The cells below `fgsm_columns`; None where nothing was measured."""
    if not epsilons:
        return []
    measured = _fgsm(group)
    by_epsilon = {m.point["epsilon"]: m.values for m in measured.get("accuracy_pct", [])}
    cells: list[Cell | None] = []
    for size in epsilons:
        if size in by_epsilon:
            accuracy = summarise(list(by_epsilon[size].values()), confidence)
            cells.append(Cell(mean_and_sd("accuracy_pct", accuracy), summary_values(accuracy)))
        else:
            cells.append(None)
    zeros = [v for m in measured.get("zero_gradient_pct", []) for v in m.values.values()]
    most = max(zeros, default=None)
    return [*cells, None if most is None else Cell(quantity("accuracy_pct", most), most)]


def fgsm_note(groups: Sequence[Group]) -> Iterator[str]:
    """How the attack was made, and which loss it followed; nothing without attacks."""
    losses: dict[str, list[str]] = {}
    for group in groups:
        for measurement in _fgsm(group).get("accuracy_pct", [])[:1]:
            losses.setdefault(loss_of(measurement.setting), []).append(group.model)
    if losses:
        told = "; ".join(f"{loss} ({', '.join(models)})" for loss, models in losses.items())
        yield (
            f"FGSM, untargeted, on the whole test set; the loss it follows: {told}. ε is the "
            "largest change of a pixel in raw units, where black is 0 and white is 1. Zero "
            "gradients: the largest share over seeds of images whose gradient vanished, which "
            "looks like robustness and is not."
        )


def _fgsm(group: Group) -> dict[str, list[Measurement]]:
    """What FGSM measured, by metric; of one setting, the one with most seeds.

    A run keeps one FGSM record, so a second setting is what some seeds still have from before.
    """
    settings: dict[tuple[tuple[str, Fact], ...], list[Measurement]] = {}
    for measurement in group.measurements:
        if measurement.setting.get("attack") == "fgsm":
            settings.setdefault(tuple(measurement.setting.items()), []).append(measurement)
    chosen = max(settings.values(), key=lambda found: len(found[0].values), default=[])
    by_metric: dict[str, list[Measurement]] = {}
    for measurement in chosen:
        by_metric.setdefault(measurement.metric, []).append(measurement)
    return by_metric
