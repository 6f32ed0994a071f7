"""What is claimed of a data set rather than of a network: how large it is, how digits overlap.

The claims' name for what makes composites of single digits is `generator`. A data set that is made
so is a group of one measurement beside the groups of runs, taken from its manifest in
results/datasets; every data set that a protocol of the claim uses stands trial for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capsrepro.errors import CapsreproError
from capsrepro.files import digest
from capsrepro.report.measurements import Measurement
from capsrepro.report.summaries import Group
from capsrepro.schema.params import Params, Protocol

GENERATOR = "generator"
_ONCE = 0
"""In the place of a seed."""


def data_groups(params: Params, results: Path | None) -> list[Group]:
    """One group for each data set of composites that a judged protocol uses, or that is not here.

    Args:
        params: What is asked for.
        results: The results folder, where the manifests stand; None looks at no data.

    Raises:
        CapsreproError: A manifest is damaged.
    """
    if results is None:
        return []
    first: dict[str, str] = {}
    for name in params.judged_protocols:
        first.setdefault(params.protocols[name].dataset, name)
    groups = []
    for dataset, name in first.items():
        protocol = params.protocols[name]
        manifest = _read_manifest(results / "datasets" / f"{dataset}.json")
        absent = _absent(dataset, manifest, params.datasets[dataset])
        facts = composite_facts(manifest["splits"]) if manifest and not absent else {}
        if facts or absent:
            groups.append(_group(name, protocol, _reading(params, protocol), facts, absent))
    return groups


def composite_facts(splits: Mapping[str, Any]) -> dict[str, float]:
    """Metrics from what was noted of each split when its composites were looked at.

    Returns:
        `train_size` and `test_size`, how many composites there are; `overlap_pct`, how much of a
        digit's box the other box covers, in percent, the mean over all of them. Nothing when the
        images of this data set are no composites.
    """
    notes = {name: facts.get("notes", {}) for name, facts in splits.items()}
    sizes = {name: noted["composites"] for name, noted in notes.items() if "composites" in noted}
    if not sizes:
        return {}
    covered = sum(sizes[name] * notes[name]["mean_box_overlap_pct"] for name in sizes)
    return {
        **{f"{name}_size": float(size) for name, size in sizes.items()},
        "overlap_pct": covered / sum(sizes.values()),
    }


def _group(
    name: str, protocol: Protocol, reading: str, facts: Mapping[str, float], absent: str | None
) -> Group:
    return Group(
        protocol=name,
        version=protocol.version,
        title=protocol.title,
        model=GENERATOR,
        reading=reading,
        stands_for=GENERATOR,
        judged_as=protocol.judged_as,
        budget=1.0,
        superseded=None,
        seeds=(_ONCE,) if facts else (),
        failed={},
        missing=(),
        uncommitted=(),
        measurements=tuple(Measurement(key, {}, {}, {_ONCE: x}) for key, x in facts.items()),
        absent=absent,
    )


def _reading(params: Params, protocol: Protocol) -> str:
    """Data are read as the networks are that a protocol trains on them."""
    models = params.models[protocol.models]
    return models[next(iter(protocol.run_models or models))].reading


def _absent(
    dataset: str, manifest: Mapping[str, Any] | None, asked: Mapping[str, Any]
) -> str | None:
    """Why a data set cannot be looked at."""
    if manifest is None:
        return f"data set {dataset} is not prepared"
    if not asked.items() <= manifest["parameters"].items():
        return f"data set {dataset} was prepared otherwise than params.yaml has it now"
    return None


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, found to be whole; None when there is none."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # As the preparation does it: the hash of a file is no property of what is in it.
        splits = {
            split: {key: value for key, value in facts.items() if key != "sha256"}
            for split, facts in manifest["splits"].items()
        }
        contents = {"splits": splits, "parameters": manifest["parameters"]}
        whole = digest(contents) == manifest["digest"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise CapsreproError(
            f"{path} is no manifest of a prepared data set; restore it with `git checkout`."
        )
    return manifest
