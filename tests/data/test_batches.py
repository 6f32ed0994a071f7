"""Batches from counters: order, shifts, and the same bits on every device."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capsrepro.data.batches import Batch, EvaluationSplit, TrainingStream
from capsrepro.data.counters import mix, mix_counters
from capsrepro.data.examples import StoredExamples
from capsrepro.schema.augmentation import Augmentation

CPU = torch.device("cpu")
MASK = (1 << 64) - 1


def stream(images, labels=None, *, batch_size=1, shift=0, order=0, augmentation=0, device=CPU):
    if labels is None:
        labels = np.zeros((len(images), 1), np.uint8)
    return TrainingStream(
        StoredExamples(images, labels, device),
        batch_size=batch_size,
        augmentation=Augmentation(shift_px=shift),
        order_seed=order,
        augmentation_seed=augmentation,
    )


def numbered(count):
    """Images of one pixel that say which item they are."""
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)


def items_of(batch: Batch) -> list[int]:
    return (batch.images[:, 0, 0, 0] * 255).round().int().tolist()


def first_items(source: TrainingStream, steps: int) -> list[int]:
    return [item for step in range(steps) for item in items_of(source.batch(step))]


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 23])
def test_every_epoch_visits_every_item_once(batch_size: int) -> None:
    seen = first_items(stream(numbered(10), batch_size=batch_size), steps=10)
    epochs = [seen[start : start + 10] for start in range(0, len(seen), 10)]
    whole = [epoch for epoch in epochs if len(epoch) == 10]
    assert len(whole) == batch_size
    assert all(sorted(epoch) == list(range(10)) for epoch in whole)
    # No two epochs in the same order: 10! orders, at most 23 epochs.
    assert len(set(map(tuple, whole))) == len(whole)


def test_batches_do_not_depend_on_how_they_are_cut() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 3, 3), np.uint8)
    by_one = stream(images, batch_size=1, shift=1)
    by_seven = stream(images, batch_size=7, shift=1)
    one = torch.cat([by_one.batch(step).images for step in range(35)])
    seven = torch.cat([by_seven.batch(step).images for step in range(5)])
    assert torch.equal(one, seven)


def test_a_batch_is_a_function_of_its_step() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), np.uint8)
    first, again = (stream(images, batch_size=7, shift=2) for _ in range(2))
    forward = [first.batch(step) for step in range(60)]
    torch.manual_seed(1)  # no global random state takes part
    backward = [again.batch(step) for step in reversed(range(60))][::-1]
    assert all(map(equal, forward, backward))


def test_seeds_decide_order_and_shifts_separately() -> None:
    images = np.random.default_rng(0).integers(1, 256, (40, 1, 4, 4), np.uint8)
    labels = np.arange(40, dtype=np.uint8).reshape(40, 1)

    def batch(order: int, augmentation: int) -> Batch:
        source = stream(
            images, labels, batch_size=40, shift=1, order=order, augmentation=augmentation
        )
        return source.batch(0)

    base, other_order, other_shifts = batch(0, 0), batch(1, 0), batch(0, 1)
    assert not torch.equal(base.labels, other_order.labels)
    assert torch.equal(base.labels, other_shifts.labels)
    assert not torch.equal(base.images, other_shifts.images)
    # The shift of an item in an epoch has nothing to do with its place in the order.
    by_item = [b.images[b.labels[:, 0].argsort()] for b in (base, other_order)]
    assert torch.equal(*by_item)


def test_order_and_shifts_are_frozen() -> None:
    # Computed in plain Python integers; with others, no recorded run could be verified again.
    seen = first_items(stream(numbered(100), batch_size=8), steps=14)
    assert seen[:8] == [71, 30, 74, 48, 95, 94, 88, 31]
    assert seen[100:108] == [22, 9, 61, 48, 85, 69, 39, 90]
    images = np.zeros((100, 1, 3, 3), np.uint8)
    images[:, :, 1, 1] = 255
    landed = stream(images, batch_size=8, shift=1).batch(0).images.flatten(1).argmax(1)
    assert landed.tolist() == [1, 3, 2, 0, 5, 3, 3, 7]


@pytest.mark.parametrize("shift", [1, 2])
def test_shifts_are_uniform_and_reach_both_extremes(shift: int) -> None:
    # One white pixel in the middle: where it lands is the shift.
    side, epochs = 2 * shift + 1, 400
    images = np.zeros((10, 1, side, side), np.uint8)
    images[:, :, shift, shift] = 255
    source = stream(images, batch_size=10 * epochs, shift=shift)
    landed = source.batch(0).images.flatten(1)
    assert torch.equal(landed.sum(1), torch.ones(10 * epochs))
    counts = torch.bincount(landed.argmax(1), minlength=side**2)
    expected = 10 * epochs / side**2
    # Chi-squared with side² - 1 degrees of freedom: mean that, variance twice that.
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    freedom = side**2 - 1
    assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5


def test_a_shifted_image_is_the_whole_image_moved_over_black() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(1, 256, (20, 2, 5, 4), np.uint8)  # neither square nor one channel
    labels = np.arange(20, dtype=np.uint8).reshape(20, 1)
    batch = stream(images, labels, batch_size=100, shift=2).batch(0)
    seen = set()
    for image, label in zip(batch.images.numpy(), batch.labels[:, 0].tolist(), strict=True):
        padded = np.pad(images[label], ((0, 0), (2, 2), (2, 2)))
        windows = {
            (down, right): padded[:, down : down + 5, right : right + 4]
            for down in range(5)
            for right in range(5)
        }
        found = [
            key for key, window in windows.items() if np.array_equal(np.rint(image * 255), window)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 20


def test_an_item_is_shifted_anew_in_every_epoch() -> None:
    images = np.zeros((1, 1, 5, 5), np.uint8)
    images[:, :, 2, 2] = 255
    landed = stream(images, batch_size=50, shift=2).batch(0).images.flatten(1).argmax(1)
    assert len(set(landed.tolist())) > 15


def test_no_shift_leaves_images_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 3, 3), np.uint8)
    labels = np.arange(30, dtype=np.uint8).reshape(30, 1)
    batch = stream(images, labels, batch_size=30).batch(0)
    expected = images[batch.labels[:, 0].numpy()] / np.float32(255)
    np.testing.assert_array_equal(batch.images.numpy(), expected)


def test_types_ranges_and_targets() -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 4, 4), np.uint8)
    images[0, 0, 1:3, 1:3] = [[0, 255], [0, 255]]  # no shift by 1 pushes all of these out
    labels = np.arange(60, dtype=np.uint8).reshape(30, 2)
    batch = stream(images, labels, batch_size=30, shift=1).batch(0)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert batch.labels.shape == (30, 2)
    assert (batch.labels[:, 1] == batch.labels[:, 0] + 1).all()
    assert (batch.images.min(), batch.images.max()) == (0, 1)
    # What is drawn is the augmented image, not the original.
    assert torch.equal(batch.targets[:, 0], batch.images)


def test_evaluation_takes_every_image_once_in_order() -> None:
    labels = np.arange(10, dtype=np.uint8).reshape(10, 1)
    split = EvaluationSplit(StoredExamples(numbered(10), labels, CPU), batch_size=4)
    batches = list(split)
    assert [len(batch.images) for batch in batches] == [4, 4, 2]
    assert [item for batch in batches for item in items_of(batch)] == list(range(10))
    assert torch.cat([batch.labels for batch in batches])[:, 0].tolist() == list(range(10))


def splitmix64(state: int) -> int:
    """The finaliser of the reference implementation (Vigna), then the sign bit dropped."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return (z ^ (z >> 31)) & (MASK >> 1)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_mix_is_splitmix64(counters: list[int]) -> None:
    mixed = mix(torch.tensor(counters)).tolist()
    assert mixed == [splitmix64(counter & MASK) for counter in counters]


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 10**6), st.lists(st.integers(0, 10**6), min_size=1)
)
def test_mix_counters_chains_seed_epoch_and_item(seed: int, epoch: int, items: list[int]) -> None:
    stream_number = splitmix64((seed + epoch) & MASK)
    expected = [splitmix64(stream_number ^ splitmix64(item)) for item in items]
    assert mix_counters(seed, epoch, torch.tensor(items)).tolist() == expected
    by_item = mix_counters(seed, torch.full((len(items),), epoch), torch.tensor(items))
    assert by_item.tolist() == expected


def test_mix_leaves_no_pattern_in_low_digits() -> None:
    counts = Counter((mix(torch.arange(9000)) % 9).tolist())
    assert all(850 < counts[digit] < 1150 for digit in range(9))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_cpu_and_gpu_make_the_same_batches() -> None:
    # All 256 pixel values: division by 255 is where devices part.
    images = np.arange(20 * 256, dtype=np.uint8).reshape(20, 1, 16, 16)
    labels = np.arange(20, dtype=np.uint8).reshape(20, 1)
    for step in range(5):
        here, there = (
            stream(images, labels, batch_size=16, shift=2, device=device).batch(step)
            for device in (CPU, torch.device("cuda"))
        )
        assert equal(here, Batch(*(part.cpu() for part in there)))
    splits = [
        EvaluationSplit(StoredExamples(images, labels, device), batch_size=20)
        for device in (CPU, torch.device("cuda"))
    ]
    here, there = (next(iter(split)) for split in splits)
    assert equal(here, Batch(*(part.cpu() for part in there)))
