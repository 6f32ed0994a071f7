"""`capsrepro figures`: files, their bytes, what is said, and what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import yaml
from figure_files import Shelf, figure_params, one_digit, two_digits, votes
from matplotlib import image as matplotlib_image

from capsrepro.records import Record
from capsrepro.report.figures import FIGURES

# Whole commands: seconds each, left to `make test`.
pytestmark = pytest.mark.slow

ONE, TWO = "mnist-short/capsnet-r3-recon/seed-0", "multimnist-short/capsnet-r3-recon/seed-0"
MATRIX = "matcaps-mnist-short/matcaps-small-em3/seed-0"
HISTORY = [{"epoch": n, "step": 469 * n, "train_loss": 1 / n} for n in (1.0, 2.0)]
ROUTING = {
    "iteration": [1.0, 2.0, 3.0],
    "logit_change": [0.1, 0.09, 0.08],
    "agreement_change": [0.1, 0.01, 0.001],
    "coupling_change": [0.0, 0.02, 0.001],
}
OVERLAP = {
    "overlap_from": [0.0, 0.5],
    "overlap_to": [0.5, 1.0],
    "composites": [900.0, 100.0],
    "error_pct": [5.0, 20.0],
}
UNTARGETED = {"accuracy_pct": [98.0, 50.0, 9.0], "noise_accuracy_pct": [98.0, 97.0, 95.0]}
TARGETED = {
    "targeted_success_pct": [10.0, 20.0, 30.0],
    "wrong_target_success_pct": [1.0, 15.0, 25.0],
}
DISTORTED = {
    "rotation_deg": [-30.0, 0.0, 30.0],
    "translation_px": [0.0, 0.0, 0.0],
    "scale": [1.0, 1.0, 1.0],
    "affine_share": [0.0, 0.0, 0.0],
    "noise_sd": [0.0, 0.0, 0.0],
    "distorted_accuracy_pct": [80.0, 98.0, 81.0],
}


@dataclass
class Place:
    """A project and what is kept in it."""

    workplace: Any
    shelf: Shelf

    @property
    def root(self) -> Path:
        return self.workplace.root

    @property
    def figures(self) -> Path:
        return self.root / "results" / "figures"

    def call(self, *arguments: str) -> Any:
        return self.workplace.call("figures", *arguments)

    def bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.figures.iterdir())}


@pytest.fixture
def bare(empty: Any, run_record: Callable[..., Record]) -> Place:
    """No record at all."""
    params = figure_params()
    document = params.model_dump(mode="json")
    (empty.root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return Place(empty, Shelf(empty.root / "results", params, run_record))


@pytest.fixture
def full(bare: Place) -> Place:
    """Records for every figure."""
    trained = bare.shelf.train(ONE, HISTORY)
    bare.shelf.train(ONE.replace("r3", "r1"), HISTORY)
    bare.shelf.evaluate(trained, "reconstruct", arrays=one_digit())
    bare.shelf.evaluate(trained, "routing", ROUTING)
    bare.shelf.evaluate(trained, "distortions", DISTORTED, metrics={"test_images": 100.0})
    bare.shelf.attack(trained, "fgsm", UNTARGETED)
    bare.shelf.attack(trained, "fgsm-targeted", TARGETED)
    trained = bare.shelf.train(TWO, HISTORY)
    bare.shelf.evaluate(trained, "reconstruct", arrays=two_digits())
    bare.shelf.evaluate(trained, "overlap", OVERLAP)
    trained = bare.shelf.train(TWO.replace("recon", "recon-code"), HISTORY)
    bare.shelf.evaluate(trained, "reconstruct", arrays=two_digits())
    entropies = {f"routing_entropy_nat_class_caps_{n}": 1 / n for n in (1, 2, 3)}
    trained = bare.shelf.train(MATRIX, [entry | entropies for entry in HISTORY])
    bare.shelf.evaluate(trained, "votes", arrays=votes([0, 1, 2], [0, 1, 0]))
    bare.shelf.attack(trained, "fgsm", UNTARGETED)
    return bare


@pytest.mark.slow
def test_all_figures_are_drawn_in_two_formats(full: Place) -> None:
    started = time.perf_counter()
    result = full.call()
    assert time.perf_counter() - started < 20
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"{name}: results/figures/{name}.svg, results/figures/{name}.png" for name in FIGURES
    ]
    expected = sorted(f"{name}.{form}" for name in FIGURES for form in ("svg", "png"))
    assert list(full.bytes()) == expected
    for name in FIGURES:
        root = ElementTree.parse(full.figures / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        text = (full.figures / f"{name}.svg").read_text()
        shown = {
            "sabour2017": "Sabour et al. 2017",
            "hinton2018": "Hinton et al. 2018",
            "robustness": ONE.partition("/")[0],
        }
        assert shown[name.partition("-")[0]] in text
        assert "<dc:date>" not in text
        pixels = matplotlib_image.imread(full.figures / f"{name}.png")
        assert pixels.shape[1] > 500
        assert np.unique(pixels).size > 10


def test_drawing_again_changes_nothing(full: Place) -> None:
    names = ("sabour2017-fig5", "sabour2017-error-by-overlap")
    full.call(*names)
    before = full.bytes()
    full.call(*reversed(names))
    assert full.bytes() == before


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(full: Place) -> None:
    full.call()
    before = full.bytes()
    # Another process, another hour, and a user with a taste of his own.
    (full.root / "matplotlibrc").write_text("font.size: 20\nsavefig.dpi: 50\nsvg.fonttype: none\n")
    done = full.workplace.spawn(
        "figures", SOURCE_DATE_EPOCH="1", PYTHONHASHSEED="7", MATPLOTLIBRC=str(full.root)
    )
    assert done.code == 0, done
    assert full.bytes() == before


def test_the_settings_of_the_process_are_left_as_they_were(
    full: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 17.0)
    before = dict(matplotlib.rcParams)
    full.call("sabour2017-fig3")
    assert dict(matplotlib.rcParams) == before
    assert before["font.size"] == 17


def test_only_the_named_ones(full: Place) -> None:
    result = full.call("sabour2017-fig-a2", "sabour2017-fig3", "sabour2017-fig3")
    assert result.code == 0
    assert list(full.bytes()) == [
        f"{name}.{form}"
        for name in ("sabour2017-fig-a2", "sabour2017-fig3")
        for form in ("png", "svg")
    ]


def test_another_folder_and_another_run(full: Place) -> None:
    other = full.root / "elsewhere" / "deep"
    run = ONE.replace("seed-0", "seed-2")
    full.shelf.evaluate(full.shelf.train(run, HISTORY), "routing", ROUTING)
    result = full.call("sabour2017-fig-a1", "--out", str(other), "--run", run)
    assert result.code == 0
    assert result.out == (
        "sabour2017-fig-a1: elsewhere/deep/sabour2017-fig-a1.svg, "
        "elsewhere/deep/sabour2017-fig-a1.png\n"
    )
    assert f"{run}: test error" in (other / "sabour2017-fig-a1.svg").read_text()
    assert not full.figures.exists()


def test_without_records_it_says_how_to_get_them(bare: Place) -> None:
    result = bare.call()
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(FIGURES)
    assert all("not drawn: " in line and "run `capsrepro " in line for line in lines)
    said = dict(zip(FIGURES, lines, strict=True))
    assert f"`capsrepro run {ONE}` and `capsrepro reconstruct {ONE}`." in said["sabour2017-fig3"]
    assert f"`capsrepro run {TWO}` and `capsrepro reconstruct {TWO}`." in said["sabour2017-fig5"]
    code = TWO.replace("recon", "recon-code")
    wanted = f"`capsrepro run {code}` and `capsrepro reconstruct {code}`."
    assert wanted in said["sabour2017-fig5-code"]
    assert f"`capsrepro run {ONE}` and `capsrepro routing {ONE}`." in said["sabour2017-fig-a1"]
    wanted = f"`capsrepro run {TWO}` and `capsrepro overlap {TWO}`."
    assert wanted in said["sabour2017-error-by-overlap"]
    best = MATRIX.replace("small-em3", "em3")
    assert f"`capsrepro run {best}` and `capsrepro votes {best}`." in said["hinton2018-fig2"]
    assert f"run `capsrepro run {best}`." in said["hinton2018-entropy"]
    assert f"`capsrepro run {best}` and `capsrepro attack fgsm {best}`." in said["hinton2018-fig3"]
    cnn = ONE.replace("capsnet-r3-recon", "cnn-baseline")
    for name, attack in (("accuracy", "fgsm"), ("targeted", "fgsm-targeted")):
        wanted = f"`capsrepro run {cnn}` and `capsrepro attack {attack} {cnn}`."
        assert wanted in said[f"robustness-{name}"]
    wanted = f"`capsrepro run {ONE}` and `capsrepro distortions {ONE}`."
    assert wanted in said["robustness-distortions"]
    assert not bare.figures.exists()


@pytest.mark.parametrize("name", FIGURES)
def test_a_named_figure_without_records_is_one_sentence(bare: Place, name: str) -> None:
    assert bare.call(name).is_refusal(1, "run `capsrepro run ")


def test_an_unknown_name_is_refused_before_anything_is_drawn(full: Place) -> None:
    result = full.call("sabour2017-fig3", "sabour2017-fig6")
    assert result.is_refusal(2, "unknown figure 'sabour2017-fig6'; choose one of", *FIGURES)
    assert not full.figures.exists()


def test_an_unknown_run_is_refused(full: Place) -> None:
    assert full.call("--run", "mnist-short/nope/seed-0").is_refusal(2, "unknown model 'nope'")


@pytest.mark.fault
@pytest.mark.slow
def test_damaged_pictures_do_not_keep_the_others_from_being_drawn(full: Place) -> None:
    (full.shelf.results / "runs" / TWO / "reconstruct.npz").write_bytes(b"")
    result = full.call()
    assert result.code == 1
    first, last = result.err.splitlines()
    assert first.startswith("capsrepro: sabour2017-fig5: ")
    assert f"delete it and run `capsrepro reconstruct {TWO}`." in first
    assert last.startswith(
        f"capsrepro: 1 of {len(FIGURES)} figures could not be drawn (sabour2017-fig5): "
    )
    assert len(full.bytes()) == 2 * (len(FIGURES) - 1)
    assert full.call("sabour2017-fig5").is_refusal(1, "does not hold the pictures")


@pytest.mark.fault
def test_a_folder_that_cannot_be_written_to(full: Place) -> None:
    full.figures.write_text("a file stands in its place")
    assert full.call("sabour2017-fig3").is_refusal(1, "cannot write", "sabour2017-fig3.svg")


@pytest.mark.fault
def test_without_matplotlib(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = full.call("sabour2017-fig3")
    assert result.is_refusal(1, "drawing needs matplotlib", "run `uv sync --extra figures`")


def test_neither_torch_nor_pyplot_is_imported(full: Place) -> None:
    program = (
        "import sys\n"
        "from capsrepro.cli.main import _run\n"
        "import capsrepro.cli.figures\n"
        "early = 'matplotlib' in sys.modules\n"
        "code = _run(['figures', 'sabour2017-fig5', 'sabour2017-error-by-overlap'])\n"
        "heavy = ('torch', 'mlflow', 'scipy.stats', 'matplotlib.pyplot')\n"
        "print(code, early, *(m for m in heavy if m in sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=full.root,
        env={**os.environ, **full.workplace.env},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "0 False\n"


@pytest.mark.slow
def test_from_a_trained_network_to_its_figures(trained_once: Any, tmp_path: Path) -> None:
    """The real commands from end to end, on the embedded digits."""
    trained = trained_once.copy(tmp_path / "trained")
    run = "digits/capsnet-r3-recon/seed-0"

    def ask(document: dict[str, Any]) -> None:
        mnist = document["protocols"]["mnist"]["evaluations"]
        document["protocols"]["digits"]["evaluations"] = {
            "reconstruct": {**mnist["reconstruct"], "perturbed_digits": [6, 6, 5]},
            "routing": {**mnist["routing"], "iterations": 4},
        }

    trained.edit(ask)
    for kind in ("reconstruct", "routing"):
        assert trained.call("figures", "--run", run).out.count(f"`capsrepro {kind} {run}`") > 0
        result = trained.call(kind, run)
        assert result.code == 0, result
    result = trained.call("figures", "--run", run)
    assert result.code == 0, result
    drawn = {line.partition(": ")[0] for line in result.out.splitlines() if "not drawn" not in line}
    papers = {f"sabour2017-{name}" for name in ("fig3", "fig4", "fig4-all", "fig-a1")}
    # The run was attacked when it was trained for all tests.
    assert drawn == papers | {"robustness-accuracy"}
