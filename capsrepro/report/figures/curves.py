"""Curves over the seeds of a protocol's models, and how they look: one colour and mark a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from capsrepro.files import digest
from capsrepro.records import Record
from capsrepro.report.figures import canvas
from capsrepro.report.figures.archive import Archive, Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (
    canvas.RED,
    canvas.BLUE,
    canvas.SKY,
    canvas.ORANGE,
    canvas.PURPLE,
    canvas.GREEN,
    "#666666",
)
_MARKS = ("o", "s", "^", "v", "D", "P", "X")
BANDS = "bands: from the lowest to the highest seed"

Style = tuple[str, str]
"""Colour and mark."""


@dataclass(frozen=True)
class Curve:
    """One quantity over the seeds of a model.

    Attributes:
        points: Where it was measured, rising.
        mean: Over the seeds, at each point.
        low: Of the lowest seed at each point.
        high: Of the highest.
        seeds: How many.
    """

    points: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def curve_of(seeds: Sequence[Sequence[tuple[float, float]]]) -> Curve:
    """The curve of one or more seeds that were measured at the same points, in any order.

    Raises:
        ValueError: A seed lacks a point of another.
    """
    columns = list(zip(*(sorted(points) for points in seeds), strict=True))
    values = [[value for _, value in column] for column in columns]
    return Curve(
        points=[column[0][0] for column in columns],
        mean=[mean(column) for column in values],
        low=[min(column) for column in values],
        high=[max(column) for column in values],
        seeds=len(seeds),
    )


def over_seeds(sources: Sequence[Source], x: str, y: str) -> Curve:
    """What `y` was at each `x`, both curves of the records, one record a seed."""
    curves = [source.record.curves for source in sources]
    return curve_of([list(zip(curve[x], curve[y], strict=True)) for curve in curves])


def by_model(archive: Archive, sources: Sequence[Source]) -> dict[str, list[Source]]:
    """Sources of one protocol and kind, by model in the protocol's order, one for each seed.

    What one mean is made of was trained and evaluated alike: where some seeds still have a record
    of other settings, the settings of the named run are taken, or of most seeds.
    """
    found: dict[str, dict[str, list[Source]]] = {}
    for source in sorted(sources, key=lambda source: source.record.seed):
        ways = found.setdefault(source.record.model, {})
        ways.setdefault(_way(source.record), []).append(source)

    def standing(way: list[Source]) -> tuple[bool, int]:
        return any(source.record.run == archive.run for source in way), len(way)

    return {
        model: max(found[model].values(), key=standing)
        for model in styles(archive, sources)
        if model in found
    }


def styles(archive: Archive, sources: Sequence[Source]) -> dict[str, Style]:
    """Colour and mark of each model, the same in every figure of a protocol.

    All that the protocol asks for come first, in its order, whether or not there are any. Where
    colours come again, they come with other marks.
    """
    protocol = archive.params.protocols.get(sources[0].record.protocol)
    asked = protocol.run_models if protocol else ()
    models = dict.fromkeys([*asked, *(source.record.model for source in sources)])
    count = len(_COLOURS)
    return {
        model: (_COLOURS[place % count], _MARKS[(place + place // count) % len(_MARKS)])
        for place, model in enumerate(models)
    }


def draw_curve(axes: Axes, curve: Curve, style: Style, label: str, **line: Any) -> None:
    """The mean as a line, and around it what lies between the seeds; one seed has no band."""
    color, marker = style
    if curve.seeds > 1:
        draw_band(axes, curve, color, label)
    look = {"color": color, "marker": marker, "markersize": 3, "label": label, **line}
    axes.plot(curve.points, curve.mean, **look)


def draw_band(axes: Axes, curve: Curve, color: str, label: str) -> None:
    """From `low` to `high` at every point."""
    axes.fill_between(
        curve.points,
        curve.low,
        curve.high,
        color=color,
        alpha=0.2,
        linewidth=0,
        label=f"_band of {label}",
    )


def counted(name: str, seeds: Sequence[int]) -> str:
    """A name and over how many seeds its curves go: cnn-baseline (n = 3)."""
    least, most = min(seeds), max(seeds)
    return f"{name} (n = {most if least == most else f'{least}–{most}'})"


def _way(record: Record) -> str:
    """Equal for two records of one model that differ in nothing but the seed and its source's."""
    attack: Mapping[str, Any] = record.spec.get("attack", {})
    alike = {key: value for key, value in attack.items() if key != "source"}
    return f"{digest({**record.spec, 'seed': None, 'attack': alike})} {record.data.digest}"
