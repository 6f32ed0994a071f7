from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bundle_files import FGSM, RUN, add_seed, files_of, retrain, unpack

from capsrepro.cli.main import _run
from capsrepro.files import sha256_of_file
from capsrepro.records import read_record, write_record

FILE = "out/x.tar.gz"


def export(workplace, *arguments):
    """What a successful export says of itself."""
    result = workplace.call("export", FILE, *arguments, "--json")
    assert (result.code, result.err) == (0, ""), result
    return json.loads(result.out)


def refused(workplace, code, *words, arguments=()):
    """One sentence, and no file."""
    before = files_of(workplace)
    result = workplace.call("export", FILE, *arguments)
    assert result.out == ""
    assert files_of(workplace) == before
    return result.is_refusal(code, *words)


def test_it_says_what_the_file_holds(evaluated):
    file = evaluated.root / FILE
    assert export(evaluated) == {
        "file": FILE,
        "bytes": file.stat().st_size,
        "sha256": sha256_of_file(file),
        "runs": {RUN: ["train", "fgsm", "reconstruct"]},
        "datasets": ["digits"],
        "weights": False,
        "left_out": {},
    }
    said = evaluated.call("export", FILE, "--weights").out.splitlines()
    assert said == [
        f"{RUN}: train, fgsm, reconstruct",
        f"{FILE}: 1 runs with 3 records of digits, with weights; {file.stat().st_size:,} bytes, "
        f"SHA-256 {sha256_of_file(file)}",
    ]


def test_the_same_results_give_the_same_bytes_and_nothing_else_changes(evaluated, tmp_path):
    before = files_of(evaluated)
    first = export(evaluated, "--weights")["sha256"]
    other = evaluated.copy(tmp_path / "elsewhere")
    for path in other.root.rglob("*"):
        path.touch()
    assert export(other, "--weights")["sha256"] == first
    assert export(evaluated)["sha256"] != first
    after = files_of(evaluated)
    assert after.pop(FILE)[:8] == b"\x1f\x8b\x08" + bytes(5)  # of gzip: no name, no time
    assert after == before


@pytest.mark.parametrize(
    ("names", "seeds"),
    [
        ([], [0, 1, 11]),
        (["digits"], [0, 1, 11]),
        (["digits/"], [0, 1, 11]),
        (["digits/capsnet-r3-recon"], [0, 1, 11]),
        (["digits/capsnet-r3-recon/seed-1"], [1]),
        (["digits/capsnet-r3-recon/seed-11", RUN, RUN], [0, 11]),
    ],
)
def test_runs_are_chosen_by_the_beginning_of_their_names(evaluated, names, seeds):
    for seed in (1, 11):
        add_seed(evaluated, seed)
    assert [int(run.rpartition("-")[2]) for run in export(evaluated, *names)["runs"]] == seeds
    held = {name.split("/")[3] for name in unpack(evaluated.root / FILE) if "seed" in name}
    assert held == {f"seed-{seed}" for seed in seeds}


def test_wrong_names(evaluated):
    for name in ("digits/capsnet-r3", "dig", "mnist", "seed-0", f"{RUN}/train.json", ""):
        assert refused(evaluated, 2, repr(name), "begins with it", arguments=[RUN, name])
    result = evaluated.call("export", "digits")
    assert result.is_refusal(2, "digits is no name for a bundle", ".tar.gz")
    assert _run(["export"]) == 2


def test_nothing_to_export(empty):
    assert refused(empty, 1, "there are no records in", "`capsrepro run`")


def test_evaluations_of_other_weights_are_left_out_and_named(evaluated):
    retrain(evaluated)
    told = export(evaluated)
    assert told["runs"] == {RUN: ["train"]}
    reason = "is of other weights than those of its train record"
    assert told["left_out"] == {f"{RUN}: fgsm": reason, f"{RUN}: reconstruct": reason}
    assert FGSM not in unpack(evaluated.root / FILE)
    said = evaluated.call("export", FILE).out
    assert f"left out: {RUN}: fgsm, which {reason}\n" in said


def test_evaluations_of_other_data_are_left_out(evaluated):
    record = read_record(evaluated.record("fgsm"))
    other = record.model_copy(update={"data": record.data.model_copy(update={"digest": "0" * 64})})
    write_record(evaluated.record().parent, other)
    told = export(evaluated)
    assert told["runs"] == {RUN: ["train", "reconstruct"]}
    assert list(told["left_out"]) == [f"{RUN}: fgsm"]


def test_a_run_that_is_not_trained_to_its_end_is_no_run(evaluated):
    run = add_seed(evaluated, 1)
    evaluated.record(run=run).unlink()
    assert list(export(evaluated)["runs"]) == [RUN]


@pytest.mark.parametrize("kind", ["train", "fgsm"])
@pytest.mark.fault
def test_damaged_records_are_refused_with_the_usual_sentence(evaluated, kind):
    path = evaluated.record(kind)
    whole = path.read_text()
    path.write_text(whole[:200])
    assert refused(evaluated, 1, f"record {path} is damaged", "git checkout")
    path.write_text(whole.replace('"cpu', '"gpu').replace('"seed": 0,', '"seed": 1,'))
    assert refused(evaluated, 1, f"record {path} was changed after it was written")


@pytest.mark.fault
def test_a_record_in_the_wrong_folder(evaluated):
    folder = evaluated.record().parent
    folder.rename(folder.with_name("seed-3"))
    assert refused(evaluated, 1, "seed-3/fgsm.json speaks of another run", "name the runs")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (f"results/runs/{RUN}/history.jsonl", ["is not the history", "git checkout"]),
        (f"results/runs/{RUN}/reconstruct.npz", ["is missing or not the file", "git checkout"]),
        ("results/datasets/digits.json", ["digits"]),
        (f"checkpoints/{RUN}/weights.safetensors", [f"`capsrepro run {RUN} --weights`"]),
        (f"checkpoints/{RUN}/weights.safetensors.sha256", [f"`capsrepro run {RUN} --weights`"]),
    ],
)
@pytest.mark.fault
def test_files_that_are_missing_or_changed(evaluated, file, words):
    path = evaluated.root / file
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"x\n")
    assert refused(evaluated, 1, *words, arguments=["--weights"])
    path.unlink()
    assert refused(evaluated, 1, *words, arguments=["--weights"])
    if file.startswith("checkpoints/"):
        export(evaluated)


def test_data_that_were_prepared_otherwise_since(evaluated):
    evaluated.edit(lambda d: d["datasets"]["digits"].update(test_count=400))
    assert evaluated.call("datasets", "prepare", "digits").code == 0
    assert refused(evaluated, 1, "without the manifest of its data", "datasets/digits.json")


EXPORT_WITH_LITTLE_DISK = f"""
import resource, sys
from capsrepro.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
main(["export", "{FILE}"])
"""


@pytest.mark.fault
def test_full_disk(evaluated):
    """The kernel's limit on file sizes stands for the disk: root may write past any permission."""
    (evaluated.root / "out").mkdir()
    (evaluated.root / FILE).write_bytes(b"an earlier bundle")
    before = files_of(evaluated)
    child = subprocess.run(
        [sys.executable, "-c", EXPORT_WITH_LITTLE_DISK],
        cwd=evaluated.root,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 1
    assert child.stderr.startswith(f"capsrepro: cannot write {FILE}: File too large; free space")
    assert child.stderr.count("\n") == 1
    assert files_of(evaluated) == before


def test_a_folder_that_cannot_be_made(evaluated):
    (evaluated.root / "out").write_text("a file")
    assert refused(evaluated, 1, f"cannot write {FILE}")


def test_it_needs_neither_torch_nor_a_tracker(evaluated):
    program = (
        "import sys\nfrom capsrepro.cli.main import _run\n"
        f"code = _run(['export', '{FILE}'])\n"
        "print(code, *sorted({'torch', 'mlflow', 'sklearn', 'tqdm'} & set(sys.modules)))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program], cwd=evaluated.root, capture_output=True, text=True
    )
    assert child.stdout.splitlines()[-1] == "0"
