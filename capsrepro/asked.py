"""What `params.yaml` asks of each protocol, resolved into small files that DVC takes values from.

DVC reads a parameter file anew for every stage and walks all of it for every key. With
`params.yaml` that was most of a `dvc repro` with nothing to do (docs/decisions/0018).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from capsrepro.config import requested_runs
from capsrepro.files import write_text
from capsrepro.schema.base import Entry
from capsrepro.schema.params import Params


def asked_of_protocols(params: Params) -> dict[str, dict[str, Any]]:
    """What decides the numbers of every stage, by protocol.

    Returns:
        For each protocol `train.<model>`, the specification of its runs but for the seed, and
        `attacks.<name>` and `evaluations.<kind>`, their settings. Which models are attacked says
        which stages there are and not what they find, and is left out.
    """
    asked: dict[str, dict[str, Any]] = {
        name: {
            "train": {},
            "attacks": {key: _settings(attack) for key, attack in protocol.attacks.items()},
            "evaluations": {kind: _settings(one) for kind, one in protocol.evaluations if one},
        }
        for name, protocol in params.protocols.items()
    }
    for run in requested_runs(params):
        document = run.document()
        del document["seed"]
        asked[run.protocol_name]["train"][run.model_name] = document
    return asked


def _settings(entry: Entry) -> dict[str, Any]:
    return entry.model_dump(mode="json", exclude={"models"})


def write_asked(params: Params, folder: Path) -> list[Path]:
    """Bring a folder up to date: one file for each protocol, and nothing else.

    Returns:
        The files that were written; one that says the same already is left as it is.
    """
    asked = {f"{name}.json": entry for name, entry in asked_of_protocols(params).items()}
    for path in folder.glob("*"):
        if path.name not in asked:
            path.unlink()
    texts = {folder / name: json.dumps(entry, indent=1) + "\n" for name, entry in asked.items()}
    written = [path for path, text in texts.items() if _text(path) != text]
    for path in written:
        write_text(path, texts[path])
    return written


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
