"""Which attacks a figure is drawn from: all there are of one protocol, and how to get them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capsrepro.config import RunSpec, requested_runs, resolve_run
from capsrepro.records import Record
from capsrepro.report.figures.archive import (
    Archive,
    NothingToDrawError,
    Source,
    Wish,
    cheapest,
    find_evaluated,
)
from capsrepro.report.formatting import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Settings = Mapping[str, Any]
"""How an attack is made, as `attacks` of a protocol and `spec["attack"]` of a record say it."""

_PREFERRED = ("cnn-baseline", "cnn-pooled", "matcaps-em3", "capsnet-r3-recon")


@dataclass(frozen=True)
class Attacks:
    """The attacks that a figure shows.

    Attributes:
        protocol: The claims' name of the protocol that they would best be of.
        what: Such an attack in words.
        shown: Whether one, told its name and its settings, belongs to them.
    """

    protocol: str
    what: str
    shown: Callable[[str, Settings], bool]


def find_attacked(archive: Archive, attacks: Attacks) -> list[Source]:
    """The attacks of one protocol, never empty: of the run's that is named, or of the best.

    Best is the wished protocol, then one with most of the attacks, then any that a paper is judged
    by, then the fullest budget.

    Raises:
        NothingToDrawError: No finished run was attacked so, or not the one that is named.
    """
    protocols: dict[str, list[Source]] = {}
    for source in find_evaluated(archive):
        if attacks.shown(source.record.kind, source.record.spec.get("attack", {})):
            protocols.setdefault(source.record.protocol, []).append(source)
    if archive.run is not None:
        own = protocols.get(archive.run.partition("/")[0], [])
        protocols = {"own": own} if any(s.record.run == archive.run for s in own) else {}
    if not protocols:
        raise NothingToDrawError(_how_to_get(archive, attacks))
    return min(protocols.values(), key=lambda sources: _place(archive, attacks, sources))


def by_attack(archive: Archive, sources: Sequence[Source]) -> dict[str, list[Source]]:
    """Attacks of one protocol by name, in the protocol's order."""
    protocol = archive.params.protocols.get(sources[0].record.protocol)
    kinds: dict[str, list[Source]] = {kind: [] for kind in (protocol.attacks if protocol else ())}
    for source in sources:
        kinds.setdefault(source.record.kind, []).append(source)
    return {kind: found for kind, found in kinds.items() if found}


def settings_of(record: Record) -> Settings:
    """How the attack of a record was made."""
    settings: Settings = record.spec["attack"]
    return settings


def told(records: Sequence[Record]) -> str:
    """How an attack was made, in two lines; where models differ, all that they had."""

    def each(key: str) -> str:
        return " / ".join(dict.fromkeys(str(settings_of(record)[key]) for record in records))

    parts = [records[0].kind]
    if "source_model" in settings_of(records[0]):
        parts.append(f"{each('method')} on {each('source_model')}")
    if each("steps") != "1":
        parts.append(f"{each('steps')} steps")
    if each("restarts") != "1":
        parts.append(f"worst of {each('restarts')} starts")
    images = " / ".join(dict.fromkeys(plain(r.metrics["test_images"]) for r in records))
    return f"{', '.join(parts)}\nloss: {each('loss')}; {images} {each('split')} images"


def epsilon_axis(axes: Axes, records: Sequence[Record]) -> None:
    """Ticks as the unit is spoken of: in shares of 255 where pixels are raw."""
    if settings_of(records[0])["epsilon_unit"] != "raw-pixels":
        axes.set_xlabel("ε, standard deviations of the image's pixels")
        return
    largest = max(round(255 * max(record.curves["epsilon"])) for record in records)
    ticks = range(0, largest + 1, 25 if largest <= 100 else 50)
    axes.set_xticks([n / 255 for n in ticks], [f"{n}/255" if n else "0" for n in ticks])
    axes.set_xlabel("ε, raw pixels (black 0, white 1)")


def _place(archive: Archive, attacks: Attacks, sources: Sequence[Source]) -> tuple[Any, ...]:
    """Sorting key of protocols."""
    protocols, name = archive.params.protocols, sources[0].record.protocol
    judged_as = protocols[name].judged_as if name in protocols else None
    return (
        judged_as != attacks.protocol,
        -len({source.record.kind for source in sources}),
        judged_as is None,
        -max(source.record.budget.fraction for source in sources),
        list(protocols).index(name) if name in protocols else len(protocols),
    )


def _how_to_get(archive: Archive, attacks: Attacks) -> str:
    """One sentence: no such record, and the commands that need least training to make one."""
    if archive.run is not None:
        specs = [resolve_run(archive.params, archive.run)]
        missing = f"{archive.run} has no current record of an {attacks.what}"
        none = f"the protocol of {archive.run} asks for no {attacks.what}; name another run."
    else:
        specs = requested_runs(archive.params)
        missing = f"no finished run has the record of an {attacks.what}"
        none = f"params.yaml asks for no {attacks.what}; add one to the `attacks` of a protocol."
    asked = {spec.name: _asked(spec, attacks, archive.run) for spec in specs}
    fitting = [spec for spec in specs if asked[spec.name]]
    if not fitting:
        return none
    done = {record.run for record in archive.finished()}
    trained = [spec for spec in fitting if spec.name in done]
    run = cheapest(trained or fitting, Wish("train", attacks.protocol, _PREFERRED), done)
    training = [] if run in done else [f"`capsrepro run {run}`"]
    attack = f"`capsrepro attack {asked[run][0]} {run}`"
    return f"{missing}; run {' and '.join([*training, attack])}."


def _asked(spec: RunSpec, attacks: Attacks, named: str | None) -> list[str]:
    """Names of the fitting attacks of a protocol: on the model, or on any run that is named."""
    return [
        name
        for name, attack in spec.protocol.attacks.items()
        if attacks.shown(name, attack.model_dump(mode="json"))
        and (named is not None or spec.model_name in attack.models)
    ]
