"""Records and pictures as evaluations leave them, small, for the tests of the figures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image as matplotlib_image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from capsrepro.config import load_params, resolve_run
from capsrepro.files import sha256_of_file, write_text
from capsrepro.records import HISTORY, Record, write_record
from capsrepro.report.figures import FIGURES
from capsrepro.report.figures.archive import Archive, open_archive
from capsrepro.report.figures.canvas import DPI, house_style
from capsrepro.running.evaluations import evaluation_document
from capsrepro.running.weights import NAME as WEIGHTS
from capsrepro.schema.attacks import AttackSpec
from capsrepro.schema.evaluations import (
    DistortionsSpec,
    Evaluations,
    OverlapSpec,
    ReconstructSpec,
    RoutingSpec,
    VotesSpec,
)
from capsrepro.schema.params import Params

Arrays = dict[str, NDArray[Any]]
ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 10, 12


_GRID = {
    "mnist": (300_000, "mnist"),
    "mnist-short": (3_000, "mnist"),
    "multimnist-short": (1_000, "multimnist"),
    "digits": (300_000, None),
    "matcaps-mnist-short": (3_000, "mnist-2018"),
}
_MODELS = ("cnn-baseline", "capsnet-r1-recon", "capsnet-r3-recon")
_TWO_DIGITS = ("capsnet-r3-recon", "capsnet-r3-recon-code")
_MATCAPS = ("matcaps-small-em3", "matcaps-em3")
_RUN_MODELS = {"mnist-2018": _MATCAPS, "multimnist": (*_MODELS, _TWO_DIGITS[1])}
_ATTACKED = {"mnist-2018": ("standardised-pixels", _MATCAPS)}
_PGD = {"method": "pgd", "loss": "logit-difference", "steps": 20, "restarts": 3}
_BIM = {"method": "bim", "steps": 10, "step_share": 0.1}
_ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {"method": "fgsm"},
    "bim": _BIM,
    "pgd": _PGD | {"step_share": 0.125},
    "fgsm-targeted": {"method": "fgsm", "goal": "targeted"},
    "bim-targeted": _BIM | {"goal": "targeted"},
    "transfer-cnn": _BIM | {"source": "cnn-baseline"},
}
RAW, STANDARDISED = ("0", "25/255", "50/255"), ("0", "0.1", "0.2")
WINDOWS, BINS = (0.5, 0.05, 60.0), 4
"""Of the histograms of votes; not in the order of their size."""


def attacks(unit: str, models: Sequence[str]) -> dict[str, AttackSpec]:
    """One of each kind, in raw or in standardised pixels, on these models."""
    common = {
        "models": tuple(models),
        "loss": "own",
        "epsilons": RAW if unit == "raw-pixels" else STANDARDISED,
        "epsilon_unit": unit,
    }
    return {name: AttackSpec(**{**common, **spec}) for name, spec in _ATTACKS.items()}


def figure_params() -> Params:
    """The shipped networks under a few protocols that change only when these tests do."""
    real = load_params(ROOT / "params.yaml")
    one = {"examples_right": 8, "examples_wrong": 4, "perturbed_digits": (6, 6, 5, 4, 3, 2)}
    two = {"examples_right": 12, "examples_wrong": 8, "perturbed_digits": ()}
    distortions = DistortionsSpec(
        models=_MODELS,
        rotations_deg=(-30, 0, 30),
        translations_px=(0, 2),
        scales=(0.5, 1, 1.5),
        affine_shares=(0, 1),
        noise_sds=(0, 0.2),
    )
    evaluations = {
        "mnist": Evaluations(
            distortions=distortions,
            reconstruct=ReconstructSpec(models=_MODELS[1:], **one),
            routing=RoutingSpec(models=_MODELS[1:], iterations=10, images=1000),
        ),
        "multimnist": Evaluations(
            reconstruct=ReconstructSpec(models=_TWO_DIGITS, **two),
            overlap=OverlapSpec(models=_MODELS),
        ),
        "mnist-2018": Evaluations(
            votes=VotesSpec(models=_MATCAPS, right=1, wrong=1, windows=WINDOWS, bins=BINS)
        ),
    }
    protocols = {
        name: real.protocols[name].model_copy(
            update={
                "version": "1.0",
                "judged_as": judged_as,
                "full_steps": 300_000,
                "recipe": real.protocols[name].recipe.model_copy(update={"steps": steps}),
                "run_models": _RUN_MODELS.get(judged_as or "", _MODELS),
                "run_seeds": (0, 1, 2),
                "attacks": attacks(*_ATTACKED.get(judged_as or "", ("raw-pixels", _MODELS))),
                "evaluations": evaluations[judged_as or "mnist"],
            }
        )
        for name, (steps, judged_as) in _GRID.items()
    }
    return real.model_copy(update={"protocols": protocols})


@dataclass
class Shelf:
    """A results folder that is filled as `capsrepro run` and its evaluations would fill it.

    Attributes:
        results: The folder.
        params: What the records are made from.
        run_record: The fixture of that name.
    """

    results: Path
    params: Params
    run_record: Callable[..., Record]

    def train(
        self, run: str, history: Sequence[Mapping[str, float]] = (), **changes: Any
    ) -> Record:
        """The record of a finished run, with its history beside it."""
        folder = self.results / "runs" / run
        write_text(folder / HISTORY, "".join(json.dumps(entry) + "\n" for entry in history))
        outputs = {WEIGHTS: "a" * 64, HISTORY: sha256_of_file(folder / HISTORY)}
        measured = resolve_run(self.params, run).protocol.measured.values() or ["test_error_pct"]
        metrics = dict.fromkeys(measured, 0.79) | {"test_images": 10_000.0}
        record = self.run_record(
            run, metrics, **{"params": self.params, "outputs": outputs, **changes}
        )
        write_record(folder, record)
        return record

    def evaluate(
        self,
        trained: Record,
        kind: str,
        curves: Mapping[str, list[float]] | None = None,
        arrays: Arrays | None = None,
        **changes: Any,
    ) -> Record:
        """The record of an evaluation of it, with its pictures beside it."""
        folder = self.results / "runs" / trained.run
        outputs = {}
        if arrays is not None:
            np.savez_compressed(folder / f"{kind}.npz", **arrays)
            outputs[f"{kind}.npz"] = sha256_of_file(folder / f"{kind}.npz")
        update = {
            "kind": kind,
            "spec": evaluation_document(resolve_run(self.params, trained.run), kind),
            "inputs": {WEIGHTS: trained.outputs[WEIGHTS]},
            "outputs": outputs,
            "curves": dict(curves or {}),
            "metrics": {},
        }
        record = trained.model_copy(update=update | changes).sealed()
        write_record(folder, record)
        return record

    def attack(
        self, trained: Record, name: str, curves: Mapping[str, list[float]], **changes: Any
    ) -> Record:
        """The record of an attack of its protocol, of which `epsilon` is filled in."""
        document = evaluation_document(resolve_run(self.params, trained.run), name)
        epsilons = [float(Fraction(epsilon)) for epsilon in document["attack"]["epsilons"]]
        short = {key: values[: len(epsilons)] for key, values in curves.items()}
        made_on = document["attack"].get("source")
        inputs = {WEIGHTS: trained.outputs[WEIGHTS]}
        update = {
            "spec": document,
            "inputs": inputs | ({f"{made_on}/{WEIGHTS}": "a" * 64} if made_on else {}),
            "metrics": {"test_images": 10_000.0, "classes": 10.0},
        }
        whole = {"epsilon": epsilons, **short}
        return self.evaluate(trained, name, whole, **(update | changes))

    def open(self, run: str | None = None) -> Archive:
        """As `capsrepro figures` reads it."""
        return open_archive(self.results, self.params, run)

    def draw(self, name: str, run: str | None = None) -> Figure:
        """As `capsrepro figures` draws it."""
        with house_style():
            return FIGURES[name](self.open(run))


def drawn_pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure's PNG, shape (height, width, 3)."""
    content = io.BytesIO()
    with house_style():
        figure.savefig(content, format="png")
    pixels = matplotlib_image.imread(io.BytesIO(content.getvalue()))
    return np.rint(pixels[..., :3] * 255).astype(np.uint8)


def drawn_cells(figure: Figure, axes: Axes, rows: int, columns: int) -> NDArray[np.uint8]:
    """The pictures of a block as they stand in the PNG: (rows, columns, HEIGHT, WIDTH, 3)."""
    pixels = drawn_pixels(figure)
    place = axes.get_position()
    width, height = figure.get_size_inches() * DPI
    left, right = round(place.x0 * width), round(place.x1 * width)
    top, bottom = round((1 - place.y1) * height), round((1 - place.y0) * height)
    block = pixels[top:bottom, left:right]
    gap = 1
    scale = len(block) // (rows * (HEIGHT + gap) - gap)
    # Every pixel of a picture is a square of equal pixels of the file.
    small = block[::scale, ::scale]
    np.testing.assert_array_equal(block, small.repeat(scale, axis=0).repeat(scale, axis=1))
    cells = [
        [small[r * (HEIGHT + gap) :, c * (WIDTH + gap) :][:HEIGHT, :WIDTH] for c in range(columns)]
        for r in range(rows)
    ]
    return np.array(cells)


def captions(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_xticklabels()]


def red_captions(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_xticklabels() if text.get_color() != "black"]


def heading(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def examples(labels: Sequence[Sequence[int]], predictions: Sequence[Sequence[int]]) -> Arrays:
    """Pictures in which class k is a white row k; what is absent is nearly dark."""
    sure, guess = np.array(labels, np.uint8), np.array(predictions, np.uint8)
    absent = np.empty_like(sure)
    for n, taken in enumerate(zip(labels, predictions, strict=True)):
        free = [k for k in range(10) if k not in {*taken[0], *taken[1]}]
        absent[n] = free[: sure.shape[1]]
    return {
        "images": _rows(sure).max(axis=1),
        "labels": sure,
        "predictions": guess,
        "absent": absent,
        "targets": _rows(sure),
        "drawn_labels": _rows(sure),
        "drawn_predictions": _rows(guess),
        "drawn_absent": _rows(absent) // 32,
    }


def perturbations(strengths_ND: Sequence[Sequence[int]], labels: Sequence[int]) -> Arrays:
    """Pictures whose brightness grows by `strength` from one step to the next."""
    strengths = np.array(strengths_ND)[:, :, None, None, None, None]
    steps = np.arange(11)[None, None, :, None, None, None]
    pictures = strengths * steps * np.ones((1, 1, 1, 1, HEIGHT, WIDTH))
    return {
        "perturbed": pictures.astype(np.uint8),
        "perturbed_labels": np.array(labels, np.uint8),
        "perturbed_inputs": np.full((len(labels), 1, HEIGHT, WIDTH), 255, np.uint8),
    }


def one_digit() -> Arrays:
    """What `capsrepro reconstruct` leaves of images with one digit: 8 right, 4 wrong."""
    labels = [[n] for n in range(8)] + [[5], [8], [4], [9]]
    predictions = [[n] for n in range(8)] + [[3], [2], [9], [4]]
    strengths = [[(7 * n + 5 * d) % 16 for d in range(16)] for n in range(6)]
    return examples(labels, predictions) | perturbations(strengths, [6, 6, 5, 4, 3, 2])


def two_digits() -> Arrays:
    """The same of composites: 12 right, 8 wrong; predictions in the other order."""
    labels = [[n % 10, (n + 3) % 10] for n in range(20)]
    right = [[second, first] for first, second in labels[:12]]
    wrong = [[(second + 1) % 10, first] for first, second in labels[12:]]
    return examples(labels, right + wrong)


def votes(
    labels: Sequence[int], predictions: Sequence[int], classes: int = 3, distance: float = 0.2
) -> Arrays:
    """What `capsrepro votes` leaves of 16 votes for each image, which lie about this far."""
    random = np.random.default_rng(0)
    shape = (len(labels), 3, classes)
    distances = distance * random.lognormal(0, 0.15, (*shape, 16))
    shares = random.dirichlet(np.ones(classes), (len(labels), 3, 16)).swapaxes(2, 3)
    histograms = np.zeros((*shape, len(WINDOWS), BINS + 1), np.float16)
    for place in np.ndindex(*shape):
        for w, window in enumerate(WINDOWS):
            edges = [*np.linspace(0, window, BINS + 1), np.inf]
            histograms[*place, w] = np.histogram(distances[place], edges, weights=shares[place])[0]
    return {
        "images": random.integers(0, 256, (len(labels), 1, HEIGHT, WIDTH), np.uint8),
        "labels": np.array(labels, np.uint8),
        "predictions": np.array(predictions, np.uint8),
        "activations": random.random(shape, np.float32),
        "histograms": histograms,
        "mean_histograms": histograms[:2, :, 0].astype(np.float32),
    }


def _rows(classes_NL: NDArray[np.uint8]) -> NDArray[np.uint8]:
    pictures = np.zeros((*classes_NL.shape, 1, HEIGHT, WIDTH), np.uint8)
    np.put_along_axis(pictures, classes_NL[:, :, None, None, None].astype(int), 255, axis=3)
    return pictures
