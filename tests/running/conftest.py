"""A trained run with every kind of file that a bundle carries, and bundles of it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

RUN = "digits/capsnet-r3-recon/seed-0"


@pytest.fixture(scope="session")
def evaluated_once(trained_once, tmp_path_factory):
    """Trained, attacked and reconstructed: records, history, weights and arrays."""
    workplace = trained_once.copy(tmp_path_factory.mktemp("evaluated") / "project")

    def ask(document: dict[str, Any]) -> None:
        asked = {"models": ["capsnet-r3-recon"], "examples_right": 2, "examples_wrong": 1}
        asked["perturbed_digits"] = [1] * 6
        document["protocols"]["digits"]["evaluations"] = {"reconstruct": asked}

    workplace.edit(ask)
    result = workplace.call("reconstruct", RUN)
    assert result.code == 0, result
    return workplace


@pytest.fixture
def evaluated(evaluated_once, tmp_path):
    """One run with records, history, weights and arrays."""
    return evaluated_once.copy(tmp_path / "evaluated")


@pytest.fixture(scope="session")
def bundles_once(evaluated_once, tmp_path_factory):
    """The run without and with its weights."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, options in (("light", []), ("heavy", ["--weights"])):
        result = evaluated_once.call("export", str(folder / f"{name}.tar.gz"), *options)
        assert result.code == 0, result
    return folder


@pytest.fixture
def light(bundles_once, tmp_path):
    """A bundle without weights, to be spoilt."""
    return shutil.copy(bundles_once / "light.tar.gz", tmp_path / "light.tar.gz")


@pytest.fixture
def heavy(bundles_once, tmp_path):
    """A bundle with weights, to be spoilt."""
    return shutil.copy(bundles_once / "heavy.tar.gz", tmp_path / "heavy.tar.gz")
