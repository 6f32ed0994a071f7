"""All seeds of one model voting together, as DR17 §7 does for CIFAR-10.

An ensemble adds up the scores of each class, image by image, and takes the highest; the lengths of
capsules are such scores. It is a group beside that of its seeds, by the name
`<model>-ensemble<n>`, and stands for `<stands_for>-ensemble<n>`. It is one measurement: its seeds
give it no spread, so that no verdict but *inconclusive* or *not comparable* can rest on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from capsrepro.report.measurements import Measurement, with_accuracy
from capsrepro.report.summaries import Group
from capsrepro.schema.params import Params
from capsrepro.scores import count_errors, read_scores


def with_ensembles(groups: Sequence[Group], params: Params, results: Path) -> list[Group]:
    """The same groups, each followed by its ensembles.

    Args:
        groups: Of single models.
        params: What is asked for.
        results: The results folder, where the scores stand.

    Raises:
        CapsreproError: Scores that a record speaks of are missing or damaged.
    """
    return [found for group in groups for found in (group, *_ensembles(group, params, results))]


def _ensembles(group: Group, params: Params, results: Path) -> Iterator[Group]:
    """The one of the seeds that kept their scores, and the one that is asked for, if another."""
    wanted = _wanted(group, params)
    # Which seeds vote is laid down beforehand: one that was run besides could be one picked.
    seeds = tuple(seed for seed in group.scores if not wanted or seed in wanted)
    if len(seeds) > 1:
        measured = _measured(group, seeds, results)
        yield replace(_ensemble(group, len(seeds)), seeds=seeds, measurements=measured)
    if len(wanted) > 1 and len(wanted) != len(seeds):
        missing = tuple(seed for seed in wanted if seed not in seeds)
        yield replace(_ensemble(group, len(wanted)), missing=missing)


def _wanted(group: Group, params: Params) -> tuple[int, ...]:
    """The seeds whose ensemble params.yaml asks for."""
    protocol = params.protocols.get(group.protocol)
    asked = protocol.evaluations.scores if protocol else None
    if protocol is None or asked is None or group.superseded or group.model not in asked.models:
        return ()
    return protocol.run_seeds


def _ensemble(group: Group, size: int) -> Group:
    """An ensemble of so many; what became of each seed is told of the single models."""
    return replace(
        group,
        model=f"{group.model}-ensemble{size}",
        stands_for=f"{group.stands_for}-ensemble{size}",
        members=size,
        seeds=(),
        failed={},
        missing=(),
        uncommitted=(),
        measurements=(),
        scores={},
    )


def _measured(group: Group, seeds: Sequence[int], results: Path) -> tuple[Measurement, ...]:
    """Test error and accuracy of the ensemble, in the place of its first seed."""
    total_NK, labels_NL = np.zeros(()), np.empty((0, 1), np.uint8)
    for seed in seeds:
        run = f"{group.protocol}/{group.model}/seed-{seed}"
        scores_NK, labels_NL = read_scores(results / "runs" / run, run, group.scores[seed])
        # Exact: the scores are short of 11 bits, so the order of the seeds does not matter.
        total_NK = total_NK + scores_NK.astype(np.float64)
    images = len(labels_NL)
    error_pct = 100 * count_errors(total_NK, labels_NL) / images
    found = with_accuracy({"test_error_pct": error_pct, "test_images": float(images)})
    return tuple(Measurement(metric, {}, {}, {seeds[0]: value}) for metric, value in found.items())
