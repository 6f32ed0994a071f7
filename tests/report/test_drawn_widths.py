"""Which dimensions change the width of a drawn digit, and of which pictures that is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from complete_results import ROOT, record, train

from capsrepro.claims import Claim, load_claims
from capsrepro.config import load_params, resolve_run
from capsrepro.errors import CapsreproError
from capsrepro.evaluation.digit_width import ink_width
from capsrepro.evaluation.reconstruction import PERTURBATIONS
from capsrepro.files import sha256_of_file
from capsrepro.records import Record
from capsrepro.report.drawn_widths import (
    SWEEP,
    drawn_width,
    width_dimensions,
    with_drawn_widths,
)
from capsrepro.report.judging import Judgement, judge
from capsrepro.report.summaries import Group, group_records

PARAMS = load_params(ROOT / "params.yaml")
(CLAIM,) = [c for c in load_claims("sabour2017") if c.metric == "width_dimensions"]
MODEL = "mnist/capsnet-r3-recon"
STEPS = len(PERTURBATIONS)


def bars(columns_NDS: Any) -> np.ndarray:
    """Pictures of 28×28, each a white bar of so many columns."""
    columns = np.asarray(columns_NDS)[..., None, None, None]
    inside = (np.arange(28) >= 4) & (np.arange(28) < 4 + columns)
    return (np.broadcast_to(inside, (*columns.shape[:3], 1, 28, 28)) * 255).astype(np.uint8)


GROWING = np.arange(8, 8 + STEPS)
CONSTANT = np.full(STEPS, 8)
# A last step back; two columns in one place and none in another.
TURNING = np.array([*GROWING[:-1], GROWING[-3]])
PAUSING = np.array([*GROWING[:-1], GROWING[-2]])


def test_width_is_that_of_the_evaluation() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), np.uint8)
    pictures[4] = 0
    expected = ink_width(torch.from_numpy(pictures).double() / 255).numpy()
    np.testing.assert_allclose(drawn_width(pictures), expected, rtol=1e-12)
    assert drawn_width(pictures)[4] == 0
    # A bar of n columns: 2·sqrt((n² − 1) / 12).
    assert drawn_width(bars([[[12]]]))[0, 0, 0] == pytest.approx(2 * np.sqrt(143 / 12))


@pytest.mark.parametrize(
    ("dimensions", "count"),
    [
        ([CONSTANT, GROWING, CONSTANT], 1),
        ([GROWING, GROWING[::-1], CONSTANT], 2),
        ([TURNING, PAUSING, PAUSING[::-1]], 0),
    ],
)
def test_wider_or_narrower_with_every_step(dimensions: list[np.ndarray], count: int) -> None:
    assert width_dimensions(bars([dimensions])).tolist() == [count]


@pytest.mark.parametrize(("grey_levels", "count"), [(2, 0), (25, 1)])
def test_by_a_pixel_in_all(grey_levels: int, count: int) -> None:
    """A bar whose outermost columns become brighter step by step."""
    pictures = bars([[CONSTANT]])
    brightness = (np.arange(STEPS) * grey_levels)[:, None, None, None]
    pictures[0, 0, ..., [3, 12]] = brightness.squeeze()[None, :, None, None]
    widths = drawn_width(pictures)[0, 0]
    assert (np.diff(widths) > 0).all()
    assert (widths[-1] - widths[0] >= 1) == bool(count)
    assert width_dimensions(pictures).tolist() == [count]


def test_the_sweep_is_the_paper_s() -> None:
    steps = np.diff(PERTURBATIONS)
    assert {
        "perturbation_max": max(PERTURBATIONS),
        "perturbation_step": pytest.approx(steps.mean()),
    } == SWEEP
    assert min(PERTURBATIONS) == -max(PERTURBATIONS)
    assert CLAIM.condition == SWEEP


Counts = Sequence[int]


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., list[Record]]:
    """Leave runs whose n-th digit has so many dimensions that encode its width."""

    def leave(
        per_seed: Sequence[Counts], labels: Sequence[int] = (6, 6, 5), model: str = MODEL
    ) -> list[Record]:
        records = []
        for seed, counts in enumerate(per_seed):
            spec = resolve_run(PARAMS, f"{model}/seed-{seed}")
            trained = train(tmp_path, spec, [{"step": 1, "epoch": 1}])
            path = tmp_path / "runs" / spec.name / "reconstruct.npz"
            sweeps = [[GROWING] * count + [CONSTANT] * (16 - count) for count in counts]
            named = np.array(labels[: len(counts)], np.uint8)
            np.savez_compressed(path, perturbed=bars(sweeps), perturbed_labels=named)
            evaluation = record(
                spec,
                "reconstruct",
                steps=1,
                inputs={"weights.safetensors": trained.outputs["weights.safetensors"]},
                outputs={path.name: sha256_of_file(path)},
                metrics={},
            )
            whole = trained.budget.model_copy(update={"fraction": 1.0})
            records += [trained.model_copy(update={"budget": whole}), evaluation]
        return records

    return leave


def complete(records: list[Record], results: Path, claim: Claim = CLAIM) -> list[Group]:
    return with_drawn_widths(group_records(records, PARAMS), [claim], results)


def judged(records: list[Record], results: Path) -> Judgement:
    return judge([CLAIM], complete(records, results), PARAMS)[0]


def test_every_drawn_digit_must_have_a_dimension(
    draw: Callable[..., list[Record]], tmp_path: Path
) -> None:
    assert judged(draw([[1, 2, 1]] * 3), tmp_path).status == "reproduced"
    assert judged(draw([[1, 0, 1]] * 3), tmp_path).status == "differs (worse)"
    # Seeds that disagree leave it open.
    assert judged(draw([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), tmp_path).status == "inconclusive"


def test_seeds_and_budget_count(draw: Callable[..., list[Record]], tmp_path: Path) -> None:
    """It is a result of training, unlike the number of parameters."""
    assert judged(draw([[1, 1, 1]] * 2), tmp_path).status == "inconclusive"
    records = draw([[1, 1, 1]] * 3)
    short = [
        one.model_copy(update={"budget": one.budget.model_copy(update={"fraction": 0.01})})
        for one in records
    ]
    assert judged(short, tmp_path).status == "not comparable"


def test_digits_are_told_apart_by_class_and_not_by_place(
    draw: Callable[..., list[Record]], tmp_path: Path
) -> None:
    """A seed that never recognised the second 6 still has its 5 beside that of the other."""
    first = draw([[1, 2, 3]])
    again = draw([[1, 2, 3], [4, 6]], (6, 6, 5))
    labels = {"perturbed_labels": np.array([6, 5], np.uint8)}
    path = tmp_path / "runs" / MODEL / "seed-1/reconstruct.npz"
    np.savez_compressed(path, perturbed=bars([[GROWING] * 4, [GROWING] * 4]), **labels)
    outputs = {path.name: sha256_of_file(path)}
    again[3] = again[3].model_copy(update={"outputs": outputs})
    (group,) = [g for g in complete(first + again[2:], tmp_path) if g.seeds]
    assert group.seeds == (0, 1)
    counts = {
        tuple(m.point.values()): dict(m.values)
        for m in group.measurements
        if m.metric == "width_dimensions"
    }
    assert counts == {(6, 0): {0: 1, 1: 4}, (6, 1): {0: 2}, (5, 0): {0: 3, 1: 4}}


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_pictures_that_are_needed_must_be_whole(
    draw: Callable[..., list[Record]], tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    records = draw([[1, 1, 1]])
    path = tmp_path / "runs" / MODEL / "seed-0/reconstruct.npz"
    spoil(path)
    with pytest.raises(CapsreproError) as caught:
        complete(records, tmp_path)
    assert str(caught.value) == (
        f"{path} does not hold the pictures its record speaks of; restore it with `git checkout`, "
        f"or delete it and run `capsrepro reconstruct {MODEL}/seed-0`."
    )


def test_a_whole_file_without_pictures_is_refused(
    draw: Callable[..., list[Record]], tmp_path: Path
) -> None:
    records = draw([[1, 1, 1]])
    path = tmp_path / "runs" / MODEL / "seed-0/reconstruct.npz"
    path.write_bytes(b"PK")
    records[1] = records[1].model_copy(update={"outputs": {path.name: sha256_of_file(path)}})
    with pytest.raises(CapsreproError, match=r"reconstruct\.npz holds no pictures; restore it"):
        complete(records, tmp_path)


def test_no_other_pictures_are_read(draw: Callable[..., list[Record]], tmp_path: Path) -> None:
    records = draw([[1, 1, 1]], model="mnist/capsnet-r1-recon")
    (tmp_path / "runs/mnist/capsnet-r1-recon/seed-0/reconstruct.npz").unlink()
    groups = group_records(records, PARAMS)
    assert complete(records, tmp_path) == groups
    cited = CLAIM.model_copy(update={"cited_from": "someone"})
    needed = draw([[1, 1, 1]])
    (tmp_path / "runs" / MODEL / "seed-0/reconstruct.npz").unlink()
    assert complete(needed, tmp_path, cited) == group_records(needed, PARAMS)
