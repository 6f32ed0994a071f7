"""Accuracy under the attacks of a protocol, and success of its targeted attacks, by model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from capsrepro.report.figures.archive import Archive, Source, budget
from capsrepro.report.figures.attacked import (
    Attacks,
    by_attack,
    epsilon_axis,
    find_attacked,
    settings_of,
    told,
)
from capsrepro.report.figures.curves import (
    BANDS,
    by_model,
    counted,
    draw_curve,
    over_seeds,
    styles,
)
from capsrepro.report.figures.panels import add_legend, draw_chance, new_panels, percent_axis
from capsrepro.report.figures.published import claims_of_attack, epsilon_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNTARGETED = Attacks(
    "mnist", "untargeted attack", lambda _, settings: settings.get("goal") == "untargeted"
)
TARGETED = Attacks(
    "mnist", "attack towards every class", lambda _, settings: settings.get("goal") == "targeted"
)

_MARKS = ("D", "X", "*", "p")
"""Of published values, by model."""

Models = Mapping[str, Sequence[Source]]
"""What was made on each model, one record a seed."""


def draw_accuracy(archive: Archive) -> Figure:
    """One panel for each untargeted attack, in it one line for each model.

    Raises:
        NothingToDrawError: There is no untargeted attack.
        CapsreproError: The file of claims is damaged.
    """
    sources = find_attacked(archive, UNTARGETED)
    first = sources[0].record
    attacks = _by_attack_and_model(archive, sources)
    heading = [
        f"Accuracy under attack: {first.protocol}, {budget(first)}",
        "ε is the largest change of a pixel; dotted: every pixel moved by ±ε at random, "
        "on the same images",
        f"lines: means over seeds; {BANDS}",
    ]
    figure, panels = new_panels(heading, len(attacks), legend=0.8)
    looks, labels = styles(archive, sources), _labels(attacks)
    for axes, models in zip(panels, attacks, strict=True):
        for model, found in models.items():
            transferred = "source_model" in settings_of(found[0].record)
            measured = "transfer_accuracy_pct" if transferred else "accuracy_pct"
            curve = over_seeds(found, "epsilon", measured)
            draw_curve(axes, curve, looks[model], labels[model])
            noise = over_seeds(found, "epsilon", "noise_accuracy_pct")
            color, label = looks[model][0], f"_{labels[model]}, noise"
            axes.plot(noise.points, noise.mean, ":", color=color, linewidth=0.9, label=label)
        axes.plot([], [], ":", color="black", linewidth=0.9, label="random ±ε, by model")
        _finish(axes, models, "accuracy, %")
        _overlay(axes, archive, models)
    add_legend(figure, panels)
    return figure


def draw_targeted(archive: Archive) -> Figure:
    """One panel for each targeted attack, with and without the true class.

    Raises:
        NothingToDrawError: There is no targeted attack.
    """
    sources = find_attacked(archive, TARGETED)
    first = sources[0].record
    attacks = _by_attack_and_model(archive, sources)
    heading = [
        f"Success of targeted attacks: {first.protocol}, {budget(first)}",
        "share of images taken for the target, mean over target classes",
        f"lines: means over seeds; {BANDS}",
    ]
    figure, panels = new_panels(heading, len(attacks), legend=1.1)
    looks, labels = styles(archive, sources), _labels(attacks)
    for axes, models in zip(panels, attacks, strict=True):
        for model, found in models.items():
            every = over_seeds(found, "epsilon", "targeted_success_pct")
            draw_curve(axes, every, looks[model], f"{labels[model]}, every class")
            wrong = over_seeds(found, "epsilon", "wrong_target_success_pct")
            label = f"{labels[model]}, without the true one"
            draw_curve(axes, wrong, looks[model], label, linestyle="--", markerfacecolor="white")
        _finish(axes, models, "success, %")
    add_legend(figure, panels, columns=2)
    return figure


def _by_attack_and_model(archive: Archive, sources: Sequence[Source]) -> list[Models]:
    return [by_model(archive, found) for found in by_attack(archive, sources).values()]


def _labels(attacks: Sequence[Models]) -> dict[str, str]:
    """Names of the models in the legend, with the number of seeds in all panels."""
    seeds: dict[str, list[int]] = {}
    for models in attacks:
        for model, found in models.items():
            seeds.setdefault(model, []).append(len(found))
    return {model: counted(model, counts) for model, counts in seeds.items()}


def _finish(axes: Axes, models: Models, label: str) -> None:
    """What a panel needs besides its curves."""
    records = [source.record for found in models.values() for source in found]
    draw_chance(axes, records)
    epsilon_axis(axes, records)
    percent_axis(axes, label)
    axes.set_title(told(records), fontsize=7.5)


def _overlay(axes: Axes, archive: Archive, models: Models) -> None:
    """What reproductions report of the same attack on the same data, each in its own way."""
    record = next(iter(models.values()))[0].record
    protocol, settings = archive.params.protocols.get(record.protocol), settings_of(record)
    raw_white_box = (settings["epsilon_unit"], "source_model" in settings) == ("raw-pixels", False)
    if protocol is None or protocol.judged_as is None or not raw_white_box:
        return
    claims = claims_of_attack(protocol.judged_as, settings["method"])
    for place, model in enumerate(dict.fromkeys(claim.model for claim in claims)):
        own = [claim for claim in claims if claim.model == model]
        steps = own[0].condition.get("steps")
        way = f", {steps} steps" if steps else ""
        axes.plot(
            [epsilon_of(claim) for claim in own],
            [claim.value for claim in own],
            linestyle="none",
            marker=_MARKS[place % len(_MARKS)],
            markersize=6,
            color="black",
            markerfacecolor="white",
            zorder=3,
            label=f"published by {own[0].reported_by}: {model}{way}",
        )
