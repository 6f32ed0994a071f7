"""Once all that params.yaml asks for is done, what is judged of Hinton et al. 2018, and what owed.

The records made up here err as often as the paper says, so that what it prints must be found
reproduced, and nothing else may be.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from complete_results import ROOT, judged, write_complete, write_run

from capsrepro.claims import ValueClaim, load_claims
from capsrepro.config import load_params, resolve_run
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.metrics import METRICS
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

CURVES = {  # Fig. 3, left and right
    "accuracy": ("0", *(f"{step / 20:.2f}" for step in range(1, 11))),
    "targeted-success": (
        *("0", "0.025", "0.05", "0.075", "0.10", "0.125"),
        *("0.15", "0.175", "0.20", "0.225", "0.25"),
    ),
}
OWED = {
    f"smallnorb/{model}/{metric}/{attack}-{epsilon}"
    for metric, epsilons in CURVES.items()
    for model, attack, epsilon in product(
        ("cnn-baseline", "matcaps-em3"), ("fgsm", "bim"), epsilons
    )
} | {
    "smallnorb/matcaps-em3/accuracy-never-below-chance",
    "smallnorb/cnn-baseline/accuracy-below-chance",
    "smallnorb/matcaps-em3-over-cnn-baseline/untargeted-fgsm",
    "smallnorb/matcaps-em3-over-cnn-baseline/untargeted-bim",
    "smallnorb/matcaps-em3-over-cnn-baseline/targeted-fgsm",
    "smallnorb/matcaps-em3-over-cnn-baseline/targeted-bim",
    "smallnorb/matcaps-em3-over-cnn-baseline/zero-gradients",
    "smallnorb/matcaps-em3/gradient-orders-of-magnitude",
    "smallnorb/matcaps-em3/black-box-advantage",
}
"""§6, robustness: no attack on these networks is asked for yet."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with all that the claims need and params.yaml asks for."""
    folder = tmp_path_factory.mktemp("results")
    printed = {
        (claim.protocol, claim.model, claim.metric): claim.value
        for claim in JUDGED
        if isinstance(claim, ValueClaim) and claim.reading is None and not claim.condition
    }
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


def test_only_attacks_are_still_owed(judgements: dict[str, Judgement]) -> None:
    assert len(judgements) == len(JUDGED)
    owed = reasons(judgements, "not run")
    assert owed.keys() == OWED
    assert set(owed.values()) == {"not measured", "not measured under this condition"}


def test_what_cannot_be_had_says_so(judgements: dict[str, Judgement]) -> None:
    assert reasons(judgements, "not available") == {
        "norb/matcaps-em3/test-error": "jittered and cluttered NORB, which it was measured on, "
        "could not be had"
    }


def test_whoever_measures_what_the_paper_prints_has_reproduced_it(
    judgements: dict[str, Judgement],
) -> None:
    assert Counter(one.status for one in judgements.values()) == {
        "reproduced": len(judgements) - len(OWED) - 2,
        "not run": len(OWED),
        "not available": 1,
        "differs (worse)": 1,
    }
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
