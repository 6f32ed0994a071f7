"""Grids of images: what is drawn where."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from capsrepro.errors import UsageError
from capsrepro.report.image_grid import _picture, draw_grid


def drawn(images, captions, path, **options):
    draw_grid(np.asarray(images, np.float32), captions, "title", path, **options)
    return matplotlib_image.imread(io.BytesIO(path.read_bytes()))


def test_one_channel_is_grey_and_three_are_colours():
    grey = np.random.default_rng(0).random((1, 4, 5), np.float32)
    np.testing.assert_array_equal(_picture(grey), grey[0])
    colours = np.random.default_rng(0).random((3, 4, 5), np.float32)
    np.testing.assert_array_equal(_picture(colours), colours.transpose(1, 2, 0))


def test_two_channels_are_a_pair_side_by_side():
    pair = np.stack([np.zeros((4, 5), np.float32), np.full((4, 5), 0.5, np.float32)])
    picture = _picture(pair)
    assert picture.shape == (4, 12)
    assert (picture[:, :5] == 0).all()
    assert (picture[:, 5:7] == 1).all()
    assert (picture[:, 7:] == 0.5).all()


def test_values_beyond_black_and_white_stretch_the_image():
    picture = _picture(np.array([[[-2.0, 0.0, 2.0]]], np.float32))
    np.testing.assert_allclose(picture, [[0, 0.5, 1]])
    within = np.array([[[0.2, 0.4]]], np.float32)
    np.testing.assert_array_equal(_picture(within), within[0])


def test_every_image_is_in_the_picture(tmp_path):
    images = np.ones((7, 1, 8, 8))
    white = drawn(images * 0, [""] * 7, tmp_path / "black.png", columns=3)[..., 0]
    # Three rows of which the last has one image: 7 of 9 cells are dark.
    share = (white < 0.1).mean()
    one = (drawn(images[:1] * 0, [""], tmp_path / "one.png")[..., 0] < 0.1).sum()
    assert 5.5 < (white < 0.1).sum() / one < 8.5
    assert share > 0.3


def test_captions_are_drawn(tmp_path):
    images = np.ones((2, 1, 8, 8))
    plain = drawn(images, ["", ""], tmp_path / "plain.png")
    named = drawn(images, ["automobile", "ship"], tmp_path / "named.png")
    assert (named < 0.5).sum() > (plain < 0.5).sum()


def test_unknown_format(tmp_path):
    with pytest.raises(UsageError, match=r"cannot draw grid\.gif: its ending is none of png, svg"):
        drawn(np.ones((1, 1, 2, 2)), [""], tmp_path / "grid.gif")
