"""The table of files and the table of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from capsrepro.config import load_params
from capsrepro.data import DATASETS
from capsrepro.data.sources import SOURCES, Source

ROOT = Path(__file__).parents[2]
FILES = [source for sources in SOURCES.values() for source in sources]
ONE_SERVER = {"svhn"}  # no second server with the same bytes could be found
OURS = {"cifar10-jpeg75"}  # no public server at all


@pytest.mark.parametrize("source", FILES, ids=lambda source: source.key)
def test_file_is_pinned(source: Source):
    assert len(bytes.fromhex(source.sha256)) == 32
    assert source.size_bytes > 100
    assert source.licence
    assert source.citation.endswith(".")
    assert len(source.mirrors) == len(set(source.mirrors))
    assert all(address.endswith(f"/{source.name}") for address in source.mirrors)
    if source.dataset not in OURS:
        assert len(source.mirrors) >= (1 if source.dataset in ONE_SERVER else 2)
    # A server that speaks plain http is the only one, or comes after one that does not.
    if source.dataset not in ONE_SERVER | OURS:
        assert source.mirrors[0].startswith("https://")


def test_no_file_stands_twice():
    assert len({source.sha256 for source in FILES}) == len(FILES)
    assert len({source.key for source in FILES}) == len(FILES)


def test_table_has_every_data_set_under_its_name():
    assert all(dataset.name == name for name, dataset in DATASETS.items())
    used = {source.key for dataset in DATASETS.values() for source in dataset.sources}
    assert used == {source.key for source in FILES}
    assert [name for name, row in DATASETS.items() if row.optional] == ["cifar10-jpeg"]


def test_params_and_docs_know_every_data_set():
    params = load_params(ROOT / "params.yaml")
    assert set(params.datasets) == set(DATASETS)
    cards = (ROOT / "docs/datasets.md").read_text()
    pipeline = (ROOT / "pipelines/datasets/dvc.yaml").read_text()
    for name, dataset in DATASETS.items():
        assert f"`{name}`" in cards or f"## {name}\n" in cards
        assert dataset.citation.split(":")[0] in cards
        assert (f"- {name}\n" in pipeline) is not dataset.optional


def test_card_states_the_measured_overlap():
    cards = (ROOT / "docs/datasets.md").read_text()
    for name in ("multimnist", "multimnist-relative", "multimnist-code"):
        manifest = json.loads((ROOT / f"results/datasets/{name}.json").read_text())
        overlap = manifest["splits"]["train"]["notes"]["mean_box_overlap_pct"]
        assert f"{overlap:.2f} %" in cards


@pytest.mark.parametrize("name", DATASETS)
def test_row_is_complete(name: str):
    dataset = DATASETS[name]
    assert dataset.title
    assert len(set(dataset.classes)) == len(dataset.classes) in (5, 10)
    assert dataset.counts["train"] > 1_000
    assert dataset.image_shape[0] in (1, 2, 3)
