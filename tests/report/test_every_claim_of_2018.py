"""Once all that params.yaml asks for is done, every claim of Hinton et al. 2018 has a verdict.

The records made up here err as often as the paper says, so that what it prints must be found
reproduced, and nothing else may be.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from complete_results import ROOT, judged, write_complete, write_run

from capsrepro.claims import ValueClaim, load_claims
from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.evaluation.robustness import measure_attack
from capsrepro.metrics import METRICS
from capsrepro.models.losses import ATTACKED_LOSSES
from capsrepro.records import read_record, read_records
from capsrepro.report.formatting import explain
from capsrepro.report.judging import Judgement
from capsrepro.running.assembly import build_model
from capsrepro.running.evaluations import evaluation_document
from capsrepro.running.measures import measure

PARAMS = load_params(ROOT / "params.yaml")
PAPER = "hinton2018"
JUDGED = [claim for claim in load_claims(PAPER) if claim.judged]
CPU = torch.device("cpu")
pytestmark = pytest.mark.slow

SENTENCES = {  # What §6 says in words, and numbers that fit
    "zero_gradient_pixels_pct": {"cnn-baseline": 20.0, "matcaps-em3": 5.0},
    "gradient_l2_mean": {"cnn-baseline": 0.5, "matcaps-em3": 0.005},
    "transfer_accuracy_pct": {"cnn-baseline": 60.0, "matcaps-em3": 60.0},
}
FIGURE_3 = {claim.id.removeprefix(f"{PAPER}/") for claim in JUDGED if "epsilon" in claim.condition}
FIGURE_3 -= {"smallnorb/cnn-baseline/accuracy-below-chance"}
"""Read off to ± 1 pp: more than two test sets differ by, so none of it can be met for certain."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with all that the claims need and params.yaml asks for."""
    folder = tmp_path_factory.mktemp("results")
    printed: dict[tuple[object, ...], float] = {
        ("smallnorb", model, metric): value
        for metric, values in SENTENCES.items()
        for model, value in values.items()
    }
    for claim in JUDGED:
        if isinstance(claim, ValueClaim) and claim.reading is None:
            about = (claim.protocol, claim.model, claim.metric)
            if "epsilon" in claim.condition:
                point = (claim.condition["attack"], claim.condition["epsilon"])
                printed[(*about, *point)] = claim.value
            elif not claim.condition:
                printed[about] = claim.value
    write_complete(folder, PARAMS, {claim.protocol for claim in JUDGED}, printed)
    return folder


@pytest.fixture(scope="module")
def judgements(results: Path) -> dict[str, Judgement]:
    found = judged(results, PARAMS, PAPER)
    return {name: one for name, one in found.items() if one.verdict is not None}


def reasons(judgements: dict[str, Judgement], status: str) -> dict[str, str]:
    return {
        name: explain(one.verdict)
        for name, one in judgements.items()
        if one.verdict is not None and one.status == status
    }


def test_nothing_is_owed(judgements: dict[str, Judgement]) -> None:
    assert len(judgements) == len(JUDGED)
    assert reasons(judgements, "not run") == {}


def test_what_cannot_be_had_says_so(judgements: dict[str, Judgement]) -> None:
    assert reasons(judgements, "not available") == {
        "norb/matcaps-em3/test-error": "jittered and cluttered NORB, which it was measured on, "
        "could not be had"
    }


def test_whoever_measures_what_the_paper_prints_has_reproduced_it(
    judgements: dict[str, Judgement],
) -> None:
    assert len(FIGURE_3) == 88
    assert Counter(one.status for one in judgements.values()) == {
        "reproduced": len(judgements) - len(FIGURE_3) - 2,
        "inconclusive": len(FIGURE_3),
        "not available": 1,
        "differs (worse)": 1,
    }
    unsure = reasons(judgements, "inconclusive")
    assert unsure.keys() == FIGURE_3
    assert all("(read off a figure to ± 1.00 pp)" in reason for reason in unsure.values())
    # 4,253,349 / 316,650 is 13.4, and so is not what the paper prints.
    differs = reasons(judgements, "differs (worse)")
    assert differs == {
        "smallnorb/matcaps-em3/parameter-ratio-cnn": "neither rounds nor is cut off to the printed "
        "figure"
    }


@pytest.mark.parametrize(
    ("claim", "ours", "reason"),
    [
        ("matcaps-em3/parameters", 316_650, "equal when cut off to the printed precision"),
        ("matcaps-small-em3/parameters", 68_618, "equal when cut off to the printed precision"),
        ("cnn-baseline/parameters", 4_253_349, "equal when cut off to the printed precision"),
        ("matcaps-em3/parameter-ratio-cnn", 4_253_349 / 316_650, "neither"),
        (
            "matcaps-em3/parameter-ratio-ciresan2011",
            2_700_000 / 316_650,
            "equal to the printed precision",
        ),
    ],
)
def test_what_networks_are_made_of(
    judgements: dict[str, Judgement], claim: str, ours: float, reason: str
) -> None:
    best = judgements[f"smallnorb/{claim}"].candidates[0]
    assert best.group.protocol == "matcaps-smallnorb"
    assert best.verdict.ours is not None
    assert best.verdict.ours.mean == pytest.approx(ours, rel=1e-12)
    assert explain(best.verdict).startswith(reason)


@pytest.mark.parametrize(
    ("claim", "margin_pp"),
    [
        # By hand: 1.96 √2 √(a (1 − a) / n) / 0.0256, a = 1.408 and 1.792 %, n = 24,300.
        ("smallnorb/matcaps-em3-multicrop/error-reduction", 8.184),
        ("smallnorb/matcaps-em3/error-reduction", 9.214),
        # 1.96 √2 0.7 √((1 − a) / a n + (1 − b) / b n), b = 20 and 17.8 %, a = 0.7 b, n = 16,200.
        ("smallnorb-azimuth/matcaps-em3/novel-error-reduction", 4.855),
        ("smallnorb-elevation/matcaps-em3/novel-error-reduction", 5.202),
    ],
)
def test_margins_of_reductions(
    judgements: dict[str, Judgement], claim: str, margin_pp: float
) -> None:
    verdict = judgements[claim].candidates[0].verdict
    assert verdict.numbers["margin_pp"] == pytest.approx(margin_pp, abs=6e-4)


def test_a_claim_of_the_code_is_judged_by_the_code(judgements: dict[str, Judgement]) -> None:
    for model in ("matcaps-em3", "matcaps-em3-multicrop"):
        own = judgements[f"smallnorb/{model}/test-error-checkpoint"].candidates
        assert {one.group.protocol for one in own} == {"matcaps-smallnorb-code"}


def test_runs_are_matched_to_those_of_their_own_seed(results: Path) -> None:
    matched = [run for run in read_records(results) if "matched_accuracy_pct" in run.metrics]
    assert Counter(f"{run.protocol}/{run.model}" for run in matched) == {
        "matcaps-azimuth/matcaps-em3": 3,
        "matcaps-elevation/matcaps-em3": 3,
    }


def test_a_reduction_is_printed_with_the_error_it_is_of() -> None:
    values = {
        (claim.protocol, claim.model, claim.metric): claim.value
        for claim in JUDGED
        if isinstance(claim, ValueClaim)
    }
    against = {claim.protocol: claim.against_pct for claim in JUDGED if claim.against_pct}
    assert against == {
        protocol: values[protocol, "cnn-baseline", "novel_test_error_pct"]
        for protocol in ("smallnorb-azimuth", "smallnorb-elevation")
    }


def test_attacks_are_judged_by_what_the_paper_did(judgements: dict[str, Judgement]) -> None:
    """Not by other losses, other units or transferred images, of which there are records too."""
    about = {
        name: one
        for name, one in judgements.items()
        if {"goal", "epsilon_unit"} <= one.claim.condition.keys()
    }
    assert len(about) == len(FIGURE_3) + 9
    for name, one in about.items():
        method = one.claim.condition.get("attack", "bim")
        targeted = "-targeted" if one.claim.condition["goal"] == "targeted" else ""
        black_box = name == "smallnorb/matcaps-em3/black-box-advantage"
        settings = [c.setting for c in one.candidates if c.group.protocol == "matcaps-smallnorb"]
        attacks = [setting["name"] for setting in settings]
        assert attacks == ["transfer-cnn" if black_box else f"{method}{targeted}"], name
        assert one.candidates[0].group.protocol == "matcaps-smallnorb"


def test_gradients_and_black_box_are_compared_seed_by_seed(
    results: Path, judgements: dict[str, Judgement]
) -> None:
    runs = {
        (record.model, record.seed): record.metrics["gradient_l2_mean"]
        for record in read_records(results)
        if (record.protocol, record.kind) == ("matcaps-smallnorb", "fgsm")
    }
    decades = judgements["smallnorb/matcaps-em3/gradient-orders-of-magnitude"].candidates[0].verdict
    expected = mean(
        math.log10(runs["cnn-baseline", seed] / runs["matcaps-em3", seed]) for seed in range(3)
    )
    assert decades.ours is not None
    assert (decades.ours.n, decades.ours.mean) == (3, pytest.approx(expected, rel=1e-12))
    assert explain(decades) == "whole interval satisfies the bound (± 0.5 decades)"
    black_box = judgements["smallnorb/matcaps-em3/black-box-advantage"].candidates[0].verdict
    assert black_box.ours is not None and black_box.ours.n == 3
    # By hand: 1.96 √2 √2 √(0.5 · 0.5 / 24,300).
    assert black_box.numbers["margin_pp"] == pytest.approx(1.257, abs=6e-4)


def test_the_blog_is_judged_by_the_same_runs(results: Path) -> None:
    found = {
        name: (one.status, one.candidates[0].group.protocol if one.candidates else None)
        for name, one in judged(results, PARAMS, "garg-blog").items()
    }
    own = "matcaps-smallnorb"
    assert found == {
        "smallnorb/cnn-baseline/accuracy": ("reproduced", own),
        "smallnorb/matcaps-em3/accuracy": ("reproduced", own),
        "smallnorb/cnn-baseline/parameters": ("reproduced", own),
        "smallnorb/matcaps-em3/parameters": ("reproduced", own),
        "smallnorb/matcaps-em3-multicrop/error-reduction": ("inconclusive", own),
        "smallnorb/matcaps-any/capsules-per-layer-low": ("not run", None),
        "smallnorb/matcaps-any/capsules-per-layer-high": ("not run", None),
    }


def test_counter_evidence_is_judged_though_nothing_was_run(results: Path) -> None:
    found = judged(results, PARAMS, "michels2019")
    why = Counter(explain(one.verdict) for one in found.values() if one.verdict is not None)
    assert {one.status for one in found.values()} == {"not run", "context"}
    assert why == {
        "no protocol is judged as fashion-mnist": 22,
        "no model stands for michels-conv": 37,
        "no model stands for michels-capsnet": 27,
    }


@pytest.mark.parametrize("kind", ["crops", "votes"])
def test_the_records_made_here_are_as_the_code_s_own(tmp_path: Path, kind: str) -> None:
    spec = resolve_run(PARAMS, "matcaps-smallnorb/matcaps-em3/seed-0")
    write_run(tmp_path, spec)
    made = read_record(tmp_path / "runs" / spec.name / f"{kind}.json")
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 48, 48), np.uint8)
    labels = np.arange(2, dtype=np.uint8)[:, None]
    operations = spec.protocol.recipe.operations
    split = EvaluationSplit(
        StoredExamples(images, labels, CPU), batch_size=2, operations=operations
    )
    settings = evaluation_document(spec, kind)["evaluation"]
    found = measure(build_model(spec, CPU), spec.model_name, split, kind, settings)
    assert made.metrics.keys() == found.metrics.keys()
    assert {name: len(curve) for name, curve in made.curves.items()} == {
        name: len(curve) for name, curve in found.curves.items()
    }
    assert found.metrics.keys() & METRICS.keys()


@pytest.mark.parametrize(
    "name", ["fgsm", "bim", "pgd", "fgsm-targeted", "bim-targeted", "transfer-cnn"]
)
def test_so_are_those_of_attacks(tmp_path: Path, name: str) -> None:
    spec = resolve_run(PARAMS, "matcaps-smallnorb/cnn-baseline/seed-0")
    write_run(tmp_path, spec)
    made = read_record(tmp_path / "runs" / spec.name / f"{name}.json")
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 48, 48), np.uint8)
    split = EvaluationSplit(
        StoredExamples(images, np.arange(2, dtype=np.uint8)[:, None], CPU),
        batch_size=2,
        operations=spec.protocol.recipe.operations,
    )
    attack = spec.protocol.attacks[name]
    loss = ATTACKED_LOSSES["cross-entropy"]
    source = (build_model(spec, CPU), loss) if attack.source else None
    metrics, curves = measure_attack(build_model(spec, CPU), split, attack, loss, source)
    assert made.metrics.keys() == metrics.keys()
    assert made.metrics["classes"] == metrics["classes"]
    assert {key: len(curve) for key, curve in made.curves.items()} == {
        key: len(curve) for key, curve in curves.items()
    }
    assert made.curves["epsilon"] == curves["epsilon"]
    assert made.curves.keys() - {"epsilon"} <= METRICS.keys()
