"""`capsrepro datasets` as people type it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from capsrepro.data import DATASETS, fetch

SHARED = Path(__file__).parents[3] / "shared/datasets"
GENERATED = ("solids", "solids-azimuth", "solids-elevation")
REQUIRED = [name for name, row in DATASETS.items() if not row.optional and name not in GENERATED]
real_mnist = pytest.mark.skipif(
    not (SHARED / "mnist").is_dir(), reason=f"{SHARED}/mnist is not there"
)


@pytest.fixture
def offline(monkeypatch):
    """No server can be reached: the proxy is not there."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, nowhere)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setattr(fetch, "RETRY_PAUSES_S", ())
        yield


def test_list_shows_every_data_set(prepared):
    rows = {row["name"]: row for row in json.loads(prepared.call("datasets", "list", "--json").out)}
    assert list(rows) == list(DATASETS)
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {name: "prepared" if name == "digits" else "absent" for name in DATASETS}
    assert rows["svhn"]["images"] == {"train": 73_257, "test": 26_032}
    table = prepared.call("datasets", "list").out
    for text in ("train 1,297, test 500", "train 60,000,000, test 10,000,000", "170.1 MB"):
        assert text in table
    assert all(row.licence in table for row in DATASETS.values())


@pytest.mark.fault
def test_broken_data_are_prepared_again(trained):
    path = trained.root / "data" / "prepared" / "digits" / "test.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    broken = trained.call("datasets", "verify", "digits")
    assert broken.is_refusal(1, str(path), "datasets prepare digits")
    assert trained.call("datasets", "prepare", "digits").code == 0
    assert path.read_bytes() == whole


def test_verify_checks_whatever_is_prepared(prepared):
    result = prepared.call("datasets", "verify")
    assert result.code == 0
    assert "digits: every file is as its manifest says" in result.out
    assert result.out.count("not prepared here") == len(DATASETS) - 1
    (prepared.root / "data" / "prepared" / "digits" / "test.npz").write_bytes(b"")
    result = prepared.call("datasets", "verify")
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(
        f"capsrepro: 1 of {len(DATASETS)} data sets failed (digits): "
    )


@pytest.fixture
def without_generated(monkeypatch):
    """Leave out those that need no server and take half a minute to draw."""
    for name in GENERATED:
        monkeypatch.delitem(DATASETS, name)


@pytest.mark.parametrize("command", ["fetch", "prepare"])
@pytest.mark.fault
@pytest.mark.usefixtures("without_generated")
def test_one_data_set_out_of_reach_does_not_keep_back_the_others(command, prepared, offline):
    result = prepared.call("datasets", command)
    assert result.code == 1
    *each, last = [line for line in result.err.splitlines() if line.startswith("capsrepro: ")]
    assert result.out.startswith("digits: ")
    assert len(each) == len(REQUIRED) - 1
    assert all("cannot get " in line and "put the file by hand at " in line for line in each)
    assert f"{len(REQUIRED) - 1} of {len(REQUIRED)} data sets failed (mnist, " in last
    assert "cifar10-jpeg" not in result.err  # only on demand
    raw = prepared.root / "data" / "raw"
    assert not [path for path in raw.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.fault
def test_data_set_that_no_server_has(prepared, offline):
    result = prepared.call("datasets", "fetch", "cifar10-jpeg")
    assert result.is_refusal(1, "no public server has it", "put the file by hand at")


def test_progress_is_plain_lines_without_a_terminal(empty):
    source = DATASETS["mnist"].sources[1]
    mirror = empty.root / "mirror"
    (mirror / "mnist").mkdir(parents=True)
    (mirror / source.key).write_bytes(b"something else")
    empty.env["CAPSREPRO_MIRROR"] = str(mirror)
    result = empty.spawn("datasets", "fetch", "mnist", HTTPS_PROXY="http://127.0.0.1:9")
    assert "\r" not in result.err
    assert "mnist/train-images-idx3-ubyte.gz: 9,912,422 bytes from " in result.err


def test_show_draws_what_a_run_sees(prepared):
    for name in ("grid.png", "again.png", "grid.svg"):
        result = prepared.call("datasets", "show", "digits", "--out", name)
        assert result.code == 0
        assert result.out == f"{name}: digits · train · own · seed 0 · 8×8\n"
    first = (prepared.root / "grid.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert (prepared.root / "again.png").read_bytes() == first
    assert b"<svg" in (prepared.root / "grid.svg").read_bytes()
    prepared.call("datasets", "show", "digits", "--out", "again.png", "--seed", "1")
    assert (prepared.root / "again.png").read_bytes() != first
    test = prepared.call("datasets", "show", "digits", "--out", "t.pdf", "--split", "test")
    assert "· test ·" in test.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope", "--out", "a.png"], ["no data set nope"]),
        (["digits", "--out", "a.bmp"], ["a.bmp", "png, svg, pdf"]),
        (["digits", "--out", "a.png", "--split", "valid"], ["no split valid", "train, test"]),
        (["digits", "--out", "a.png", "--reading", "hers"], ["no reading hers", "own"]),
        (["digits", "--out", "a.png", "--count", "0"], ["--count"]),
    ],
)
def test_show_refuses(prepared, arguments, words):
    assert prepared.call("datasets", "show", *arguments).is_refusal(2, *words)
    assert not (prepared.root / "a.png").exists()


def test_show_into_a_folder_that_cannot_be_made(prepared):
    (prepared.root / "blocked").write_text("a file where a folder should be\n")
    result = prepared.call("datasets", "show", "digits", "--out", "blocked/grid.png")
    assert result.is_refusal(1, "cannot write blocked/grid.png")


def test_materialize_is_for_composites(prepared):
    result = prepared.call("datasets", "prepare", "digits", "--materialize", "10")
    assert result.is_refusal(2, "data set digits has no composites")


@pytest.mark.slow
@pytest.mark.real_data
@real_mnist
def test_multimnist_from_the_mirror(empty):
    empty.env["CAPSREPRO_MIRROR"] = str(SHARED)
    result = empty.call("datasets", "prepare", "multimnist", "--materialize", "100")
    assert result.code == 0, result
    path = empty.root / "data/prepared/multimnist/composites/test-100.npz"
    assert f"multimnist: 100 composites in {path}, SHA-256 " in result.out
    with np.load(path) as arrays:
        assert arrays["images"].shape == (100, 1, 36, 36)
        assert (arrays["labels"][:, 0] != arrays["labels"][:, 1]).all()
    verified = empty.call("datasets", "verify", "multimnist")
    assert verified.out.endswith("manifest says, and so are its written subsets (1)\n")
    assert empty.call("datasets", "show", "multimnist", "--out", "grid.png").code == 0
