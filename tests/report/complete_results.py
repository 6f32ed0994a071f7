"""A results folder in which every run of some protocols is done, with the files beside records.

Put together by the code's own `make_record`, of numbers that are made up: only what they are named
and how many there are is meant to be true.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capsrepro.claims import load_claims
from capsrepro.config import RunSpec, requested_runs
from capsrepro.evaluation.distortions import Distortion
from capsrepro.evaluation.reconstruction import PERTURBATIONS
from capsrepro.evaluation.routing_dynamics import MEASURED
from capsrepro.files import digest, sha256_of_file
from capsrepro.records import (
    HISTORY,
    MATCHED,
    TRAIN,
    Code,
    Cost,
    Environment,
    Record,
    read_record,
    read_records,
    write_record,
)
from capsrepro.report.data_facts import data_groups
from capsrepro.report.gathering import gather
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.multicrop import SUFFIX
from capsrepro.running.assembly import measured_splits
from capsrepro.running.attacking import attacked_split
from capsrepro.running.evaluations import evaluation_document
from capsrepro.running.recording import make_record
from capsrepro.running.weights import NAME as WEIGHTS
from capsrepro.schema.attacks import AttackSpec
from capsrepro.schema.matrix_capsules import MatrixCapsulesSpec
from capsrepro.schema.params import Params

ROOT = Path(__file__).parents[2]
Arrays = dict[str, NDArray[Any]]
Errors = Mapping[tuple[object, ...], float]
"""Values to come near to, by the claims' names of protocol and model and by metric; of an attack in
standardised pixels, by its method and ε too where they belong to one point of a curve."""

ITEMS = {"cifar10": 50_000, "svhn": 73_257, "smallnorb": 24_300}
"""Images per epoch; 60,000 in all others."""
TEST_IMAGES = {
    ("affnist", "test"): 320_000,
    ("svhn", "test"): 26_032,
    ("smallnorb", "test"): 24_300,
    **{(f"smallnorb-{by}", "familiar"): 8_100 for by in ("azimuth", "elevation")},
    **{(f"smallnorb-{by}", "novel"): 16_200 for by in ("azimuth", "elevation")},
}
"""By data set and split; 10,000 in all others."""
PARAMETERS = {
    "mnist/cnn-baseline": 35_445_522,
    "mnist/capsnet-r3": 6_804_224,
    "mnist/capsnet-r3-recon": 8_215_568,
    "multimnist/cnn-baseline": 24_563_978,
    "multimnist/capsnet-r3-recon": 11_361_808,
    "matrix-capsules/cnn-baseline": 4_253_349,
    **dict.fromkeys(("matrix-capsules/matcaps-em3", "matrix-capsules/matcaps-em3-code"), 316_650),
    "matrix-capsules/matcaps-small-em3": 68_618,
    "matrix-capsules/matcaps-small-em3-code": 68_618,
}
STOPPED_AT = 4_000
"""Step at which a rule ends the training."""

_CODE = Code(git_commit="c" * 40, git_dirty=False, science_digest="f" * 64)
_ENVIRONMENT = Environment(
    versions={}, platform="", device="", threads=1, precision="float32", deterministic=True
)
_COST = Cost(wall_time_s=1, images_per_s=1, peak_memory_mib=1, energy_j=None, sessions=1)


def judged(results: Path, params: Params, paper: str) -> dict[str, Judgement]:
    """The claims of a paper by what follows its name in their ids."""
    claims = load_claims()
    groups = gather(read_records(results), claims, params, results)
    found = judge(claims, [*groups, *data_groups(params, results)], params)
    return {
        one.claim.id.removeprefix(f"{paper}/"): one for one in found if one.claim.paper == paper
    }


def write_complete(
    results: Path, params: Params, claimed: Collection[str], errors: Errors | None = None
) -> None:
    """Every run of the protocols judged as these, their evaluations, and the manifests of data.

    Each model comes as near to `errors` as its number of test images lets it, where they name it.
    """
    for manifest in (ROOT / "results/datasets").glob("*.json"):
        (results / "datasets").mkdir(parents=True, exist_ok=True)
        shutil.copy(manifest, results / "datasets")
    for spec in requested_runs(params):
        if spec.protocol.judged_as in claimed:
            write_run(results, spec, errors or {})


def write_run(results: Path, spec: RunSpec, errors: Errors | None = None) -> Record:
    """The record of a run, its history, and all that its protocol asks to be evaluated."""
    chance = random.Random(spec.name)
    entries = list(history(spec, chance))
    metrics = tested(spec, chance, errors or {}) | matched(results, spec)
    metrics |= {
        "train_loss": entries[-1]["train_loss"],
        "train_error_pct": entries[-1]["train_error_pct"],
        "parameters": float(PARAMETERS.get(f"{spec.protocol.models}/{spec.model_name}", 1)),
    }
    first_losses = [0.025 + chance.gauss(0, 1e-4) for _ in range(20)]
    trained = train(results, spec, entries, first_losses, metrics)
    for kind in evaluated(spec):
        folder = results / "runs" / spec.name
        write_record(folder, evaluate(folder, spec, kind, trained, chance, errors or {}))
    return trained


def matched(results: Path, spec: RunSpec) -> dict[str, float]:
    """The accuracy of the run that ended this one's training, as the record keeps it."""
    rule = spec.protocol.recipe.stop
    if rule is None or spec.reference is None:
        return {}
    reference = read_record(results / "runs" / spec.reference.name / "train.json")
    return {MATCHED: 100 - reference.metrics[spec.protocol.measured[rule.split]]}


def train(
    results: Path,
    spec: RunSpec,
    entries: Sequence[Mapping[str, float]],
    first_losses: Sequence[float] = (),
    metrics: Mapping[str, float] | None = None,
) -> Record:
    """The record of a run with its history beside it."""
    folder = results / "runs" / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / HISTORY).write_text(text, encoding="utf-8")
    found = record(
        spec,
        TRAIN,
        steps=int(entries[-1]["step"]),
        outputs={WEIGHTS: digest(spec.name), HISTORY: sha256_of_file(folder / HISTORY)},
        metrics=metrics or {},
        curves={"first_losses": list(first_losses)},
    )
    write_record(folder, found)
    return found


def record(spec: RunSpec, kind: str, *, steps: int, **found: Any) -> Record:
    """What `capsrepro run` or an evaluation would put together."""
    document = spec.document() if kind == TRAIN else evaluation_document(spec, kind)
    fields: dict[str, Any] = {"inputs": {}, "outputs": {}, "curves": {}, "failure": None, **found}
    manifest: Any = {"name": spec.protocol.dataset, "digest": "d" * 64}
    return make_record(
        spec,
        kind,
        code=_CODE,
        environment=_ENVIRONMENT,
        manifest=manifest,
        specification=document,
        spec_digest=digest(document),
        steps=steps,
        cost=_COST,
        **fields,
    )


def tested(spec: RunSpec, chance: random.Random, near: Errors) -> dict[str, float]:
    """As `experiment._measure` names it: the metric of each split, its errors and images."""
    found: dict[str, float] = {}
    for split, metric in measured_splits(spec).items():
        images = TEST_IMAGES.get((spec.protocol.dataset, split), 10_000)
        errors = counted(near, spec, spec.model.stands_for, metric, images, chance)
        stem = metric.removesuffix("_error_pct").removesuffix("_accuracy_pct")
        error_pct = 100 * errors / images
        found[metric] = error_pct if metric.endswith("_error_pct") else 100 - error_pct
        found |= {f"{stem}_errors": float(errors), f"{stem}_images": float(images)}
    return found


def counted(
    near: Errors, spec: RunSpec, model: str, metric: str, images: int, chance: random.Random
) -> int:
    """How many test images were wrong: about as many as asked for, or some."""
    wanted = near.get((spec.protocol.judged_as, model, metric))
    if wanted is None:
        return 30 + chance.randrange(10)
    error_pct = wanted if metric.endswith("_error_pct") else 100 - wanted
    return round(images * error_pct / 100) + chance.randrange(-3, 4)


def history(spec: RunSpec, chance: random.Random) -> Iterator[dict[str, float]]:
    """As the loop closes epochs: where a batch spans two, the first ends with it."""
    recipe = spec.protocol.recipe
    items = ITEMS.get(spec.protocol.dataset, 60_000) - recipe.validation_images
    steps = STOPPED_AT if recipe.stop else recipe.steps
    epochs = (-(-k * items // recipe.batch_size) for k in itertools.count(1))
    ends = [*itertools.takewhile(lambda step: step < steps, epochs), steps]
    routing = spec.protocol.evaluations.routing
    probed = routing.iterations if routing and spec.model_name in routing.models else 0
    for step in ends:
        entry = {
            "step": step,
            "epoch": step * recipe.batch_size / items,
            "train_loss": chance.gauss(1, 0.01) / (40 + step),
            "train_error_pct": 100 / (1 + step),
            "margin_loss": 1 / (40 + step),
            "learning_rate": 0.001,
            "images_per_s": 300.0,
        }
        if getattr(spec.model, "decoder_widths", ()):
            entry["reconstruction_sse"] = 40.0
        if recipe.stop:
            entry[f"{recipe.stop.split}_accuracy_pct"] = 99.0
        for name in MEASURED:
            values = {f"{name}_{i}": chance.random() * 10**-i for i in range(1, probed + 1)}
            entry.update(values)
        yield entry


def evaluated(spec: RunSpec) -> list[str]:
    """Kinds of evaluation that `dvc repro` makes of a run."""
    attacks = spec.protocol.attacks.items()
    kinds = [kind for kind, attack in attacks if spec.model_name in attack.models]
    for kind, asked in spec.protocol.evaluations:
        if asked is not None and spec.model_name in asked.models:
            kinds.append(kind)
    return kinds


def evaluate(
    folder: Path,
    spec: RunSpec,
    kind: str,
    trained: Record,
    chance: random.Random,
    near: Errors,
) -> Record:
    """The record of an evaluation, with its arrays beside it."""
    metrics, curves, arrays = found_by(kind, spec, trained, chance, near)
    outputs = {}
    if arrays:
        np.savez_compressed(folder / f"{kind}.npz", **arrays)
        outputs[f"{kind}.npz"] = sha256_of_file(folder / f"{kind}.npz")
    return record(
        spec,
        kind,
        steps=trained.budget.steps,
        inputs={WEIGHTS: trained.outputs[WEIGHTS]},
        outputs=outputs,
        metrics=metrics,
        curves=curves,
    )


def cropped(
    spec: RunSpec, trained: Record, chance: random.Random, near: Errors
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics and curves of several crops, which err as a model of their own."""
    images = trained.metrics["test_images"]
    model = spec.model.stands_for + SUFFIX
    errors = counted(near, spec, model, "test_error_pct", int(images), chance)
    asked = spec.protocol.evaluations.crops
    ends = [1.0 + 4 * ring for ring in range(1 + len(asked.offsets_px if asked else ()))]
    steps = np.linspace(trained.metrics["test_error_pct"], 100 * errors / images, len(ends))
    metrics = {
        "test_error_pct": float(steps[-1]),
        "test_images": images,
        "central_errors": trained.metrics["test_errors"],
    }
    return metrics, {"crops": ends, "test_error_pct": steps.tolist()}


def voted(
    spec: RunSpec, trained: Record, some: float
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics and curves of the distances of votes; the metrics end the curves."""
    assert isinstance(spec.model, MatrixCapsulesSpec)
    names = ("true_vote_distance", "other_vote_distance", "true_class_share_pct")
    names += ("assignment_entropy_nat",)
    steps = [float(step) for step in range(1, spec.model.routing.iterations + 1)]
    curves = {"iteration": steps, **{name: [some] * len(steps) for name in names}}
    again = ("test_error_pct", "test_errors", "test_images")
    return {name: trained.metrics[name] for name in again} | dict.fromkeys(names, some), curves


GRADIENTS = ("zero_gradient_pct", "zero_gradient_pixels_pct")
GRADIENTS += ("gradient_l2_mean", "gradient_l2_median")


def attacked(
    spec: RunSpec, attack: AttackSpec, chance: random.Random, near: Errors
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics and curves of an attack, under the names that `measure_attack` gives them."""
    about = (spec.protocol.judged_as, spec.model.stands_for)

    def some(metric: str, *point: object) -> float:
        wanted = near.get((*about, metric, *point))
        if wanted is None or attack.epsilon_unit != "standardised-pixels":
            return chance.uniform(30, 40)
        return wanted * chance.gauss(1, 1e-3)

    split = (spec.protocol.dataset, attacked_split(spec))
    images = attack.images or TEST_IMAGES.get(split, 10_000)
    single, curved = attack_metrics(attack)
    metrics = {name: some(name) for name in single} | {"classes": 5.0, "test_images": float(images)}
    epsilons = [float(epsilon) for epsilon in attack.epsilons]
    points = [(attack.method, epsilon) if attack.source is None else () for epsilon in epsilons]
    curves = {name: [some(name, *point) for point in points] for name in curved}
    return metrics, {"epsilon": epsilons, **curves}


def attack_metrics(attack: AttackSpec) -> tuple[list[str], list[str]]:
    """Which numbers an attack leaves once, and which at every ε."""
    if attack.source is not None:
        curved = ["transfer_accuracy_pct", "white_box_accuracy_pct", "noise_accuracy_pct"]
        return ["clean_accuracy_pct"], curved
    single = ["clean_accuracy_pct", *GRADIENTS]
    if attack.goal == "targeted":
        stepped = ["fgsm_targeted_success_pct"] if attack.method != "fgsm" else []
        return single, ["targeted_success_pct", "wrong_target_success_pct", *stepped]
    curved = ["accuracy_pct", "noise_accuracy_pct"]
    curved += ["fgsm_accuracy_pct"] if attack.method != "fgsm" else []
    curved += ["first_start_accuracy_pct"] if attack.restarts > 1 else []
    return [*single, "full_range_accuracy_pct"], curved


def distorted(spec: RunSpec, some: float) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics and curves of the accuracy on distorted images."""
    asked = spec.protocol.evaluations.distortions
    assert asked is not None
    lists = (asked.rotations_deg, asked.translations_px, asked.scales, asked.affine_shares)
    sweeps = zip(Distortion._fields, (*lists, asked.noise_sds), strict=True)
    points = {Distortion(**{name: value}): some for name, values in sweeps for value in values}
    curves = dict(zip(Distortion._fields, map(list, zip(*points, strict=True)), strict=True))
    curves["distorted_accuracy_pct"] = list(points.values())
    return {"test_images": float(asked.images or 10_000)}, curves


def found_by(
    kind: str, spec: RunSpec, trained: Record, chance: random.Random, near: Errors
) -> tuple[dict[str, float], dict[str, list[float]], Arrays]:
    """Metrics, curves and arrays of an evaluation."""
    some = chance.random()
    if kind in spec.protocol.attacks:
        return *attacked(spec, spec.protocol.attacks[kind], chance, near), {}
    if kind == "distortions":
        return *distorted(spec, some), {}
    if kind == "routing":
        steps = range(1, 11)
        curves = {name: [some * 10**-i for i in steps] for name in MEASURED}
        return {}, {"iteration": [float(step) for step in steps], **curves}, {}
    if kind == "overlap":
        names = ("test_error_pct", "label_error_pct", "both_wrong_pct", "separate_second_length")
        names += ("crowded_top1_pct", "crowded_length", "crowded_second_length")
        again = {"test_error_pct": trained.metrics["test_error_pct"]}
        groups = ("overlap_from", "overlap_to", "composites", "error_pct")
        return dict.fromkeys(names, some) | again, {name: [0.0, 0.1] for name in groups}, {}
    if kind == "scores":
        labels = np.arange(10_000, dtype=np.uint8)[:, None] % 10
        scores = (np.arange(10) == labels).astype(np.float16)
        names = ("test_error_pct", "test_errors", "test_images")
        metrics = {name: trained.metrics[name] for name in names}
        return metrics | {"tied_images": 0.0}, {}, {"scores": scores, "labels": labels}
    if kind == "crops":
        return *cropped(spec, trained, chance, near), {}
    if kind == "votes":
        return *voted(spec, trained, some), {"labels": np.arange(10, dtype=np.uint8)}
    assert kind == "reconstruct"
    names = ("digit_sse", "target_energy", "present_energy", "absent_energy", "absent_energy_pct")
    names += ("empty_energy", "present_change", "absent_change", "absent_change_pct")
    asked = spec.protocol.evaluations.reconstruct
    if asked and asked.perturbed_digits:
        names += tuple(f"width_r2_{x}" for x in WIDTHS)
        return dict.fromkeys(names, some), {}, perturbed(asked.perturbed_digits)
    names += ("segmentation_iou", "segmentation_iou_found")
    return dict.fromkeys(names, some), {}, {"labels": np.zeros((20, 2), np.uint8)}


WIDTHS = ("best_dimension", "best_dimension_lowest", "all_dimensions")


def perturbed(digits: tuple[int, ...]) -> Arrays:
    """Pictures of 28×28 in which dimension 0 alone widens a bar, a column with every step."""
    pictures = np.zeros((len(digits), 16, len(PERTURBATIONS), 1, 28, 28), np.uint8)
    pictures[..., 8:20, 8:12] = 255
    for step in range(len(PERTURBATIONS)):
        pictures[:, 0, step, :, 8:20, 8 : 12 + step] = 255
    labels = np.array(digits, np.uint8)
    return {"perturbed": pictures, "perturbed_labels": labels}
