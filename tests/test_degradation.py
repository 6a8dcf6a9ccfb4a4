import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from rsdiff.data.degradation import CLEAN, DegradationConfig, blur, degrade, gaussian_kernel, halve
from rsdiff.data.images import box_downscale, to_float, to_uint8


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def test_an_isotropic_kernel_blurs_like_scipy(smooth_image):
    image = to_float(smooth_image(40, 48))
    kernel = gaussian_kernel(1.3, 1.3, 0.7, 7)
    reference = scipy.ndimage.gaussian_filter(image, (1.3, 1.3, 0), radius=(3, 3, 0), mode='mirror')
    np.testing.assert_allclose(blur(jnp.asarray(image), kernel), reference, atol=1e-4)


def test_an_anisotropic_kernel_blurs_like_scipy_correlate(smooth_image):
    image = to_float(smooth_image(32, 32))
    kernel = np.asarray(gaussian_kernel(2.0, 0.5, 0.4, 7))
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    reference = np.stack([scipy.ndimage.correlate(image[..., c], kernel, mode='mirror') for c in range(3)], -1)
    np.testing.assert_allclose(blur(jnp.asarray(image), kernel), reference, atol=1e-5)


@pytest.mark.parametrize('choice, filter', [(0, Image.BOX), (1, Image.BILINEAR), (2, Image.BICUBIC)])
def test_halving_is_pillows(smooth_image, choice, filter):
    image = smooth_image(32, 48)
    ours = to_uint8(halve(jnp.asarray(to_float(image)), choice)).astype(int)
    reference = np.asarray(Image.fromarray(image).resize((24, 16), filter)).astype(int)
    assert np.abs(ours - reference)[2:-2, 2:-2].max() <= 3


def test_clean_is_the_mean_over_four_by_four(smooth_image):
    image = smooth_image(64, 32)
    lr = degrade(to_float(image)[None], keys(1), CLEAN)
    np.testing.assert_allclose(to_uint8(lr[0]).astype(int), box_downscale(image, 4), atol=1)


def test_each_image_has_a_degradation_of_its_own_key_and_nothing_else(smooth_image):
    images = np.stack([to_float(smooth_image(32, 32, n)) for n in range(3)])
    run = jax.jit(lambda images, keys: degrade(images, keys, DegradationConfig()))
    together, k = run(images, keys(3)), keys(3)
    assert together.shape == (3, 8, 8, 3)
    for n in range(3):
        np.testing.assert_allclose(run(images[n : n + 1], k[n : n + 1])[0], together[n], atol=1e-5)
    assert float(jnp.abs(run(images, keys(3, 1)) - together).max()) > 1e-3


def test_noise_is_as_strong_as_stated():
    flat = jnp.zeros((64, 64, 64, 3))
    lr = degrade(flat, keys(64), DegradationConfig(sigma_px=(0, 0), noise=(0.0, 0.1), random_filter=False))
    # the level is uniform in [0, 0.1] of an image's range, which is 2 here: rms = 0.2 / √3
    assert float(jnp.sqrt(jnp.mean(lr**2))) == pytest.approx(0.2 / 3**0.5, rel=0.15)
