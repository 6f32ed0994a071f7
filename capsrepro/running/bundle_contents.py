"""What may be in a bundle, what its documents must say, and which files they call for.

The same rules hold when a bundle is made and when it is read: what was exported can be imported.
Member names below are those of the archive; `place` says where each stands in a project.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from capsrepro.data.prepared import content_digest
from capsrepro.files import digest
from capsrepro.project import Project
from capsrepro.records import HISTORY, TRAIN, Record

WEIGHTS = "weights.safetensors"  # as in running.weights, which needs torch
_MIB = 1 << 20
_NAME = r"(?!\.)[\w.-]+"
_RUN = rf"{_NAME}/{_NAME}/seed-\d+"
_MOST_BYTES = {
    re.compile(rf"datasets/{_NAME}\.json"): _MIB,
    re.compile(rf"runs/{_RUN}/[\w-]+\.json"): 4 * _MIB,
    re.compile(rf"runs/{_RUN}/{re.escape(HISTORY)}"): 64 * _MIB,
    re.compile(rf"runs/{_RUN}/[\w-]+\.npz"): 64 * _MIB,
    re.compile(rf"checkpoints/{_RUN}/{re.escape(WEIGHTS)}"): 1024 * _MIB,
    re.compile(rf"checkpoints/{_RUN}/{re.escape(WEIGHTS)}\.sha256"): 1024,
}


class RefusedError(Exception):
    """What is wrong with a bundle, in a few words."""


@dataclass(frozen=True)
class Contents:
    """What the documents of a bundle say.

    Attributes:
        records: By member name.
        datasets: Digest of the data behind them, by member name of the manifest.
        files: SHA-256 of what the records left, by member name. Histories and arrays are always
            carried, weights (below `checkpoints/`) when asked for.
    """

    records: Mapping[str, Record]
    datasets: Mapping[str, str]
    files: Mapping[str, str]

    @property
    def runs(self) -> dict[str, list[Record]]:
        """The records of every run, the train record first."""
        found: dict[str, list[Record]] = {}
        for record in sorted(self.records.values(), key=lambda r: (r.run, r.kind != TRAIN, r.kind)):
            found.setdefault(record.run, []).append(record)
        return found


def most_bytes(name: str) -> int | None:
    """How large a member may be; None when no bundle holds one of this name."""
    return next((most for form, most in _MOST_BYTES.items() if form.fullmatch(name)), None)


def is_document(name: str) -> bool:
    """Whether a member is a record or a manifest, which say what the files must be."""
    return name.endswith(".json")


def place(project: Project, name: str) -> Path:
    """Where a member stands in a project."""
    folder, _, rest = name.partition("/")
    return project.checkpoints / rest if folder == "checkpoints" else project.results / name


def understand(documents: Mapping[str, bytes]) -> Contents:
    """Read records and manifests, believing nothing.

    Args:
        documents: Their bytes, by member name.

    Raises:
        RefusedError: One is damaged, was changed after it was written, contradicts itself, its
            place, its train record or the data beside it.
    """
    records = {n: _record(n, text) for n, text in documents.items() if n.startswith("runs/")}
    datasets = {n: _manifest(n, text) for n, text in documents.items() if n not in records}
    if not records:
        raise RefusedError("it holds no record")
    unused = datasets.keys() - {f"datasets/{record.data.name}.json" for record in records.values()}
    if unused:
        raise RefusedError(f"{min(unused)} belongs to none of its records")
    files: dict[str, str] = {}
    for name, record in records.items():
        train = records.get(f"runs/{record.run}/{TRAIN}.json")
        if train is None:
            raise RefusedError(f"{name} comes without the train record of its run")
        if fault := outdated(record, train):
            raise RefusedError(f"{name} {fault}")
        if datasets.get(f"datasets/{record.data.name}.json") != record.data.digest:
            raise RefusedError(
                f"{name} comes without the manifest of its data (digest {record.data.digest}) "
                f"in datasets/{record.data.name}.json"
            )
        for file, sha256 in _files(name, record).items():
            if files.setdefault(file, sha256) != sha256:
                raise RefusedError(f"{name} contradicts another record on what {file} is")
    return Contents(records, datasets, files)


def outdated(evaluation: Record, train: Record) -> str | None:
    """Why an evaluation does not belong to a train record, or None; that one belongs to itself."""
    if evaluation.kind == TRAIN:
        return None
    own = {WEIGHTS: train.outputs.get(WEIGHTS)}
    attack = evaluation.spec.get("attack")
    source = attack.get("source") if isinstance(attack, dict) else None
    others = {name for name in evaluation.inputs if name != WEIGHTS}
    if not own.items() <= evaluation.inputs.items() or others - {f"{source}/{WEIGHTS}"}:
        return "is of other weights than those of its train record"
    same = evaluation.data == train.data and train.spec.items() <= evaluation.spec.items()
    return None if same else "is of another specification or other data than its train record"


def _record(name: str, text: bytes) -> Record:
    try:
        record = Record.model_validate(json.loads(text))
        whole, spec_digest = record.seal_is_whole(), digest(record.spec)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise RefusedError(f"{name} is damaged: {key}: {first['msg'].lower()}") from error
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{name} is damaged: it is not JSON") from error
    if not whole:
        raise RefusedError(f"{name} was changed after it was written (its seal does not match)")
    if spec_digest != record.spec_digest:
        raise RefusedError(f"{name} has another specification than its digest says")
    if name != f"runs/{record.run}/{record.kind}.json" or not _is_consistent(record):
        raise RefusedError(f"{name} speaks of another run ({record.run}, {record.kind})")
    return record


def _is_consistent(record: Record) -> bool:
    spec, told = record.spec, (record.protocol, record.model, record.seed, record.protocol_version)
    try:
        asked = spec["protocol"], spec["model"]["name"], spec["seed"], spec["protocol_version"]
        same_data = spec["dataset"]["name"] == record.data.name
    except (KeyError, TypeError):
        return False
    run = f"{record.protocol}/{record.model}/seed-{record.seed}"
    return asked == told and same_data and run == record.run


def _files(name: str, record: Record) -> dict[str, str]:
    """SHA-256 of what a record left, by member name."""
    files: dict[str, str] = {}
    for output, sha256 in record.outputs.items():
        if output == WEIGHTS:
            weights, beside = f"checkpoints/{record.run}/{WEIGHTS}", f"{sha256}  {WEIGHTS}\n"
            files[weights] = sha256
            files[f"{weights}.sha256"] = hashlib.sha256(beside.encode()).hexdigest()
        else:
            files[f"runs/{record.run}/{output}"] = sha256
    if record.kind == TRAIN and not {HISTORY, WEIGHTS} <= record.outputs.keys():
        raise RefusedError(f"{name} names no history or no weights")
    if strange := [file for file in files if is_document(file) or most_bytes(file) is None]:
        raise RefusedError(f"{name} names {strange[0]}, which is nothing that a bundle holds")
    return files


def _manifest(name: str, text: bytes) -> str:
    """The digest in a manifest, once it is found to be that of its content."""
    if (found := manifest_digest(text, Path(name).stem)) is None:
        raise RefusedError(f"{name} is no manifest of a prepared data set")
    return found


def manifest_digest(text: bytes, dataset: str) -> str | None:
    """The digest in the manifest of a data set, or None when the text is anything else."""
    try:
        manifest = json.loads(text)
        whole = content_digest(manifest["splits"], manifest["parameters"]) == manifest["digest"]
        whole = whole and manifest["name"] == dataset
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return str(manifest["digest"]) if whole else None
