"""Distorted images: where their pixels come from, and what becomes of the accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kstest
from sklearn.datasets import load_sample_image
from small_capsnets import CPU, Pairs, capsnet, predictions, random_images, stored
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import affine, rotate

from capsrepro.data import affmnist
from capsrepro.data.batches import EvaluationSplit
from capsrepro.data.examples import StoredExamples
from capsrepro.errors import UsageError
from capsrepro.evaluation.accuracy import measure_accuracy
from capsrepro.evaluation.distortions import Distortion, affine_maps, distort, measure_distortions
from capsrepro.metrics import UNDISTORTED
from capsrepro.schema.augmentation import Brightness, Crop, Operation, Standardise

BILINEAR = InterpolationMode.BILINEAR
EVERYTHING = Distortion(25, 3, 0.8, 1.5, 0.2)
EVERY_KIND = [
    Distortion(rotation_deg=30),
    Distortion(translation_px=2),
    Distortion(scale=1.3),
    Distortion(affine_share=1),
    Distortion(noise_sd=0.1),
    EVERYTHING,
]
SWEEPS: dict[str, list[float]] = {
    "rotations_deg": [-30, 0, 30],
    "translations_px": [0, 2],
    "scales": [0.7, 1],
    "affine_shares": [0, 1],
    "noise_sds": [0, 0.3],
}
POINTS = [
    Distortion(rotation_deg=-30),
    Distortion(),
    Distortion(rotation_deg=30),
    Distortion(translation_px=2),
    Distortion(scale=0.7),
    Distortion(affine_share=1),
    Distortion(noise_sd=0.3),
]
NO_SWEEPS: dict[str, list[float]] = {name: [] for name in SWEEPS}


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Part of a photograph, in colour and not square: float32, shape (3, 48, 60)."""
    pixels = load_sample_image("flower.jpg")[180:228, 250:310].transpose(2, 0, 1)
    return torch.from_numpy(pixels.astype(np.float32)) / 255


def distorted(image: Tensor, item: int = 0, **changes: float) -> Tensor:
    return distort(image[None], torch.tensor([item]), Distortion(**changes))[0]


def inner(image: Tensor, margin: int = 14) -> Tensor:
    return image[..., margin:-margin, margin:-margin]


class Seen(nn.Module):
    """Keeps what it is shown; half of it would be lost in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout()
        self.batches: list[Tensor] = []
        self.inference = True

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.batches.append(self.dropout(images_BCHW))
        self.inference &= torch.is_inference_mode_enabled()
        return torch.ones(len(images_BCHW), 10)


class Columns(nn.Module):
    """The brightest columns of an image are its classes."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, 0].amax(1)


def dots(rows: Any, columns: Any, labels: Any, side: int = 9) -> EvaluationSplit:
    """Images with one white pixel each."""
    images = np.zeros((len(rows), 1, side, side), np.uint8)
    images[np.arange(len(rows)), 0, rows, columns] = 255
    return stored(images, labels)


# Geometry


@pytest.mark.parametrize("angle", [-60.0, -7.5, 10.0, 90.0, 135.0])
def test_rotation_is_that_of_torchvision(photo: Tensor, angle: float) -> None:
    """Also of pictures that are not square, up to their edges."""
    expected = rotate(photo, angle, interpolation=BILINEAR)
    ours = distorted(photo, rotation_deg=angle)
    # At the outline torchvision multiplies by a mask of its own.
    assert (ours - expected).abs().median() < 1e-5
    torch.testing.assert_close(inner(ours, 12), inner(expected, 12), atol=2e-4, rtol=0)


@pytest.mark.parametrize("angle", [-40.0, 15.0])
def test_rotation_is_that_of_pil(photo: Tensor, angle: float) -> None:
    for channel in photo:
        picture = Image.fromarray(channel.numpy())
        expected = torch.from_numpy(np.array(picture.rotate(angle, Image.Resampling.BILINEAR)))
        ours = distorted(channel[None], rotation_deg=angle)[0]
        torch.testing.assert_close(inner(ours), inner(expected), atol=2e-4, rtol=0)


def test_a_quarter_turn_is_counterclockwise() -> None:
    image = torch.rand(1, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(distorted(image, rotation_deg=90), image.rot90(1, (1, 2)))


def whole_shift(image: Tensor, down: int, right: int) -> Tensor:
    """Moved by slicing, black behind."""
    H, W = image.shape[1:]
    padded = F.pad(image, [9] * 4)
    return padded[:, 9 - down : 9 - down + H, 9 - right : 9 - right + W]


def test_translation_by_whole_pixels_is_a_shift(photo: Tensor) -> None:
    """Along an axis by the length, on a diagonal by 1/√2 of it; each of eight for some images."""
    directions = [(d, r) for d in (-1, 0, 1) for r in (-1, 0, 1) if (d, r) != (0, 0)]
    found = []
    for item in range(60):
        for down, right in directions:
            length = 3 * 2**0.5 if down and right else 3
            ours = distorted(photo, item, translation_px=length)
            if torch.equal(ours.half(), whole_shift(photo, 3 * down, 3 * right).half()):
                torch.testing.assert_close(ours, whole_shift(photo, 3 * down, 3 * right))
                found.append((down, right))
    assert len(found) == 60
    assert set(found) == set(directions)


def test_directions_are_equally_likely_and_stay_along_a_sweep() -> None:
    """Read off from where a dot goes, by the balance of its ink."""
    count = 4_000
    images = torch.zeros(count, 1, 15, 15)
    images[:, :, 7, 7] = 1
    line = torch.arange(15.0) - 7
    places = []
    for length in (1.0, 2.5, 5.0):
        moved = distort(images, torch.arange(count), Distortion(translation_px=length))[:, 0]
        x, y = (moved.sum(1) * line).sum(1), (moved.sum(2) * line).sum(1)
        places.append(torch.stack([x, y], 1) / length)
    torch.testing.assert_close(places[0].norm(dim=1), torch.ones(count), atol=1e-5, rtol=0)
    torch.testing.assert_close(places[1], places[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(places[2], places[0], atol=1e-5, rtol=0)
    octants = (torch.atan2(places[0][:, 1], places[0][:, 0]) * 4 / torch.pi).round().long() % 8
    assert (octants.bincount(minlength=8) / count - 1 / 8).abs().max() < 0.02


def test_scale_two_doubles(photo: Tensor) -> None:
    """The middle half, twice as large; torch's own resizing agrees where it sees the same."""
    larger = F.interpolate(photo[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    ours = distorted(photo, scale=2)
    torch.testing.assert_close(ours, larger[:, 24:72, 30:90])


def test_scale_shrinks_about_the_centre_and_leaves_black(photo: Tensor) -> None:
    ours = distorted(photo, scale=0.5)
    torch.testing.assert_close(ours[:, 12:36, 15:45], F.avg_pool2d(photo, 2))
    assert ours[:, :12].abs().max() == 0
    assert ours[:, :, 45:].abs().max() == 0
    expected = affine(photo, 0, [0, 0], 0.8, [0, 0], interpolation=BILINEAR)
    torch.testing.assert_close(inner(distorted(photo, scale=0.8), 7), inner(expected, 7))


def pil_mapped(channel: Tensor, forward: np.ndarray) -> Tensor:
    """A point p from the centre goes to `forward` p, sampled by PIL."""
    H, W = channel.shape
    inverse, centre = np.linalg.inv(forward), np.array([W / 2, H / 2])
    rows = np.column_stack([inverse, centre - inverse @ centre])
    picture = Image.fromarray(channel.numpy()).transform(
        (W, H), Image.Transform.AFFINE, tuple(rows.ravel()), Image.Resampling.BILINEAR
    )
    return torch.from_numpy(np.array(picture))


@pytest.mark.parametrize("item", [0, 1, 7])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_affine_maps_go_where_pil_sends_them(photo: Tensor, item: int, share: float) -> None:
    forward = affine_maps(torch.tensor([item]), share)[0].numpy()
    ours = distorted(photo, item, affine_share=share)
    for channel, image in zip(photo, ours, strict=True):
        torch.testing.assert_close(
            inner(image, 18), inner(pil_mapped(channel, forward), 18), atol=2e-4, rtol=0
        )
    assert (inner(ours) - inner(photo)).abs().max() > 0.1


def parts_of(maps_B22: Tensor) -> np.ndarray:
    """Angle in degrees, shear and both scales of rotation · shear · scales, shape (B, 4)."""
    a, b, c, d = maps_B22.numpy().reshape(-1, 4).T
    angle, x_scale = np.arctan2(-c, a), np.hypot(a, c)
    y_scale = np.sin(angle) * b + np.cos(angle) * d
    shear = (np.cos(angle) * b - np.sin(angle) * d) / y_scale
    return np.stack([np.degrees(angle), shear, x_scale, y_scale], 1)


def test_affine_share_one_is_the_whole_of_affnists_ranges() -> None:
    drawn = parts_of(affine_maps(torch.arange(10_000), 1))
    ranges = [affmnist.ROTATION_DEG, affmnist.SHEAR, affmnist.SCALE, affmnist.SCALE]
    for values, (low, high) in zip(drawn.T, ranges, strict=True):
        assert low - 1e-9 <= values.min() < low + 0.01 * (high - low)
        assert high + 1e-9 >= values.max() > high - 0.01 * (high - low)
        assert 0.01 < kstest(values, "uniform", args=(low, high - low)).pvalue < 0.99
    assert abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.03


@pytest.mark.parametrize("share", [0, 0.25, 1.5, 2])
def test_a_share_multiplies_how_far_a_map_is_from_the_identity(share: float) -> None:
    items, still = torch.arange(200), np.array([0, 0, 1, 1])
    whole = parts_of(affine_maps(items, 1)) - still
    np.testing.assert_allclose(
        parts_of(affine_maps(items, share)) - still, share * whole, atol=1e-12
    )
    if share == 0:
        assert torch.equal(affine_maps(items, 0), torch.eye(2).double().expand(200, 2, 2))


def test_all_kinds_at_once_are_one_map_and_then_noise(photo: Tensor) -> None:
    """Affine map, then scale and rotation, then the shift along its direction."""
    item = 3
    at_rest = EVERYTHING._replace(noise_sd=0, translation_px=0)
    ours = distort(photo[None], torch.tensor([item]), at_rest)[0]
    turn = np.radians(25)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    forward = 0.8 * rotation @ affine_maps(torch.tensor([item]), 1.5)[0].numpy()
    torch.testing.assert_close(
        inner(ours[0], 18), inner(pil_mapped(photo[0], forward), 18), atol=2e-4, rtol=0
    )
    moved = distort(photo[None], torch.tensor([item]), at_rest._replace(translation_px=3))
    expected = distort(ours[None], torch.tensor([item]), Distortion(translation_px=3))
    difference = (inner(moved, 10) - inner(expected, 10)).abs()
    assert difference.mean() < 0.02  # sampled once and twice
    assert (inner(moved, 10) - inner(ours[None], 10)).abs().mean() > 2 * difference.mean()
    noisy = distort(moved, torch.tensor([item]), Distortion(noise_sd=0.2))
    with_all = distort(photo[None], torch.tensor([item]), EVERYTHING._replace(translation_px=3))
    assert torch.equal(with_all, noisy)


@pytest.mark.parametrize("distortion", EVERY_KIND)
def test_pixels_stay_between_black_and_white(photo: Tensor, distortion: Distortion) -> None:
    for image in (photo, torch.ones_like(photo)):
        out = distort(image.expand(20, 3, 48, 60), torch.arange(20), distortion)
        assert out.shape == (20, 3, 48, 60)
        assert out.dtype == torch.float32
        assert out.min() >= 0
        assert out.max() <= 1


# Noise


def noise(sd: float, count: int = 50) -> Tensor:
    """Of grey images, where none of it is cut."""
    grey = torch.full((count, 2, 28, 28), 0.5)
    return distort(grey, torch.arange(count), Distortion(noise_sd=sd)) - 0.5


def test_noise_is_gaussian_and_independent_between_pixels() -> None:
    drawn = noise(0.05)
    numbers = drawn.numel()
    assert abs(drawn.mean()) < 3 * 0.05 / numbers**0.5
    assert abs(drawn.std() / 0.05 - 1) < 3 / (2 * numbers) ** 0.5
    assert kstest(drawn.flatten().numpy() / 0.05, "norm").pvalue > 0.01
    rows = drawn.flatten(1)
    for other in (rows.roll(1, 0), rows.roll(1, 1), rows.roll(28, 1), rows.roll(784, 1)):
        assert abs((rows * other).mean() / 0.05**2) < 4 / numbers**0.5


def test_one_pattern_of_noise_along_a_sweep() -> None:
    torch.testing.assert_close(noise(0.08), 4 * noise(0.02), atol=1e-6, rtol=0)


def test_noise_is_cut_at_black_and_white() -> None:
    black = torch.zeros(50, 1, 28, 28)
    drawn = distort(black, torch.arange(50), Distortion(noise_sd=0.05))
    assert abs((drawn == 0).float().mean() - 0.5) < 0.01
    torch.testing.assert_close(drawn, noise(0.05)[:, :1].clamp(min=0), atol=1e-6, rtol=0)
    huge = distort(black, torch.arange(50), Distortion(noise_sd=1e6))
    assert set(huge.unique().tolist()) == {0, 1}


def test_noise_is_finite_where_its_uniform_number_is_extreme() -> None:
    """Images found by search: one draws the least of the 2^24 numbers, one the largest."""
    items = torch.tensor([78_128, 2_589])
    grey = torch.full((2, 1, 28, 28), 0.5)
    drawn = distort(grey, items, Distortion(noise_sd=0.05)).flatten(1) - 0.5
    extremes = torch.stack([drawn[0].min(), drawn[1].max()])
    torch.testing.assert_close(extremes, torch.tensor([-0.2710, 0.2710]), atol=1e-5, rtol=0)


# Accuracy


def test_identity_leaves_every_bit(photo: Tensor) -> None:
    assert torch.equal(distorted(photo), photo)
    assert torch.equal(distorted(photo, rotation_deg=-0.0), photo)


def test_noise_alone_samples_nothing(photo: Tensor) -> None:
    """Black beside white stays black but for noise so weak that any rest would show."""
    ink = (photo > 0.5).float()
    paper = distorted(torch.zeros_like(ink), noise_sd=1e-12)
    assert torch.equal(distorted(ink, noise_sd=1e-12)[ink == 0], paper[ink == 0])


def test_undistorted_points_are_the_clean_accuracy() -> None:
    images = random_images(60)
    model = capsnet()
    labels = predictions(model, images / np.float32(1))[:, 0].copy()
    labels[::4] = (labels[::4] + 1) % 10
    split = stored(images, labels)
    metrics, curves = measure_distortions(model, split, **SWEEPS)
    clean = measure_accuracy(model, split)
    assert clean["test_error_pct"] == 25
    assert metrics == {"test_images": 60}
    points = list(zip(*(curves[name] for name in Distortion._fields), strict=True))
    assert points == POINTS
    assert list(curves) == [*Distortion._fields, "distorted_accuracy_pct"]
    accuracy = dict(zip(points, curves["distorted_accuracy_pct"], strict=True))
    assert accuracy.pop(Distortion()) == 100 - clean["test_error_pct"]
    assert max(accuracy.values()) < 75


@pytest.mark.parametrize(("angle", "expected"), [(90, 100), (-90, 20), (180, 20), (360, 100)])
def test_a_known_network_and_a_turn(angle: float, expected: float) -> None:
    """Dots in row r and column r: turned to the left they stay in column r, else only the middle.

    Five of 9 × 9 pixels; a dot that is turned is on whole pixels again.
    """
    places = [0, 2, 4, 5, 8]
    split = dots(places, places, places)
    _, curves = measure_distortions(Columns(), split, **{**NO_SWEEPS, "rotations_deg": [angle]})
    assert curves["rotation_deg"] == [angle]
    assert curves["distorted_accuracy_pct"] == [expected]


def test_a_known_network_and_a_shift() -> None:
    """Only dots that move up or down stay in their column: two directions of eight."""
    split = dots([4] * 1_000, [4] * 1_000, [4] * 1_000)
    lists = {**NO_SWEEPS, "translations_px": [0, 0.4, 1, 3]}
    _, curves = measure_distortions(Columns(), split, **lists)
    accuracy = curves["distorted_accuracy_pct"]
    assert accuracy[:2] == [100, 100]  # less than half a pixel
    assert accuracy[2] == accuracy[3]
    assert abs(accuracy[2] - 25) < 4


def test_a_known_network_and_scales() -> None:
    split = dots([4, 4, 4, 4], [4, 4, 4, 4], [4, 7, 4, 1])
    _, curves = measure_distortions(Columns(), split, **{**NO_SWEEPS, "scales": [1, 3]})
    assert curves["distorted_accuracy_pct"] == [50, 50]
    aside = dots([4, 4], [3, 5], [1, 7])
    _, curves = measure_distortions(Columns(), aside, **{**NO_SWEEPS, "scales": [1, 3]})
    assert curves["distorted_accuracy_pct"] == [0, 100]


def test_noise_misleads_a_known_network() -> None:
    split = dots([4] * 500, [4] * 500, [4] * 500)
    lists = {**NO_SWEEPS, "noise_sds": [0, 0.1, 100]}
    _, curves = measure_distortions(Columns(), split, **lists)
    accuracy = curves["distorted_accuracy_pct"]
    assert accuracy[:2] == [100, 100]
    assert accuracy[2] < 60


def test_both_labels_of_two_digits_must_be_right() -> None:
    """Dots in columns 2 and 6; the labels of one image name a column where none is."""
    single = np.zeros((2, 2, 1, 9, 9), np.uint8)
    single[:, 0, 0, 2, 2] = single[:, 1, 0, 6, 6] = 255
    split = EvaluationSplit(Pairs(single, [[6, 2], [6, 3]]), batch_size=1)
    _, curves = measure_distortions(Columns(), split, **{**NO_SWEEPS, "rotations_deg": [0, 90]})
    assert curves["distorted_accuracy_pct"] == [50, 50]


def shown(split: EvaluationSplit, **lists: list[float]) -> tuple[Tensor, Seen]:
    """All images a network is shown, those of one point together: (points, N, C, R, S)."""
    model = Seen().train()
    _, curves = measure_distortions(model, split, **{**NO_SWEEPS, **lists})
    points = len(curves["scale"])
    parts = [torch.cat(model.batches[point::points]) for point in range(points)]
    return torch.stack(parts), model


def test_any_batch_size_gives_the_same_images() -> None:
    images, labels = random_images(40, 12), np.zeros(40)
    one, model = shown(stored(images, labels, batch_size=1), **SWEEPS)
    several, _ = shown(stored(images, labels, batch_size=7), **SWEEPS)
    whole, _ = shown(stored(images, labels, batch_size=64), **SWEEPS)
    assert one.shape == (7, 40, 1, 12, 12)
    assert torch.equal(one, several)
    assert torch.equal(one, whole)
    assert not model.training
    assert model.inference


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"rotation_deg": 30}, {1}),
        ({"scale": 0.7}, {1}),
        ({"translation_px": 2}, set(range(4, 9))),
        ({"affine_share": 1}, {12}),
        ({"noise_sd": 0.1}, {12}),
    ],
)
def test_what_is_random_is_random_for_each_image(
    changes: dict[str, float], kinds: set[int]
) -> None:
    """Twelve equal images, and how many different ones they become."""
    images = (torch.from_numpy(random_images(1, 12)) / 255).expand(12, 1, 12, 12)
    out = distort(images, torch.arange(12), Distortion(**changes))
    assert len({image.numpy().tobytes() for image in out}) in kinds


CROP, STANDARDISE = Crop(op="crop", size_px=8), Standardise(op="standardise")
BRIGHTNESS = Brightness(op="brightness", max_delta=0.4)


def prepared(images: Tensor, *, standardise: bool, down: int = 0, right: int = 0) -> Tensor:
    """The central 8 of 14 pixels by slicing, or those beside them."""
    cut = images[:, :, 3 + down : 11 + down, 3 + right : 11 + right]
    if not standardise:
        return cut
    variance, mean = torch.var_mean(cut, (1, 2, 3), correction=0, keepdim=True)
    return (cut - mean) / variance.sqrt()


@pytest.mark.parametrize("operations", [(CROP,), (BRIGHTNESS, CROP, STANDARDISE)], ids=len)
@pytest.mark.parametrize("offset", [(0, 0), (2, -3)])
def test_images_are_distorted_whole_and_then_prepared(
    operations: tuple[Operation, ...], offset: tuple[int, int]
) -> None:
    bytes_ = np.random.default_rng(1).integers(0, 256, (20, 2, 14, 14), np.uint8)
    examples = StoredExamples(bytes_, np.zeros((20, 1), np.uint8), CPU)
    split = EvaluationSplit(examples, batch_size=6, operations=operations, offset_px=offset)
    points, _ = shown(split, **SWEEPS)
    raw = torch.from_numpy(bytes_) / 255
    for point, seen in zip(POINTS, points, strict=True):
        whole = distort(raw, torch.arange(20), point)
        down, right = offset
        expected = prepared(whole, standardise=STANDARDISE in operations, down=down, right=right)
        torch.testing.assert_close(seen, expected)


# Bad input


@pytest.mark.parametrize(
    ("lists", "sentence"),
    [
        (
            {"scales": [1, 0]},
            "0 cannot be one of the `scales` of distortions; use numbers above 0.",
        ),
        (
            {"affine_shares": [0, 1, 5.5]},
            "5.5 cannot be one of the `affine_shares` of distortions; "
            "use numbers from 0 to below 5.",
        ),
        (
            {"affine_shares": [-0.5]},
            "-0.5 cannot be one of the `affine_shares` of distortions; "
            "use numbers from 0 to below 5.",
        ),
        (
            {"noise_sds": [-0.1]},
            "-0.1 cannot be one of the `noise_sds` of distortions; use numbers of 0 or more.",
        ),
    ],
)
def test_what_turns_images_inside_out_is_refused(
    lists: dict[str, list[float]], sentence: str
) -> None:
    model = Seen()
    with pytest.raises(UsageError) as caught:
        measure_distortions(model, stored(random_images(3), [0, 0, 0]), **{**NO_SWEEPS, **lists})
    assert str(caught.value) == sentence
    assert model.batches == []


def test_doing_nothing_is_the_same_to_those_who_draw_and_tabulate() -> None:
    assert Distortion()._asdict() == UNDISTORTED
