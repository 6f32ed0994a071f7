"""What the decoder draws, against pictures drawn one at a time."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import small_capsnets
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from capsrepro.data.composites import Reading
from capsrepro.evaluation.reconstruction import (
    PERTURBATIONS,
    _absent,
    as_bytes,
    draw_examples,
    draw_perturbations,
    measure_reconstruction,
)

TEXT = Reading(4, "independent", "composite")
IMAGES = small_capsnets.random_images(60)


@pytest.fixture(scope="module")
def model():
    return small_capsnets.capsnet()


@pytest.fixture(scope="module")
def said(model) -> np.ndarray:
    """What the model says of the images: several classes, and some images of each."""
    found = small_capsnets.predictions(model, IMAGES)
    assert len(np.unique(found)) >= 5
    return found


def with_errors(said: np.ndarray, wrong: list[int]) -> np.ndarray:
    """Labels that make the model err on these images and on no other."""
    labels = said.copy()
    labels[wrong] = (labels[wrong] + 1) % 10
    return labels


def picture(model, image: np.ndarray, label: int) -> np.ndarray:
    """One image, one class, one picture: bytes (C, H, W)."""
    with torch.no_grad():
        capsules = model.class_capsules(torch.from_numpy(image[None]) / 255)
        return as_bytes(model.decoder(capsules, torch.tensor([[int(label)]]))[0, 0])


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the rounding of sums in another order."""
    np.testing.assert_allclose(found.astype(int), expected.astype(int), rtol=0, atol=1)


class Steps(nn.Module):
    """Draws class k as four pixels of k/10, whatever its capsule."""

    def class_capsules(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 4, 3)

    @staticmethod
    def decoder(capsules: Tensor, labels: Tensor) -> Tensor:
        return (labels / 10).view(*labels.shape, 1, 1, 1).expand(-1, -1, 1, 2, 2)


def test_energies_by_hand() -> None:
    # Energy of class k is 4·(k/10)²; every image is 0.2 everywhere, of energy 4·0.04.
    split = small_capsnets.stored(np.full((3, 1, 2, 2), 51, np.uint8), [3, 1, 3], batch_size=2)
    found = measure_reconstruction(Steps(), split)
    present, absent = 0.04 * (9 + 1 + 9) / 3, 0.04 * (5 + 13 + 5) / 9
    assert found == pytest.approx(
        {
            "digit_sse": 0.04 * (1 + 1 + 1) / 3,
            "target_energy": 0.04 * 4,
            "present_energy": present,
            "absent_energy": absent,
            "absent_energy_pct": 100 * absent / present,
            # Nothing is drawn as class 0, which is black.
            "empty_energy": 0,
            "present_change": present,
            "absent_change": absent,
            "absent_change_pct": 100 * absent / present,
        }
    )


def test_energies_of_two_digits_by_hand() -> None:
    # Labels in either order; each target is half of what is drawn.
    labels = [[1, 3], [2, 0], [3, 2]]
    singles = np.array(labels).reshape(3, 2, 1, 1, 1).repeat(2, 3).repeat(2, 4) * 25.5 / 2
    split = small_capsnets.EvaluationSplit(small_capsnets.Pairs(singles, labels), batch_size=2)
    found = measure_reconstruction(Steps(), split)
    assert found["present_energy"] == pytest.approx(0.04 * (1 + 9 + 4 + 0 + 9 + 4) / 6)
    assert found["absent_energy"] == pytest.approx(0.04 * (0 + 4 + 1 + 9 + 0 + 1) / 6)
    assert found["digit_sse"] == pytest.approx(found["present_energy"] / 4, rel=0.1)
    assert found["target_energy"] == pytest.approx(found["present_energy"] / 4, rel=0.1)


@pytest.mark.parametrize("batch_size", [5, 11])
@pytest.mark.parametrize("labels_per_image", [1, 2])
def test_measured_as_one_picture_at_a_time(model, said, labels_per_image, batch_size) -> None:
    if labels_per_image == 1:
        split = small_capsnets.stored(IMAGES[:12], said[:12], batch_size)
    else:
        model = small_capsnets.capsnet(**small_capsnets.TWO_DIGITS)
        split = small_capsnets.composites(TEXT, batch_size, 12)
    present, absent, errors, energies = [], [], [], []
    added: dict[bool, list[float]] = {True: [], False: []}
    with torch.no_grad():
        empty = model.decoder(torch.zeros(1, 10, 16), torch.tensor([[7]]))[0, 0].double()
        for image, labels, targets in small_capsnets.one_by_one(split):
            capsules = model.class_capsules(image)
            targets_of = dict(zip(labels[0].tolist(), targets[0], strict=True))
            for name in range(10):
                drawn = model.decoder(capsules, torch.tensor([[name]]))[0, 0].double()
                energy = float((drawn**2).sum())
                (present if name in targets_of else absent).append(energy)
                added[name in targets_of].append(float(((drawn - empty) ** 2).sum()))
                if name in targets_of:
                    errors.append(float(((drawn - targets_of[name]) ** 2).sum()))
                    energies.append(float((targets_of[name].double() ** 2).sum()))
    assert len(present) == 12 * labels_per_image
    expected = {
        "digit_sse": np.mean(errors),
        "target_energy": np.mean(energies),
        "present_energy": np.mean(present),
        "absent_energy": np.mean(absent),
        "absent_energy_pct": 100 * np.mean(absent) / np.mean(present),
        "empty_energy": float((empty**2).sum()),
        "present_change": np.mean(added[True]),
        "absent_change": np.mean(added[False]),
        "absent_change_pct": 100 * np.mean(added[False]) / np.mean(added[True]),
    }
    assert measure_reconstruction(model.train(), split) == pytest.approx(expected, rel=1e-5)
    assert not model.training


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_examples_are_the_first_of_each_label_and_the_first_errors(model, said, batch_size) -> None:
    wrong = [0, 9, 17, 30]
    labels = with_errors(said, wrong)
    rights, seen = [], set()
    for place in range(60):
        if place not in wrong and int(labels[place, 0]) not in seen:
            seen.add(int(labels[place, 0]))
            rights.append(place)
    places = rights[:4] + wrong[:2]
    found = draw_examples(model, small_capsnets.stored(IMAGES, labels, batch_size), 4, 2)
    np.testing.assert_array_equal(found["images"], IMAGES[places])
    np.testing.assert_array_equal(found["targets"], IMAGES[places][:, None])
    np.testing.assert_array_equal(found["labels"], labels[places])
    np.testing.assert_array_equal(found["predictions"], said[places])
    for kind in ("labels", "predictions", "absent"):
        assert found[kind].dtype == np.uint8
        for row, place in enumerate(places):
            drawn = found[f"drawn_{kind}"][row, 0]
            assert_close(drawn, picture(model, IMAGES[place], found[kind][row, 0]))
    # Pictures of different classes differ, else this shows nothing.
    assert np.abs(found["drawn_labels"].astype(int) - found["drawn_absent"]).max() > 20


def test_an_error_does_not_use_up_its_label(model, said) -> None:
    place = int(np.argmax(said[:, 0] != said[0]))
    later = place + int(np.argmax(said[place:, 0] != said[place]))
    labels = with_errors(said, [other for other in range(60) if other not in (place, later)])
    labels[0] = said[place]
    found = draw_examples(model.train(), small_capsnets.stored(IMAGES, labels), 1, 1)
    assert not model.training
    np.testing.assert_array_equal(found["labels"], said[[place, place]])
    np.testing.assert_array_equal(found["images"], IMAGES[[place, 0]])


def test_when_labels_run_out_they_come_again(model, said) -> None:
    firsts = sorted(int(np.argmax(said[:, 0] == name)) for name in np.unique(said))
    others = [place for place in range(60) if place not in firsts]
    found = draw_examples(model, small_capsnets.stored(IMAGES, said), len(firsts) + 3, 0)
    np.testing.assert_array_equal(found["images"], IMAGES[firsts + others[:3]])


@pytest.mark.parametrize(
    ("wrong_places", "right", "wrong", "count"),
    [([], 2, 3, 2), ([4], 2, 3, 3), (list(range(60)), 2, 3, 3), (list(range(60)), 2, 0, 0)],
    ids=["no error", "one error", "nothing right", "nothing at all"],
)
def test_fewer_examples_than_wanted(model, said, wrong_places, right, wrong, count) -> None:
    labels = with_errors(said, wrong_places)
    found = draw_examples(model, small_capsnets.stored(IMAGES, labels), right, wrong)
    assert found["images"].shape == (count, 1, 8, 8)
    for kind in ("labels", "predictions", "absent"):
        assert found[kind].shape == (count, 1)
        assert found[f"drawn_{kind}"].shape == found["targets"].shape == (count, 1, 1, 8, 8)
    missed = (found["labels"] != found["predictions"])[:, 0]
    assert missed.sum() == min(wrong, len(wrong_places))
    assert (np.diff(missed.astype(int)) >= 0).all()  # the right ones come first


@pytest.mark.parametrize("batch_size", [4, 40])
def test_examples_of_two_digits(batch_size) -> None:
    model = small_capsnets.capsnet(**small_capsnets.TWO_DIGITS)
    composites = small_capsnets.composites(TEXT, 40, 40)
    (batch,) = list(composites)
    with torch.no_grad():
        said = model(batch.images).topk(2, dim=1).indices
    # The labels are what the model says, in another order at every third; then three errors.
    labels = said.clone()
    labels[::3] = said[::3].flip(1)
    for place, (first, second) in ((2, (0, 1)), (5, (1, 0)), (6, (1, 1))):
        names = [name for name in range(10) if name not in said[place].tolist()]
        keep = said[place].tolist() if first != second else names
        labels[place] = torch.tensor([keep[first], names[second]])
    singles = (batch.targets * 255).round().to(torch.uint8).numpy()
    pairs = small_capsnets.Pairs(singles, labels.tolist())
    split = small_capsnets.EvaluationSplit(pairs, batch_size=batch_size)
    rights, seen = [], set()
    for place in range(40):
        if place not in (2, 5, 6) and frozenset(labels[place].tolist()) not in seen:
            seen.add(frozenset(labels[place].tolist()))
            rights.append(place)
    # Some pair is met in both orders.
    met = {tuple(row) for place, row in enumerate(labels.tolist()) if place not in (2, 5, 6)}
    assert len(rights) < len(met)
    found = draw_examples(model, split, len(rights), 9)
    places = [*rights, 2, 5, 6]
    np.testing.assert_array_equal(found["labels"], labels[places])
    np.testing.assert_array_equal(found["predictions"], said[places])
    np.testing.assert_array_equal(found["targets"], singles[places])
    np.testing.assert_array_equal(found["images"], as_bytes(batch.images[places]))
    for kind in ("labels", "predictions", "absent"):
        for row, digit in product(range(len(places)), range(2)):
            expected = picture(model, found["images"][row], found[kind][row, digit])
            assert_close(found[f"drawn_{kind}"][row, digit], expected)


@given(st.data(), st.sampled_from([(3, 1), (5, 1), (10, 1), (6, 2), (10, 2)]))
def test_absent_is_the_next_class_that_is_neither(data, size: tuple[int, int]) -> None:
    classes, each = size
    row = st.lists(st.integers(0, classes - 1), min_size=each, max_size=each, unique=True)
    rows = data.draw(st.lists(st.tuples(row, row), max_size=3))
    labels, predictions = (torch.tensor([r[side] for r in rows]).view(-1, each) for side in (0, 1))
    found = _absent(labels.long(), predictions.long(), classes)
    assert found.shape == labels.shape
    assert found.dtype == torch.int64
    for (here, said), chosen in zip(rows, found.tolist(), strict=True):
        for place, label in enumerate(here):
            other = (label + 1) % classes
            while other in [*here, *said, *chosen[:place]]:
                other = (other + 1) % classes
            assert chosen[place] == other


def test_perturbations_are_the_paper_s() -> None:
    np.testing.assert_allclose(PERTURBATIONS, np.arange(-5, 6) * 0.05, atol=1e-12)
    assert PERTURBATIONS[5] == 0


class Seen(nn.Module):
    """A decoder that draws all the capsules it is given, whatever the label: (B, L, 1, K, D)."""

    def forward(self, capsules: Tensor, labels: Tensor) -> Tensor:
        return (capsules / 4 + 0.5)[:, None, None].expand(-1, labels.shape[1], -1, -1, -1)


def test_one_dimension_of_the_class_is_moved_and_nothing_else(said) -> None:
    # A grey level is 4/255 of a capsule's number, so that they come back to ±0.008.
    model = small_capsnets.capsnet()
    model.decoder = Seen()
    digits = [int(said[8, 0]), int(said[3, 0])]
    found = draw_perturbations(model, small_capsnets.stored(IMAGES, said), digits)
    images = torch.from_numpy(found["perturbed_inputs"]).float() / 255
    with torch.no_grad():
        capsules = model.class_capsules(images).double().numpy()
    pictures = found["perturbed"].reshape(2, 16, 11, 10, 16)
    for n, d, s in product(range(2), range(16), range(11)):
        expected = capsules[n].copy()
        expected[digits[n], d] += -0.25 + 0.05 * s
        assert np.abs((pictures[n, d, s] / 255 - 0.5) * 4 - expected).max() < 0.01


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_perturbed_pictures_are_those_of_moved_capsules(model, said, batch_size) -> None:
    one, other = np.unique(said)[:2]
    # The first image of one class is an error: the second is the first that is right.
    skipped = int(np.argmax(said[:, 0] == one))
    labels = with_errors(said, [skipped])
    digits = [int(one), int(other), int(one)]
    right = [[p for p in range(60) if labels[p, 0] == said[p, 0] == d] for d in (one, other)]
    places = [right[0][0], right[1][0], right[0][1]]
    split = small_capsnets.stored(IMAGES, labels, batch_size)
    found = draw_perturbations(model.train(), split, digits)
    assert not model.training
    assert found["perturbed"].shape == (3, 16, 11, 1, 8, 8)
    assert found["perturbed"].dtype == found["perturbed_labels"].dtype == np.uint8
    assert found["perturbed_labels"].tolist() == digits
    np.testing.assert_array_equal(found["perturbed_inputs"], IMAGES[places])
    for n, (place, label) in enumerate(zip(places, digits, strict=True)):
        unmoved = picture(model, IMAGES[place], label)
        for d in range(16):
            assert_close(found["perturbed"][n, d, 5], unmoved)
        for d, s in ((0, 0), (3, 10), (15, 4)):
            with torch.no_grad():
                capsules = model.class_capsules(torch.from_numpy(IMAGES[place][None]) / 255)
                capsules[0, label, d] += -0.25 + 0.05 * s
                drawn = as_bytes(model.decoder(capsules, torch.tensor([[label]])))[0, 0]
            assert_close(found["perturbed"][n, d, s], drawn)
            assert np.abs(drawn.astype(int) - unmoved).max() > 1


def test_a_class_without_enough_right_images_is_left_out(model, said) -> None:
    names, counts = np.unique(said, return_counts=True)
    rare, common = int(names[counts.argmin()]), int(names[counts.argmax()])
    never = next(name for name in range(10) if name not in names)
    digits = [never, *[rare] * (counts.min() + 1), common, never]
    found = draw_perturbations(model, small_capsnets.stored(IMAGES, said), digits)
    assert found["perturbed_labels"].tolist() == [rare] * counts.min() + [common]
    assert len(found["perturbed"]) == len(found["perturbed_inputs"]) == counts.min() + 1


def test_nothing_right_gives_no_pictures(model, said) -> None:
    split = small_capsnets.stored(IMAGES, with_errors(said, list(range(60))))
    found = draw_perturbations(model, split, [0, 1, 1])
    assert found["perturbed"].shape == (0, 16, 11, 1, 8, 8)
    assert found["perturbed_labels"].shape == (0,)
    assert found["perturbed_inputs"].shape == (0, 1, 8, 8)


def test_bytes_are_rounded_and_cut_off() -> None:
    every = torch.arange(256)
    assert as_bytes(every / 255).tolist() == every.tolist()
    values = torch.tensor([-1, 0.49 / 255, 0.51 / 255, 254.51 / 255, 2])
    assert as_bytes(values).tolist() == [0, 0, 1, 255, 255]
