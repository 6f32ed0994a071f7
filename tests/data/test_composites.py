"""MultiMNIST composites: pure functions of (reading, split, index), and what DR17 §6 asks."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from capsrepro.data import DATASETS
from capsrepro.data.batches import EvaluationSplit, TrainingStream
from capsrepro.data.composites import PARTNERS, Composites, Reading, box_overlap
from capsrepro.data.dataset import Split
from capsrepro.data.loading import load_examples
from capsrepro.data.multimnist import reading_of
from capsrepro.data.preparation import prepare_dataset
from capsrepro.errors import UsageError
from capsrepro.schema.augmentation import Augmentation

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[3] / "shared/datasets"
TEXT = Reading(4, "independent", "composite")
RELATIVE = Reading(4, "relative", "composite")
CODE = Reading(6, "independent", "shared")
READINGS = {"multimnist": TEXT, "multimnist-relative": RELATIVE, "multimnist-code": CODE}
real_mnist = pytest.mark.skipif(
    not (SHARED / "mnist").is_dir(), reason=f"{SHARED}/mnist is not there"
)


def digits(count: int = 1_500) -> Split:
    """Random 20×20 boxes in the middle of 28×28, in ten classes of unequal size."""
    random = np.random.default_rng(0)
    images = np.zeros((count, 1, 28, 28), np.uint8)
    images[:, :, 4:24, 4:24] = random.integers(1, 256, (count, 1, 20, 20))
    labels = (random.random((count, 1)) ** 1.3 * 10).astype(np.uint8)
    return Split(images, labels)


DIGITS = digits()


def composites(reading: Reading = TEXT, split: str = "train", device=CPU) -> Composites:
    return Composites(DIGITS.images, DIGITS.labels, reading, split, device)


def everything(source: Composites, items: int = 40) -> torch.Tensor:
    return torch.arange(items * PARTNERS)


def place(single: torch.Tensor) -> tuple[int, int]:
    """Shift of a digit on its canvas, from its ink."""
    rows, columns = single[0].any(1).nonzero(), single[0].any(0).nonzero()
    return int(rows[0]) - 8, int(columns[0]) - 8


@pytest.mark.parametrize("reading", READINGS.values())
def test_a_composite_is_the_sum_of_its_singles_cut_off_at_white(reading: Reading) -> None:
    drawn = composites(reading).at(torch.arange(0, 1_500_000, 1_501))
    assert drawn.images.shape[1:] == (1, 36, 36)
    assert drawn.targets.shape[1:] == (2, 1, 36, 36)
    assert drawn.images.dtype == drawn.targets.dtype == torch.uint8
    expected = drawn.targets.int().sum(1).clamp(max=255)
    assert torch.equal(drawn.images.int(), expected)
    assert (expected == 255).any()


@pytest.mark.parametrize("reading", READINGS.values())
def test_singles_are_the_digits_shifted_as_the_offsets_say(reading: Reading) -> None:
    source, index = composites(reading), torch.arange(7, 1_500_000, 50_021)
    drawn = source.at(index)
    for which, (down, right) in enumerate(source.offsets(index)):
        for item in range(len(index)):
            single = drawn.targets[item, which]
            shift = int(down[item]), int(right[item])
            assert place(single) == shift
            box = single[:, 8 + shift[0] : 28 + shift[0], 8 + shift[1] : 28 + shift[1]]
            if which == 0:
                original = DIGITS.images[index[item] // PARTNERS]
                np.testing.assert_array_equal(box.numpy(), original[:, 4:24, 4:24])
            assert box.sum() == single.sum()


def test_partners_are_distinct_and_of_another_class() -> None:
    source = composites()
    partner = source._partner(everything(source)).view(40, PARTNERS)
    labels = torch.from_numpy(DIGITS.labels[:, 0])
    assert all(len(row.unique()) == PARTNERS for row in partner)
    assert (labels[partner] != labels[:40].unsqueeze(1)).all()
    drawn = source.at(torch.arange(0, 40_000, 37))
    assert (drawn.labels[:, 0] != drawn.labels[:, 1]).all()


def test_every_digit_of_another_class_is_as_likely_a_partner() -> None:
    labels = torch.from_numpy(DIGITS.labels[:, 0])
    bases = torch.nonzero(labels == 0)[:200, 0]
    index = (bases.unsqueeze(1) * PARTNERS + torch.arange(PARTNERS)).flatten()
    counts = torch.bincount(composites()._partner(index), minlength=len(labels)).double()
    others = labels != 0
    assert (counts[~others] == 0).all()
    expected = len(index) / others.sum()
    # Stretches hold one digit or two, so a digit's share is between half and one of 200 bases.
    assert (counts[others] > 0.5 * expected).all()
    assert (counts[others] < 2 * expected).all()


@pytest.mark.parametrize("reading", READINGS.values())
def test_shifts_are_uniform_and_independent(reading: Reading) -> None:
    source, index = composites(reading), torch.arange(0, 1_500_000, 3)
    (base_down, base_right), (down, right) = source.offsets(index)
    choices = 2 * reading.shift_px + 1
    for shift in (down, right) if reading is RELATIVE else (down, right, base_down, base_right):
        assert shift.min() == -reading.shift_px
        assert shift.max() == reading.shift_px
        share = torch.bincount(shift + reading.shift_px).double() / len(index)
        tolerance = 0.02 if reading is CODE else 0.002  # CODE draws one shift per base digit
        torch.testing.assert_close(
            share, torch.full_like(share, 1 / choices), rtol=0, atol=tolerance
        )
    joint = torch.corrcoef(torch.stack([down, right, base_down, base_right]).double())
    off_diagonal = joint.nan_to_num() - torch.diag(joint.nan_to_num().diag())
    assert off_diagonal.abs().max() < (0.1 if reading is CODE else 0.01)


def test_base_shift_is_shared_over_the_partners_or_drawn_for_each() -> None:
    index = torch.arange(5 * PARTNERS)
    for reading, least, most in ((CODE, 1, 1), (CODE._replace(base_shift="composite"), 160, 169)):
        (down, right), _ = composites(reading).offsets(index)
        for rows in (down * 100 + right).view(5, PARTNERS):
            assert least <= len(rows.unique()) <= most
    (down, right), _ = composites(RELATIVE).offsets(index)
    assert not down.any()
    assert not right.any()


def test_readings_and_splits_draw_different_composites() -> None:
    index = torch.arange(0, 1_500_000, 10_007)
    variants = [*READINGS.values(), CODE._replace(base_shift="composite")]
    drawn = [composites(reading).at(index).images for reading in variants]
    drawn.append(composites(TEXT, "test").at(index).images)
    assert len({tensor.numpy().tobytes() for tensor in drawn}) == 5


def test_an_item_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    source, index = composites(), torch.arange(0, 1_500_000, 30_011)
    together = source.at(index)
    for item, alone in enumerate(source.at(index[item : item + 1]) for item in range(len(index))):
        for one, every in zip(alone, together, strict=True):
            assert torch.equal(one[0], every[item])


def test_thousand_epochs_draw_every_composite_once() -> None:
    source = composites()
    items = torch.arange(3)
    seen = []
    at, source.at = source.at, lambda index: seen.append(index) or at(index)  # type: ignore[method-assign]
    for epoch in range(PARTNERS):
        source.draw(items, torch.full_like(items, epoch))
    for item, column in zip(items, torch.stack(seen, 1), strict=True):
        assert sorted(column.tolist()) == list(range(item * PARTNERS, (item + 1) * PARTNERS))


def test_streams_give_both_digits_as_targets() -> None:
    source = composites()
    stream = TrainingStream(
        source,
        batch_size=64,
        augmentation=Augmentation(shift_px=0),
        order_seed=0,
        augmentation_seed=0,
    )
    batch = stream.batch(3)
    assert batch.images.shape == (64, 1, 36, 36)
    assert batch.labels.shape == (64, 2)
    assert batch.targets.shape == (64, 2, 1, 36, 36)
    torch.testing.assert_close(batch.targets.sum(1).clamp(max=1), batch.images)
    with pytest.raises(ValueError, match="composites are shifted when they are made"):
        TrainingStream(
            source,
            batch_size=1,
            augmentation=Augmentation(shift_px=1),
            order_seed=0,
            augmentation_seed=0,
        )


def test_evaluation_goes_on_to_the_next_partners() -> None:
    source = composites(TEXT, "test")
    split = EvaluationSplit(source, batch_size=999, count=3_500)
    batches = list(split)
    assert sum(len(batch.images) for batch in batches) == split.items == 3_500
    labels = torch.cat([batch.labels for batch in batches])
    bases = torch.from_numpy(DIGITS.labels[:, 0])
    assert torch.equal(labels[:, 0], bases.repeat(3)[:3_500].long())
    images = torch.cat([batch.images for batch in batches])
    assert not torch.equal(images[:1_500], images[1_500:3_000])


def test_too_few_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="900 digits do not give each of them 1000 partners"):
        Composites(DIGITS.images[:900], DIGITS.labels[:900], TEXT, "train", CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shift_px": 9}, "shift_px of MultiMNIST is 9; set it between 0 and 8."),
        ({"shift_px": -1}, "shift_px of MultiMNIST is -1;"),
        ({"placement": "free"}, "placement of MultiMNIST is 'free'; set it to independent or rel"),
        ({"base_shift": "none"}, "base_shift of MultiMNIST is 'none'; set it to composite or sha"),
    ],
)
def test_impossible_parameters(change: dict[str, object], said: str) -> None:
    parameters = {**DATASETS["multimnist"].parameters, **change}
    with pytest.raises(UsageError, match=said.replace(".", r"\.")):
        reading_of(parameters)


def test_rows_are_the_readings() -> None:
    for name, reading in READINGS.items():
        assert reading_of(DATASETS[name].parameters) == reading


def test_frozen_composites() -> None:
    """Should these change, no run on MultiMNIST could be verified again."""
    found = {}
    for name, reading in READINGS.items():
        drawn = composites(reading).at(torch.arange(0, 1_500_000, 10_007))
        content = b"".join(tensor.numpy().tobytes() for tensor in drawn)
        found[name] = hashlib.sha256(content).hexdigest()[:16]
    assert found == FROZEN


FROZEN = {
    "multimnist": "522ce4e7ae44b834",
    "multimnist-relative": "96f85253c09c4f68",
    "multimnist-code": "a92caa1ee90dd280",
}


def test_speed_on_this_processor() -> None:
    """The floor is 50,000 a second on two cores; a tenth of it here, on one busy core."""
    source = composites()
    index = torch.arange(0, 1_500_000, 1_500_000 // 5_000)[:5_000]
    source.at(index)
    start = time.perf_counter()
    source.at(index)
    assert 5_000 / (time.perf_counter() - start) > 5_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("reading", READINGS.values())
def test_cpu_and_gpu_draw_the_same(reading: Reading) -> None:
    index = torch.arange(0, 1_500_000, 1_009)
    here = composites(reading).at(index)
    there = composites(reading, device=torch.device("cuda")).at(index.cuda())
    assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))


@pytest.mark.slow
@pytest.mark.real_data
@real_mnist
@pytest.mark.parametrize(
    ("name", "overlap_pct"), list(zip(READINGS, (72.6, 79.0, 61.6), strict=True))
)
def test_real_digits_overlap_as_the_arithmetic_says(name, overlap_pct, tmp_path) -> None:
    manifest = prepare_dataset(name, {}, tmp_path, mirror=str(SHARED))
    for split, count in (("train", 60_000_000), ("test", 10_000_000)):
        notes = manifest["splits"][split]["notes"]
        assert notes["composites"] == count == DATASETS[name].counts[split]
        assert notes["mean_box_overlap_pct"] == pytest.approx(overlap_pct, abs=0.4)
    examples = load_examples(name, "test", tmp_path, CPU)
    assert isinstance(examples, Composites)
    assert examples.items == 10_000
    far = examples.at(torch.tensor([0, 9_999_999]))
    assert far.labels[:, 0].tolist() == [7, 6]  # the first and the last test digit
    index = torch.arange(0, 10_000_000, 10)
    assert box_overlap(examples, index).mean().item() * 100 == pytest.approx(overlap_pct, abs=0.4)


def test_importing_the_row_needs_no_torch() -> None:
    code = "import sys, capsrepro.data.multimnist; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
