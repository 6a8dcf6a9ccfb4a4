"""Histogram matching between two sensors' images of one ground."""

import numpy as np
import pytest

from rsdiff.data.images import box_downscale
from rsdiff.data.radiometry import matched, transfer


@pytest.fixture
def image(smooth_image):
    return smooth_image(64, 96, 3)


def test_at_one_resolution_it_is_scikit_images(image, smooth_image):
    exposure = pytest.importorskip(
        'skimage.exposure', reason='an independent implementation; the `parity` extra has it'
    )
    reference = (0.4 * smooth_image(40, 40, 5) + 30).astype(np.uint8)
    coarse = image[: reference.shape[0], : reference.shape[1]]
    expected = exposure.match_histograms(coarse.astype(float), reference.astype(float), channel_axis=-1)
    assert np.abs(matched(coarse, coarse, reference) - expected).max() <= 0.5


def test_an_image_that_matches_stays_as_it_is(image):
    coarse = box_downscale(image, 4)
    assert np.array_equal(matched(image, coarse, coarse), image)


def test_another_gain_and_offset_are_undone_and_detail_is_kept(image):
    """The sharp image is wider than its block means; its own contrast, not theirs, is what comes out."""
    image = np.clip(image + np.random.default_rng(0).normal(0, 30, image.shape), 0, 255).astype(np.uint8)
    other = (image * np.array([0.5, 0.7, 0.6]) + np.array([10, 20, 60])).astype(np.uint8)
    back = matched(image, box_downscale(image, 4), box_downscale(other, 4))
    middle = (image > np.percentile(image, 5)) & (image < np.percentile(image, 95))
    assert np.abs(back.astype(int) - other)[middle].mean() < 2
    # matching to the blurred histogram itself takes contrast
    naive = matched(image, image, box_downscale(other, 4))
    assert (naive.std((0, 1)) < 0.95 * other.std((0, 1))).all() and (0.99 * other.std((0, 1)) < back.std((0, 1))).all()


def test_the_transfer_never_turns_levels_around(image, smooth_image):
    curve = transfer(image.ravel(), smooth_image(32, 32, 7)[..., 0].ravel())
    assert curve.dtype == np.uint8 and curve.shape == (256,) and (np.diff(curve.astype(int)) >= 0).all()


def test_beyond_the_known_levels_the_slope_is_one():
    curve = transfer(np.arange(100, 151, 10), np.arange(50, 101, 10))
    assert [curve[level] for level in (0, 90, 100, 105, 150, 160, 255)] == [0, 40, 50, 55, 100, 110, 205]


def test_pixels_that_are_not_valid_do_not_count(image):
    coarse = box_downscale(image, 4)
    reference, valid = coarse.copy(), np.ones(coarse.shape[:2], bool)
    reference[:4], valid[:4] = 0, False
    assert np.array_equal(matched(image, coarse, reference, valid), matched(image, coarse[4:], coarse[4:]))
    assert not np.array_equal(matched(image, coarse, reference), image)
