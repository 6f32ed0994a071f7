"""How the models of a protocol stand attacks: one row an attack and model, one column an ε.

Beside them stands what tells whether the attack was any good; attack_checks.py judges it. Each
unit of ε and each goal has a table of its own, because a column would mean two things otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from capsrepro.report.attack_checks import check_notes
from capsrepro.report.attack_results import GRADIENT_RATIO, Attacked, BySeed, attack_results
from capsrepro.report.evaluation_tables import common_notes
from capsrepro.report.formatting import epsilon, mean_and_sd, plain, summary_values, title_of
from capsrepro.report.measurements import Fact
from capsrepro.report.rendering import Cell, Column, Scalar, Table
from capsrepro.report.statistics import summarise
from capsrepro.report.summaries import Group
from capsrepro.report.tables import NOTHING, model_name
from capsrepro.schema.params import Params

# The other curves are controls.
_SHOWN = (
    "accuracy_pct",
    "transfer_accuracy_pct",
    "targeted_success_pct",
    "wrong_target_success_pct",
)

_UNITS = {
    "raw-pixels": ("raw pixels", "in raw units, where black is 0 and white is 1"),
    "standardised-pixels": ("standardised pixels", "in standard deviations of its image"),
}

_NOISE = "noise_accuracy_pct"
_CONTROLS = {
    _NOISE: (
        "random signs: accuracy %",
        "Random signs: every pixel moves by the largest ε of the row, up or down at random; a "
        "control that needs no gradient.",
    ),
    "zero_gradient_pct": (
        "zero gradients %",
        "Zero gradients: the share of images whose gradient vanishes everywhere, which looks like "
        "robustness and is not.",
    ),
    GRADIENT_RATIO: (
        "gradient, CNN = 1",
        "Gradient: its mean L2 norm at the images as they are, as a multiple of the median over "
        "seeds that {cnn} has under the attack of that name, whose loss may be another.",
    ),
    "full_range_accuracy_pct": (
        "any pixels: accuracy %",
        "Any pixels: ε is the whole range from black to white, where no more than chance may stay "
        "right.",
    ),
}
"""By key: the heading, and what it means."""


class _Row(NamedTuple):
    """What a row shows: one curve of an attack on a model."""

    attacked: Attacked
    metric: str

    @property
    def curve(self) -> Mapping[float, BySeed]:
        return self.attacked.curves[self.metric]


def robustness_tables(protocol: str, groups: Sequence[Group], params: Params) -> list[Table]:
    """The tables of each version of a protocol, the present one first; empty without attacks."""
    asked = params.protocols.get(protocol)
    ours = [group for group in groups if group.protocol == protocol]
    tables = []
    for version in dict.fromkeys(group.version for group in ours):
        kinds: dict[tuple[str, str], list[Attacked]] = {}
        of_version = [group for group in ours if group.version == version]
        for one in attack_results(of_version, list(asked.attacks) if asked else []):
            if any(metric in one.curves for metric in _SHOWN):
                kinds.setdefault((one.unit, _goal(one.setting)), []).append(one)
        tables += [_table(*kind, results, params) for kind, results in sorted(kinds.items())]
    return tables


def _goal(setting: Mapping[str, Fact]) -> str:
    """Sorts as it should: accuracy first."""
    return "targeted" if setting.get("goal") == "targeted" else ""


def _table(unit: str, goal: str, results: Sequence[Attacked], params: Params) -> Table:
    confidence = params.margins.confidence
    rows = [_Row(one, metric) for one in results for metric in _SHOWN if metric in one.curves]
    sizes = sorted({size for row in rows for size in row.curve})
    written = [epsilon(size, unit) for size in sizes]
    controls = [key for key in _CONTROLS if any(_control(one, key) for one in results)]
    first = results[0].group
    name = "-".join(filter(None, (f"{first.protocol}-{first.version}-robustness", goal)))
    title = "success of targeted attacks" if goal else "accuracy under attack"
    return Table(
        name if unit == "raw-pixels" else f"{name}-standardised",
        f"{first.protocol} {first.version}: {title}, ε in {_UNITS[unit][0]}",
        (
            Column("attack", "attack"),
            Column("model", "model"),
            Column("measured", "measured"),
            Column("loss", "loss followed"),
            Column("test_images", "images", number=True),
            Column("seeds", "seeds", number=True),
            *(Column(f"epsilon_{size}", f"ε {size}", True) for size in written),
            *(Column(key, _CONTROLS[key][0], number=True) for key in controls),
        ),
        tuple(
            (
                *_what(row),
                *(_cell("accuracy_pct", row.curve.get(size), confidence) for size in sizes),
                *(_cell(key, _control(row.attacked, key), confidence) for key in controls),
            )
            for row in rows
        ),
        tuple(_notes(unit, goal, controls, results, confidence)),
    )


def _what(row: _Row) -> list[Cell]:
    """Which attack, on which model, what was measured, on what."""
    setting, group = row.attacked.setting, row.attacked.group
    images = row.attacked.number("test_images")
    seeds = max(map(len, row.curve.values()))
    identity: dict[str, Scalar] = {"name": row.attacked.name, **setting}
    loss = str(setting.get("loss", "unnamed"))
    return [
        Cell(_described(row.attacked), identity),
        Cell(model_name(group), group.model),
        Cell(title_of(row.metric), row.metric),
        Cell(loss, loss),
        NOTHING if images is None else Cell(plain(images), images),
        Cell(str(seeds), seeds),
    ]


def _described(attacked: Attacked) -> str:
    """Such as: pgd (20 steps of 1/8 ε, 3 starts)."""
    facts = attacked.setting
    method, steps, starts = facts["attack"], facts.get("steps", 1), facts.get("restarts", 1)
    details = [
        "" if attacked.name.startswith(str(method)) else method,
        "" if steps == 1 else f"{steps} steps of {facts.get('step_share')} ε",
        "" if starts == 1 else f"{starts} starts",
        f"made on {facts['source_model']}" if "source_model" in facts else "",
        "not clipped" if facts.get("clip") == "none" else "",
        "" if facts.get("split", "test") == "test" else f"{facts['split']} images",
    ]
    told = ", ".join(str(detail) for detail in details if detail)
    return f"{attacked.name} ({told})" if told else attacked.name


def _control(attacked: Attacked, key: str) -> BySeed | None:
    """What one of the last columns shows; None where it was not measured."""
    if key != _NOISE:
        return attacked.numbers.get(key)
    curve = attacked.curves.get(key)
    return curve[max(curve)] if curve else None


def _cell(metric: str, values: BySeed | None, confidence: float) -> Cell:
    """All accuracies and successes have the one decimal of an accuracy under attack."""
    if not values:
        return NOTHING
    found = summarise(list(values.values()), confidence)
    rounded = "accuracy_pct" if metric.endswith("_accuracy_pct") else metric
    return Cell(mean_and_sd(rounded, found), summary_values(found))


def _notes(
    unit: str, goal: str, controls: Sequence[str], results: Sequence[Attacked], confidence: float
) -> Iterator[str]:
    yield (
        "± is the standard deviation over seeds (n − 1); a dash: one seed has none, or this was "
        f"not measured. ε is the largest change of a pixel {_UNITS[unit][1]}."
    )
    if goal:
        yield (
            "Success: the share of images taken for the target, over all classes as targets, the "
            "true one included where it is not said to be left out."
        )
    cnn = next((one.cnn for one in results if one.cnn), None)
    if controls:
        yield " ".join(_CONTROLS[key][1].format(cnn=cnn) for key in controls)
    yield from check_notes(results, confidence)
    yield from common_notes(list({id(one.group): one.group for one in results}.values()))
