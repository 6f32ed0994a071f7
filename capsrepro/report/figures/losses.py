"""Figure A.2 of Sabour et al. 2017: training loss with one and with three routing iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from capsrepro.config import requested_runs
from capsrepro.files import digest
from capsrepro.records import Record, read_history
from capsrepro.report.figures import canvas
from capsrepro.report.figures.archive import Archive, NothingToDrawError, budget
from capsrepro.report.figures.published import claims_read_from, overlay_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {1: canvas.BLUE, 3: canvas.RED}
"""By number of routing iterations."""

PAPER = "cifar10"
"""The claims' name of the protocol that the paper's figure is of."""

Pair = Mapping[int, Sequence[Record]]
Curve = list[tuple[float, float]]


def draw_losses(archive: Archive) -> Figure:
    """Thin lines are seeds, thick ones their mean.

    Raises:
        NothingToDrawError: No protocol has finished runs with one and with three iterations that
            differ in nothing else.
        CapsreproError: The history of a run is missing or damaged.
    """
    pair = find_pair(archive)
    shown = pair[1][0]
    models = " and ".join(pair[iterations][0].model for iterations in COLOURS)
    figure = canvas.new_chart(
        [
            f"Training loss on {shown.protocol}, after Sabour et al. 2017, Fig. A.2",
            f"{models}, {budget(shown)}",
            "means over each epoch; thin: seeds, thick: their mean",
        ],
        6.5,
        4,
    )
    axes = figure.subplots()
    for iterations, color in COLOURS.items():
        curves = [loss_curve(archive, record) for record in pair[iterations]]
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), color=color, linewidth=0.6, alpha=0.5)
        seeds = ", ".join(str(record.seed) for record in pair[iterations])
        label = f"{_counted(iterations)} (seeds: {seeds})"
        axes.plot(*zip(*mean_curve(curves), strict=True), color=color, linewidth=1.8, label=label)
    if _is_the_papers(archive, shown):
        _overlay(axes)
        if shown.budget.fraction < 1:
            # Else a short run would be a dot at the left of the published curves.
            axes.set_xscale("symlog", linthresh=1000)
            axes.set_xticks([0, 1_000, 10_000, 100_000])
    axes.set(xlabel="step", ylabel="training loss")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend()
    return figure


def find_pair(archive: Archive) -> Pair:
    """Finished runs with one and with three iterations and nothing else that differs.

    The paper's own protocol comes first, then one that is held against a paper, then the fullest
    budget, then the authors' reading, whose loss the paper plots, then models without a decoder.
    """
    groups: dict[str, dict[int, list[Record]]] = {}
    for record in archive.finished():
        if archive.run is None or _place_and_seed(record.run) == _place_and_seed(archive.run):
            group = groups.setdefault(f"{_key(record.spec)} {record.data.digest}", {})
            group.setdefault(record.spec["model"].get("routing_iterations", 0), []).append(record)
    pairs = [
        group
        for group in groups.values()
        if COLOURS.keys() <= group.keys()
        and (archive.run is None or any(r.run == archive.run for n in COLOURS for r in group[n]))
    ]
    if not pairs:
        raise NothingToDrawError(_how_to_get(archive))
    return min(pairs, key=lambda pair: _rank(archive, pair[1][0]))


def loss_curve(archive: Archive, record: Record) -> Curve:
    """Middle step and mean training loss of each epoch."""
    history = read_history(archive.folder(record), record)
    ends = [0.0, *(entry["step"] for entry in history)]
    return [
        ((start + end) / 2, entry["train_loss"])
        for start, end, entry in zip(ends, ends[1:], history, strict=False)
    ]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over the seeds, at the steps that all of them have."""
    return [
        (points[0][0], mean(loss for _, loss in points)) for points in zip(*curves, strict=False)
    ]


def _overlay(axes: Axes) -> None:
    claims = claims_read_from("Fig. A.2")
    for iterations, color in COLOURS.items():
        own = [claim for claim in claims if claim.model == f"capsnet-r{iterations}"]
        steps = [float(claim.condition["step"]) for claim in own]
        overlay_points(axes, own, steps, f"published, {_counted(iterations)}", color)


def _counted(iterations: int) -> str:
    return f"{iterations} iteration{'s' * (iterations > 1)}"


def _is_the_papers(archive: Archive, record: Record) -> bool:
    """The published loss is the authors' mean over the classes: a sum is twenty times as large."""
    return _judged_as(archive, record) == PAPER and record.spec["model"]["reading"] == "code"


def _judged_as(archive: Archive, record: Record) -> str | None:
    protocol = archive.params.protocols.get(record.protocol)
    return protocol.judged_as if protocol else None


def _rank(archive: Archive, record: Record) -> tuple[Any, ...]:
    judged_as, protocols = _judged_as(archive, record), list(archive.params.protocols)
    return (
        judged_as != PAPER,
        judged_as is None,
        -record.budget.fraction,
        record.spec["model"]["reading"] != "code",
        bool(record.spec["model"]["decoder_widths"]),
        protocols.index(record.protocol) if record.protocol in protocols else len(protocols),
        record.model,
    )


def _key(document: Mapping[str, Any]) -> str:
    """Equal for two specifications that differ in routing iterations and seed alone."""
    free = ("name", "stands_for", "routing_iterations")
    model = {key: value for key, value in document["model"].items() if key not in free}
    return digest({**document, "model": model, "seed": None})


def _place_and_seed(run: str) -> tuple[str, str]:
    protocol, _, seed = run.split("/")
    return protocol, seed


def _how_to_get(archive: Archive) -> str:
    """One sentence with the commands of the pair that needs least training."""
    if archive.run:
        return (
            f"{archive.run} has no finished partner that differs in one against three routing "
            "iterations alone; name another run."
        )
    pairs: dict[str, dict[int, str]] = {}
    steps: dict[str, int] = {}
    for spec in requested_runs(archive.params):
        document = spec.document()
        iterations = document["model"].get("routing_iterations")
        if iterations in COLOURS:
            key = f"{_key(document)} {spec.seed}"
            pairs.setdefault(key, {})[iterations] = spec.name
            steps[key] = spec.protocol.recipe.steps
    whole = [key for key, pair in pairs.items() if pair.keys() == COLOURS.keys()]
    if not whole:
        return "no protocol of params.yaml has a model with one and with three routing iterations."
    done = {record.run for record in archive.finished()}
    wanted = {key: [run for run in pairs[key].values() if run not in done] for key in whole}
    best = min(whole, key=lambda key: (len(wanted[key]), steps[key]))
    commands = " and ".join(f"`capsrepro run {run}`" for run in wanted[best])
    return f"no protocol has finished runs with one and with three iterations; run {commands}."
