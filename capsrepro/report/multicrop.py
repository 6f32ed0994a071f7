"""A model that sees several crops of every image, as a row of its own (EM18 Table 1).

EM18 is Hinton et al. 2018; its lowest error is of such a row. What `capsrepro crops` measured of a
model becomes a group beside it, by the name `<model>-multicrop`, which stands for
`<stands_for>-multicrop`. Its seeds are those that were evaluated; the weights are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from capsrepro.report.summaries import Group
from capsrepro.schema.params import Params

SUFFIX = "-multicrop"
_SETTING = {"evaluation": "crops"}


def with_multicrops(groups: Iterable[Group], params: Params) -> list[Group]:
    """The same groups, each followed by that of its crops if there is one or should be.

    What was measured over several crops is no longer among the measurements of the model itself.

    Args:
        groups: Of single models.
        params: What is asked for.
    """
    return [found for group in groups for found in _split(group, params)]


def multicrop_notes(groups: Iterable[Group]) -> Iterator[str]:
    """What a table must say of such rows."""
    for group in groups:
        crops = [m.point["crops"] for m in group.measurements if "crops" in m.point]
        if group.model.endswith(SUFFIX) and crops:
            yield (
                f"{group.model}: every image is classified by {max(crops):.0f} crops, whose "
                "activations are divided by their sum and added up."
            )


def _split(group: Group, params: Params) -> Iterator[Group]:
    """The model itself, then its crops."""
    own = tuple(m for m in group.measurements if m.setting != _SETTING)
    crops = tuple(m for m in group.measurements if m.setting == _SETTING)
    wanted = _is_wanted(group, params)
    yield replace(group, measurements=own)
    if crops or wanted:
        seeds = tuple(sorted({seed for found in crops for seed in found.values}))
        owed = (seed for seed in (*group.seeds, *group.missing) if seed not in seeds)
        yield replace(
            group,
            model=group.model + SUFFIX,
            stands_for=group.stands_for + SUFFIX,
            seeds=seeds,
            missing=tuple(sorted(owed)) if wanted else (),
            uncommitted=tuple(seed for seed in group.uncommitted if seed in seeds),
            # What all crops together gave stands as the test does; the way there stays a curve.
            measurements=tuple(m if m.point else replace(m, setting={}) for m in crops),
            scores={},
            pictures={},
        )


def _is_wanted(group: Group, params: Params) -> bool:
    """Whether params.yaml asks for several crops of this model."""
    protocol = params.protocols.get(group.protocol)
    asked = protocol.evaluations.crops if protocol else None
    return asked is not None and not group.superseded and group.model in asked.models
