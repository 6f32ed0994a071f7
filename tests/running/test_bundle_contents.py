"""Records and manifests that do not say the truth, though the archive around them is whole."""

from __future__ import annotations

import json

import pytest
from bundle_files import (
    DRAWN,
    FGSM,
    MANIFEST,
    PLACE,
    TRAIN,
    assert_refused,
    repack,
    rewrite,
    unpack,
)

from capsrepro.data.prepared import content_digest
from capsrepro.files import digest
from capsrepro.records import Record

STRANGE = "is nothing that a bundle holds"


def edited(name, old, new):
    def change(members):
        assert old in members[name]
        members[name] = members[name].replace(old, new)

    return change


def resealed(name, **fields):
    return lambda members: rewrite(members, name, **fields)


def respecified(**fields):
    def change(members):
        spec = json.loads(members[TRAIN])["spec"] | fields
        rewrite(members, TRAIN, spec=spec, spec_digest=digest(spec))

    return change


def other_data(members):
    """A whole manifest of other data."""
    manifest = json.loads(members[MANIFEST])
    manifest["parameters"]["split_seed"] = 1
    manifest["digest"] = content_digest(manifest["splits"], manifest["parameters"])
    members[MANIFEST] = json.dumps(manifest).encode()


def unused_manifest(members):
    members["datasets/a.json"] = members[MANIFEST].replace(b'"digits"', b'"a"')


def moved(members):
    """A record in the place of another seed's."""
    for name in [n for n in members if n.startswith(PLACE)]:
        members[name.replace("seed-0", "seed-7")] = members.pop(name)


def renamed(members):
    """The same, and it says that it belongs there; all else in it speaks of the old seed."""
    moved(members)
    for name in [n for n in members if n.startswith("runs/") and n.endswith(".json")]:
        rewrite(members, name, run="digits/capsnet-r3-recon/seed-7")


SHA = "0" * 64


def also_made_on(members):
    """An attack on the network itself whose record names another network too."""
    inputs = json.loads(members[FGSM])["inputs"]
    other = {"digits/cnn-baseline/seed-1/weights.safetensors": SHA}
    rewrite(members, FGSM, inputs={**inputs, **other})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edited(TRAIN, b'"test_errors": ', b'"test_errors": 1'), "changed after it was written"),
        (edited(FGSM, b'"accuracy_pct": [\n   ', b'"accuracy_pct": [\n   1'), "changed after"),
        (edited(TRAIN, b'"seal": "', b'"seal": "0'), "changed after it was written"),
        (edited(TRAIN, b'"schema_version": 1', b'"schema_version": 2'), "schema_version"),
        (edited(TRAIN, b'"kind": "train",', b""), "kind: field required"),
        (lambda m: m.update({TRAIN: b"[" * 100_000}), "it is not JSON"),
        (lambda m: m.update({TRAIN: b"\xff\xfe{}"}), "it is not JSON"),
        (lambda m: m.update({TRAIN: b"{}"}), "train.json is damaged"),
        (edited(TRAIN, b'"seed": 0,\n "status"', b'"seed": 1e999,\n "status"'), "damaged"),
        (resealed(TRAIN, spec_digest=SHA), "another specification than its digest"),
        (respecified(model=None), "speaks of another run"),
        (respecified(model=[]), "speaks of another run"),
        (respecified(seed=1), "speaks of another run"),
        (respecified(protocol="mnist"), "speaks of another run"),
        (respecified(protocol_version="9"), "speaks of another run"),
        (respecified(dataset={"name": "mnist", "parameters": {}}), "speaks of another run"),
        (respecified(full_steps=7), "another specification or other data than its train record"),
        (resealed(TRAIN, run="digits/capsnet-r3-recon/seed-1"), "speaks of another run"),
        (resealed(TRAIN, seed=1), "speaks of another run"),
        (resealed(TRAIN, model="capsnet-r1"), "speaks of another run"),
        (resealed(TRAIN, kind="fgsm"), "speaks of another run"),
        (moved, "speaks of another run"),
        (renamed, "speaks of another run"),
        (resealed(FGSM, inputs={"weights.safetensors": SHA}), "of other weights"),
        (resealed(FGSM, inputs={}), "of other weights"),
        (also_made_on, "of other weights"),
        (resealed(TRAIN, outputs={"history.jsonl": SHA, "weights.safetensors": SHA}), "of other"),
        (lambda m: m.pop(TRAIN), "without the train record of its run"),
        (resealed(DRAWN, outputs={"../../../../evil.npz": SHA}), STRANGE),
        (resealed(DRAWN, outputs={"evil.py": SHA}), STRANGE),
        (resealed(DRAWN, outputs={"train.json": SHA}), STRANGE),
        (resealed(DRAWN, outputs={"history.jsonl": SHA}), "contradicts another record"),
        (resealed(DRAWN, outputs={}), "none of its records speaks of"),
        (resealed(DRAWN, outputs={"reconstruct.npz": SHA}), "not the file that its record"),
        (edited(MANIFEST, b'"split_seed": 0', b'"split_seed": 1'), "no manifest"),
        (edited(MANIFEST, b'"name": "digits"', b'"name": "mnist"'), "no manifest"),
        (lambda m: m.update({MANIFEST: b"[]"}), "no manifest"),
        (other_data, "without the manifest of its data"),
        (unused_manifest, "belongs to none of its records"),
    ],
)  # fmt: skip
@pytest.mark.fault
def test_documents_that_lie(light, change, words):
    assert_refused(repack(light, change), words)


@pytest.mark.fault
def test_a_record_without_history_or_weights(light):
    for output in ("history.jsonl", "weights.safetensors"):
        content = light.read_bytes()
        record = Record.model_validate(json.loads(unpack(light)[TRAIN]))
        outputs = {name: sha for name, sha in record.outputs.items() if name != output}
        repack(
            light,
            lambda m, outputs=outputs: (
                m.pop(FGSM),
                m.pop(DRAWN),
                rewrite(m, TRAIN, outputs=outputs),
            ),
        )
        assert_refused(light, "names no history or no weights")
        light.write_bytes(content)
