"""Bundles made by hand, byte by byte, so that they can be wrong in every way."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from capsrepro.errors import CapsreproError
from capsrepro.files import digest, sha256_of_file
from capsrepro.records import Record, read_record, write_record
from capsrepro.running.bundle import read_bundle

RUN = "digits/capsnet-r3-recon/seed-0"
PLACE = f"runs/{RUN}"
TRAIN, FGSM, DRAWN = (f"{PLACE}/{kind}.json" for kind in ("train", "fgsm", "reconstruct"))
HISTORY, ARRAYS = f"{PLACE}/history.jsonl", f"{PLACE}/reconstruct.npz"
MANIFEST = "datasets/digits.json"
WEIGHTS = f"checkpoints/{RUN}/weights.safetensors"
Member = tuple[tarfile.TarInfo, bytes]


def assert_refused(path: Path, *words: str) -> None:
    """One sentence with the words, and nothing new beside the bundle."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(CapsreproError) as caught:
        read_bundle(path)
    said = str(caught.value)
    assert said.startswith(f"cannot import {path}: ")
    assert said.endswith(
        "; nothing was imported, copy the bundle again or `capsrepro export` it anew."
    )
    assert [word for word in words if word not in said] == [], said
    assert sorted(path.parent.rglob("*")) == before


def member(name: str, content: bytes = b"", **fields: Any) -> Member:
    """A plain file, unless the header's fields say otherwise."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for field, value in fields.items():
        setattr(header, field, value)
    return header, content


def tar_of(members: Iterable[Member], end: bytes = bytes(1024)) -> bytes:
    """An uncompressed archive of them, in this order."""
    blocks = []
    for header, content in members:
        blocks += [header.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % 512)]
    return b"".join(blocks) + end


def pack(path: Path, members: Iterable[Member]) -> Path:
    """A bundle of them."""
    path.write_bytes(gzip.compress(tar_of(members)))
    return path


def unpack(path: Path) -> dict[str, bytes]:
    """What any tar finds in a bundle."""
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


def repack(path: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The same bundle with other content, in the order that a bundle has."""
    content = unpack(path)
    change(content)
    order = sorted(content, key=lambda name: (not name.endswith(".json"), name))
    return pack(path, [member(name, content[name]) for name in order])


def rewrite(content: dict[str, bytes], name: str, **fields: Any) -> None:
    """Change a record in an unpacked bundle and seal it again."""
    record = Record.model_validate(json.loads(content[name])).model_copy(update=fields)
    content[name] = json.dumps(record.sealed().model_dump(mode="json")).encode()


def files_of(workplace: Any) -> dict[str, bytes]:
    """Every file in a workplace, locks aside."""
    files = {p: p.read_bytes() for p in workplace.root.rglob("*") if p.is_file()}
    return {
        str(path.relative_to(workplace.root)): content
        for path, content in files.items()
        if "lock" not in path.name
    }


def add_seed(workplace: Any, seed: int, **fields: Any) -> str:
    """A second run: the records and files of the first under another seed."""
    run = f"{RUN.rpartition('-')[0]}-{seed}"
    for folder in ("results/runs", "checkpoints"):
        shutil.copytree(workplace.root / folder / RUN, workplace.root / folder / run)
    for path in sorted(workplace.record(run=run).parent.glob("*.json")):
        record = read_record(path)
        spec = record.spec | {"seed": seed}
        update = {"run": run, "seed": seed, "spec": spec, "spec_digest": digest(spec)}
        write_record(path.parent, record.model_copy(update=update | fields))
    return run


def retrain(workplace: Any, run: str = RUN) -> None:
    """As if the run had been trained again to other weights; its evaluations stay as they are."""
    folder = workplace.record(run=run).parent
    history = folder / "history.jsonl"
    history.write_text(history.read_text().replace("1", "2"))
    weights = workplace.root / "checkpoints" / run / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    outputs = {path.name: sha256_of_file(path) for path in (weights, history)}
    weights.with_name(f"{weights.name}.sha256").write_text(
        f"{outputs[weights.name]}  {weights.name}\n"
    )
    record = read_record(workplace.record(run=run))
    write_record(folder, record.model_copy(update={"outputs": outputs}))
