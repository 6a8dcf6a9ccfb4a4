import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsdiff.data.images import box_downscale
from rsdiff.diffusion.constraints import (
    UP_REACH_PX,
    Wavelet,
    box_down,
    inside,
    project,
    smooth_up,
    smooth_up_inside,
    wavelet_corrected,
    wavelet_low,
)

X0 = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1, maxval=1)
Y = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1, maxval=1)


def test_down_is_the_block_mean():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.rint(box_down(image.astype(np.float32), 4)), box_downscale(image, 4))


def test_projection_brings_the_means_to_the_condition():
    before = np.abs(box_down(X0, 4) - Y).mean()
    after = np.abs(box_down(project(X0, Y), 4) - Y).mean()
    assert after < 0.15 * before


def test_what_agrees_already_is_left_alone():
    np.testing.assert_allclose(project(X0, box_down(X0, 4)), X0, atol=1e-5)


def test_it_adds_no_detail_of_its_own():
    """The correction is an enlarged low-resolution image and nothing else: x_0's detail is untouched."""
    correction = project(X0, Y) - X0
    again = project(X0 + 0.1, Y) - (X0 + 0.1)
    np.testing.assert_allclose(correction - again, 0.1, atol=1e-4)
    assert smooth_up(Y, 4).shape == X0.shape


def test_a_constant_tint_is_removed_everywhere():
    tinted = X0 + np.array([0.3, -0.2, 0.1])
    np.testing.assert_allclose(project(tinted, box_down(X0, 4)), X0, atol=1e-5)


def test_strength_is_how_far_it_goes():
    full, half = (project(X0, Y, strength=w, repeats=1) for w in (1.0, 0.5))
    np.testing.assert_allclose(half, (X0 + full) / 2, atol=1e-6)
    np.testing.assert_array_equal(project(X0, Y, strength=0.0), X0)
    each = project(X0, Y, strength=jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1))
    np.testing.assert_array_equal(each[0], X0[0])
    np.testing.assert_allclose(each[1], project(X0, Y)[1], atol=1e-6)


@pytest.mark.parametrize('factor', [8, 16])
def test_a_coarser_scale_asks_for_coarser_means_only(factor):
    """Sharpening a condition changes its 4 px means but not the coarser ones: only the coarser means are enforced."""
    sharpened = box_down(X0, 4) + 0.2 * (Y - smooth_up(box_down(Y, factor // 4), factor // 4))
    tinted = X0 + np.array([0.3, -0.2, 0.1])
    error = lambda x, y, f: float(jnp.abs(box_down(x, f) - box_down(y, f // 4)).mean())
    coarse, fine = project(tinted, sharpened, factor), project(tinted, sharpened)
    assert error(coarse, sharpened, factor) < 0.1 * error(tinted, sharpened, factor)
    moved = lambda x: float(jnp.abs(box_down(x - X0, 4)).mean())
    assert moved(coarse) < 0.5 * moved(fine)


@pytest.mark.parametrize('margin', [UP_REACH_PX, 5])
def test_with_a_margin_an_enlargement_does_not_know_its_crop(margin):
    field = jax.random.uniform(jax.random.key(2), (1, 30, 30, 3))
    crop = field[:, 9 - margin : 17 + margin, 7 - margin : 15 + margin]
    np.testing.assert_allclose(smooth_up_inside(crop, 4, margin), smooth_up(field, 4)[:, 36:68, 28:60], atol=1e-6)
    np.testing.assert_array_equal(inside(field, 3), field[:, 3:-3, 3:-3])


def test_a_window_differs_from_the_whole_near_its_edge_alone():
    """The correction is local: with two repeats, it is the entire image's four blocks from a window's edge."""
    whole, window = project(X0, Y), project(X0[:, :, :24], Y[:, :, :6])
    np.testing.assert_allclose(window[:, :, :8], whole[:, :, :8], atol=1e-6)
    difference = np.abs(window - whole[:, :, :24]).mean((0, 1, 3))
    assert difference[-1] > difference[:20].max()


def test_the_wavelet_low_pass_is_a_cascade_of_dilated_blurs():
    """Against SciPy: (1 2 1) / 4 with zeros between its taps, edges repeated, along both axes."""
    scipy = pytest.importorskip('scipy.ndimage')
    image = np.asarray(X0[0], np.float64)
    for level in range(4):
        kernel = np.zeros(2 ** (level + 1) + 1)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        for axis in (0, 1):
            image = scipy.convolve1d(image, kernel, axis, mode='nearest')
    np.testing.assert_allclose(wavelet_low(X0[:1], 4)[0], image, atol=1e-6)


def test_the_wavelet_correction_takes_colours_from_the_condition_and_detail_from_the_sample():
    corrected = wavelet_corrected(lambda xt, t: xt, Y, Wavelet(levels=3, start=5))
    made = corrected(X0, jnp.array([5, 6]))
    np.testing.assert_array_equal(made[1], X0[1])  # before the last step nothing changes
    detail = lambda x: x - wavelet_low(x, 3)
    np.testing.assert_allclose(made[0], (detail(X0) + wavelet_low(smooth_up(Y, 4), 3))[0], atol=1e-5)
