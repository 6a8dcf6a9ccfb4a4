"""Unsharp masking against SciPy's filters."""

import jax
import numpy as np
import pytest

import rsdiff.data.sharpening

sharpened = jax.jit(rsdiff.data.sharpening.sharpened)


def reference(image):
    """Real-ESRGAN's USMSharp of an image (h, w, c) in [0, 1]."""
    ndimage = pytest.importorskip('scipy.ndimage', reason='the reference is scipy')
    # radius 25 px; `mirror` does not repeat the edge pixel
    blurred = lambda x: ndimage.gaussian_filter(x, sigma=(8, 8, 0), mode='mirror', truncate=25 / 8)
    residual = image - blurred(image)
    mask = blurred((np.abs(residual) * 255 > 10).astype(np.float64))
    return mask * np.clip(image + 0.5 * residual, 0, 1) + (1 - mask) * image


@pytest.mark.parametrize('height, width', [(64, 96), (40, 33)])
def test_it_is_the_published_filter(smooth_image, height, width):
    images = np.stack([smooth_image(height, width, seed) for seed in (0, 1)]) / 255.0
    expected = np.stack([reference(image) for image in images])
    assert np.abs(expected - images).max() > 0.05 and expected.max() <= 1
    ours = sharpened((2 * images - 1).astype(np.float32))
    np.testing.assert_allclose((np.asarray(ours) + 1) / 2, expected, atol=1e-5)


def test_edges_are_sharpened_and_faint_texture_is_not():
    step = np.full((1, 64, 64, 3), -0.5, np.float32)
    step[:, :, 32:] = 0.5
    ours = np.asarray(sharpened(step))
    assert ours[0, 32, 31, 0] < -0.55 and ours[0, 32, 32, 0] > 0.55
    faint = np.random.default_rng(0).uniform(-0.05, 0.05, (1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(sharpened(faint), faint, atol=1e-6)


def test_an_image_smaller_than_the_kernel_is_mirrored_repeatedly(smooth_image):
    image = smooth_image(16, 16) / 255.0
    ours = sharpened((2 * image - 1).astype(np.float32)[None])[0]
    np.testing.assert_allclose((np.asarray(ours) + 1) / 2, reference(image), atol=1e-5)
