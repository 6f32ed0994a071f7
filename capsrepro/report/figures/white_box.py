"""Figure 3 of Hinton et al. 2018: a CNN and capsules under FGSM and BIM, as ε grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from capsrepro.report.attack_results import is_cnn
from capsrepro.report.figures import canvas
from capsrepro.report.figures.archive import Archive, Source, budget
from capsrepro.report.figures.attacked import (
    Attacks,
    Settings,
    by_attack,
    epsilon_axis,
    find_attacked,
    settings_of,
)
from capsrepro.report.figures.curves import (
    BANDS,
    Curve,
    Style,
    by_model,
    counted,
    draw_band,
    draw_curve,
    over_seeds,
)
from capsrepro.report.figures.panels import add_legend, draw_chance, new_panels, percent_axis
from capsrepro.report.figures.published import claims_read_from, epsilon_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAPER_DATA = "smallnorb"
_METHODS = ("fgsm", "bim")

_CNNS = (((canvas.RED, "o"), (canvas.ORANGE, "s")), (("#555555", "v"), ("#AAAAAA", "^")))
_CAPSULES = (
    ((canvas.BLUE, "o"), (canvas.SKY, "s")),
    ((canvas.GREEN, "v"), ("#8FD5BF", "^")),
    (("#7A3E8E", "P"), (canvas.PURPLE, "X")),
)
"""Of each network how FGSM looks and how BIM does."""


class _Side(NamedTuple):
    """What a panel shows.

    Attributes:
        title: Above it.
        axis: Beside it.
        attacks: Names in `params.yaml`, in the order of `_METHODS`.
        metric: The curve of their records.
        locator: The panel of the paper.
    """

    title: str
    axis: str
    attacks: tuple[str, str]
    metric: str
    locator: str


_SIDES = (
    _Side("untargeted", "accuracy, %", _METHODS, "accuracy_pct", "Fig. 3 left"),
    _Side(
        "targeted (true class included)",
        "success, %",
        ("fgsm-targeted", "bim-targeted"),
        "targeted_success_pct",
        "Fig. 3 right",
    ),
)


def _is_shown(name: str, settings: Settings) -> bool:
    in_standard_deviations = settings.get("epsilon_unit") == "standardised-pixels"
    return in_standard_deviations and any(name in side.attacks for side in _SIDES)


SHOWN = Attacks(_PAPER_DATA, "attack by FGSM or BIM in standardised pixels", _is_shown)


def draw_white_box(archive: Archive) -> Figure:
    """Left the accuracy, right the success of targeted attacks; dashed what the paper plots.

    Raises:
        NothingToDrawError: No network was attacked with ε in standardised pixels.
        CapsreproError: The file of claims is damaged.
    """
    sources = _most_attacked(find_attacked(archive, SHOWN))
    attacks = {
        name: by_model(archive, found) for name, found in by_attack(archive, sources).items()
    }
    looks = _looks(sources)
    figure, panels = new_panels(_heading(sources[0]), len(_SIDES), legend=1.0)
    for axes, side in zip(panels, _SIDES, strict=True):
        for place, name in enumerate(side.attacks):
            for model, found in attacks.get(name, {}).items():
                label = f"ours: {model}, {_METHODS[place].upper()}"
                curve = over_seeds(found, "epsilon", side.metric)
                draw_curve(axes, curve, looks[model][place], counted(label, [len(found)]))
        draw_chance(axes, [source.record for source in sources])
        _overlay(axes, side.locator)
        epsilon_axis(axes, [source.record for source in sources])
        percent_axis(axes, side.axis)
        axes.set_title(side.title)
    add_legend(figure, panels, columns=2)
    return figure


def published_curve(locator: str, model: str, method: str) -> Curve:
    """A curve of the paper, with the error of reading it for a band.

    Raises:
        CapsreproError: The file of claims is damaged.
    """
    claims = [
        claim
        for claim in claims_read_from(locator, "hinton2018")
        if (claim.model, claim.condition.get("attack")) == (model, method)
    ]
    claims.sort(key=epsilon_of)
    return Curve(
        points=[epsilon_of(claim) for claim in claims],
        mean=[claim.value for claim in claims],
        low=[claim.value - (claim.reading_error or 0) for claim in claims],
        high=[claim.value + (claim.reading_error or 0) for claim in claims],
        seeds=1,
    )


def _overlay(axes: Axes, locator: str) -> None:
    for model, looks in (("cnn-baseline", _CNNS[0]), ("matcaps-em3", _CAPSULES[0])):
        for (color, _), method in zip(looks, _METHODS, strict=True):
            curve, label = published_curve(locator, model, method), f"published: {model}"
            label = f"{label}, {method.upper()}"
            draw_band(axes, curve, color, label)
            axes.plot(curve.points, curve.mean, "--", color=color, linewidth=1.1, label=label)


def _most_attacked(sources: Sequence[Source]) -> list[Source]:
    """Those of the models with most of the attacks: one that has a single one only crowds them."""
    kinds: dict[str, set[str]] = {}
    for source in sources:
        kinds.setdefault(source.record.model, set()).add(source.record.kind)
    most = max(map(len, kinds.values()))
    return [source for source in sources if len(kinds[source.record.model]) == most]


def _looks(sources: Sequence[Source]) -> dict[str, tuple[Style, Style]]:
    """Colours and marks of each model, those of CNNs warm and those of capsules cold."""
    looks: dict[str, tuple[Style, Style]] = {}
    taken = {True: 0, False: 0}
    for source in sources:
        if source.record.model not in looks:
            plain = is_cnn(source.record.spec["model"]["stands_for"])
            family = _CNNS if plain else _CAPSULES
            looks[source.record.model] = family[taken[plain] % len(family)]
            taken[plain] += 1
    return looks


def _heading(source: Source) -> list[str]:
    record = source.record
    data, split = record.spec["dataset"]["name"], settings_of(record)["split"]
    lines = [
        "Adversarial attacks, after Hinton et al. 2018, Fig. 3",
        f"ours: {record.protocol}, {split} images of {data}, {budget(record)}",
        f"ours, lines: means over seeds; {BANDS}",
        "published: smallNORB, digitised; bands: the error of reading",
    ]
    if data != _PAPER_DATA:
        lines.append(f"ours are of {data}, not of smallNORB: values cannot be compared with theirs")
    return lines
